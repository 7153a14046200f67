# SPDX-License-Identifier: Apache-2.0
"""The difference between what is and what should be: the fewest operations, in a safe order.

What receives comes before what sends, new before old goes, and a pod is marked for encryption only when everything
that encrypts is in place. Deletion is absence from the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.devices import Devices, attach_order, decide
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import Attachment, Direction, KernelState, Link, PeerEntry, PodFlags, Policy, Program, Sa
from kmesh_bpf.core.view import Address


def diff(desired: KernelState, observed: KernelState) -> tuple[Operation, ...]:
    """Give the operations that turn ``observed`` into ``desired``; none where they are equal."""
    return (
        *_formers(desired, observed),
        *_thresholds(desired, observed, lower=True),
        *_set_peers(desired, observed, new=True),
        *_new_sas(desired, observed, inbound=True),
        *_set_peers(desired, observed, new=False),
        *_set_policies(desired, observed, outbound=False),
        *_sources(desired, observed),
        *_attach(desired, observed, guard=True),
        *_nat(desired, observed, install=True),
        *_new_sas(desired, observed, inbound=False),
        *_set_policies(desired, observed, outbound=True),
        *_set_pods(desired, observed),
        *_attach(desired, observed, guard=False),
        *_remove(desired, observed),
    )


def missing(
    links: Collection[Link],
    node_addresses: Iterable[Address],
    uplinks: Collection[str],
    flags: Callable[[Address], PodFlags],
    observed: KernelState,
) -> tuple[Operation, ...]:
    """Give what must not wait for a pass, by what the kernel alone can tell.

    ``node_addresses``, ``uplinks``: as :func:`kmesh_bpf.core.devices.decide` takes them; ``flags``: of an address in
    the pod map, none if it is not there. Of ``observed`` count the devices' bindings and attachments.
    """
    far = {address for link in links for address in link.far_addresses or ()}
    local = [address for address in far if flags(address) & PodFlags.LOCAL]
    return at_once(links, decide(links, node_addresses, uplinks, local, observed.sources), observed)


def at_once(links: Iterable[Link], found: Devices, observed: KernelState) -> tuple[Operation, ...]:
    """Give what must not wait for a pass when devices come and go, of what one would do; ``found``: what is decided.

    A pod that is made again under its address has another device: what binds the address to the one that is gone
    would have all its packets dropped. Bound are only devices that get their program now: whoever carries an address
    that has just become free has taken it in advance.
    """
    there = {link.ifindex for link in links}
    missing = attach_order(found.attachments - observed.attachments)
    new = {one.ifindex for one in missing if one.program is Program.MARK_ENCRYPT}
    bound = {address: ifindex for address, ifindex in found.sources.items() if ifindex in new}
    gone = (address for address, ifindex in observed.sources.items() if ifindex not in there)
    return (
        *(ops.DeletePodDevice(ifindex) for ifindex in sorted(observed.pod_devices - there)),
        *(ops.DeleteSource(address) for address in gone if address not in bound),
        *_sources(KernelState(sources=bound, pod_devices=found.pod_devices & new), observed),
        *(ops.Attach(attachment) for attachment in missing),
    )


def _inbound(sa: Sa) -> bool:
    return sa.mark is not None


def _new_sas(desired: KernelState, observed: KernelState, *, inbound: bool) -> Iterator[Operation]:
    for identity, sa in desired.sas.items():
        if _inbound(sa) is not inbound:
            continue
        there, told = observed.sas.get(identity), _told(sa, desired, observed)
        if there is None:
            yield ops.AddSa(sa, told)
        elif there.key != sa.key:
            # Of the same key it stays as it is: made again it would count from the start (see Plan.lost).
            yield ops.ReplaceSa(there, sa, told)


def _told(sa: Sa, desired: KernelState, observed: KernelState) -> PeerEntry | None:
    """Give the entry that must tell of an outbound SA before that is there; None: it does already, or need not yet.

    Right before, and not with the other entries: whoever is killed in between cannot know any more that the SA was
    never made, and takes its numbers for used (:func:`kmesh_bpf.core.reach.in_order`).
    """
    entry, there = desired.peers.get(sa.dst), observed.sas.get(sa.id)
    if _inbound(sa) or entry is None or (there is not None and there.key == sa.key):
        return None
    return entry if _version(observed.peers.get(sa.dst), entry) < sa.spi <= entry.spi else None


def _version(there: PeerEntry | None, entry: PeerEntry) -> int:
    """Give the version that an entry tells of, of the incarnations of another one."""
    return there.spi if there is not None and there.incarnations == entry.incarnations else 0


def _set_policies(desired: KernelState, observed: KernelState, *, outbound: bool) -> Iterator[Operation]:
    for identity, policy in desired.policies.items():
        if (policy.direction is Direction.OUT) is not outbound:
            continue
        there = observed.policies.get(identity)
        if there != policy:
            yield ops.SetPolicy(policy, replace=there is not None)


def _set_peers(desired: KernelState, observed: KernelState, *, new: bool) -> Iterator[Operation]:
    # Those that had no entry before their SAs: whoever is killed in between must not find SAs of which no entry tells
    # that nothing was sent yet, for some of them would look like lost (kmesh_bpf.core.incarnation.lost). Others behind
    # them: what is on its way is given another mark only when there are SAs that it selects.
    # Of a version that they tell of ahead of its outbound SA they tell with that SA (_told).
    made = {sa.dst for sa in desired.sas.values() if _told(sa, desired, observed)}
    for address, entry in desired.peers.items():
        there = observed.peers.get(address)
        told = replace(entry, spi=_version(there, entry)) if address in made else entry
        if (there is None) is new and there != told:
            yield ops.SetPeer(address, told)


def _set_pods(desired: KernelState, observed: KernelState) -> Iterator[Operation]:
    for address, flags in desired.pods.items():
        if observed.pods.get(address) != flags:
            yield ops.SetPod(address, flags)
    for cidr in sorted(desired.services - observed.services, key=str):
        yield ops.AddService(cidr)


def _formers(desired: KernelState, observed: KernelState) -> Iterator[Operation]:
    # First of all, before any SA goes: a crash in between must not let its keys be used again from the start.
    for pair, spi in desired.formers.items():
        if observed.formers.get(pair) != spi:
            yield ops.SetFormer(pair, spi)


def _thresholds(desired: KernelState, observed: KernelState, *, lower: bool) -> Iterator[Operation]:
    if desired.policy_hash is lower and observed.policy_hash is not lower:
        yield ops.LowerHashThresholds() if lower else ops.RestoreHashThresholds()


def _sources(desired: KernelState, observed: KernelState) -> Iterator[Operation]:
    for address, ifindex in desired.sources.items():
        if observed.sources.get(address) != ifindex:
            yield ops.SetSource(address, ifindex)
    yield from (ops.AddPodDevice(ifindex) for ifindex in sorted(desired.pod_devices - observed.pod_devices))


def _by_device(attachment: Attachment) -> tuple[int, str]:
    return attachment.ifindex, attachment.program.value


def _attach(desired: KernelState, observed: KernelState, *, guard: bool) -> Iterator[Operation]:
    for attachment in attach_order(desired.attachments - observed.attachments):
        if (attachment.program is not Program.MARK_ENCRYPT) is guard:
            yield ops.Attach(attachment)


def _nat(desired: KernelState, observed: KernelState, *, install: bool) -> Iterator[Operation]:
    if desired.nat_exemption is install and observed.nat_exemption is not install:
        yield ops.InstallNatExemption() if install else ops.RemoveNatExemption()


def _outbound_first(policy: Policy) -> bool:
    return policy.direction is not Direction.OUT


def _remove(desired: KernelState, observed: KernelState) -> Iterator[Operation]:
    yield from (ops.DeletePodDevice(ifindex) for ifindex in sorted(observed.pod_devices - desired.pod_devices))
    yield from (ops.DeleteSource(address) for address in observed.sources if address not in desired.sources)
    yield from (ops.DeletePod(address) for address in observed.pods if address not in desired.pods)
    yield from (ops.DeleteService(cidr) for cidr in sorted(observed.services - desired.services, key=str))
    places = {_by_device(attachment) for attachment in desired.attachments}  # an old program there was replaced
    for attachment in sorted(observed.attachments, key=_by_device):
        if _by_device(attachment) not in places:
            yield ops.Detach(attachment)
    gone = (policy for identity, policy in observed.policies.items() if identity not in desired.policies)
    yield from (ops.DeletePolicy(policy) for policy in sorted(gone, key=_outbound_first))
    old = (sa for identity, sa in observed.sas.items() if identity not in desired.sas)
    yield from (ops.DeleteSa(sa) for sa in sorted(old, key=_inbound))
    yield from (ops.DeletePeer(address) for address in observed.peers if address not in desired.peers)
    yield from _nat(desired, observed, install=False)
    yield from _thresholds(desired, observed, lower=False)
    yield from (ops.DeleteFormer(one) for one in observed.formers if one not in desired.formers)

# SPDX-License-Identifier: Apache-2.0
"""Which programs belong on which devices of the node's network namespace, and whose packets come from which.

A device is a pod's, or it is guarded: what is not surely the one is the other, for a pod's device that is taken for
an uplink costs packets, counted, and an uplink that is taken for a pod's costs the secret.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.core.view import Address, Pod

LOOPBACK = 1
"""The ifindex of lo, in every namespace."""
PAIRS = frozenset({"veth", "netkit"})
"""Kinds (IFLA_INFO_KIND) of devices that come in twos, one end of which may be a pod's."""
SWITCHES = frozenset({"bridge", "openvswitch", "vrf"})
"""Kinds that hand on to their ports what is sent to them, to those of pods too: the ports that lead out are guarded."""
STACKED = frozenset({"vlan", "macvlan", "macvtap", "ipvlan"})
"""Kinds that hand on to the device below what is sent to them, no otherwise than if it had been sent to that one."""
RETURNING = frozenset({"ifb"})
"""Kinds that hand what is redirected to them (tc mirred; nothing else passes) back to the device that it came by, whose
programs have seen it: CNI's bandwidth plugin shapes with them what pods send. A guard there would take a pod's packet
for one that leaves unencrypted, and one that was decrypted for one that leaves again."""

NAMES = 5
"""Pods named in one sentence."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What is decided about the devices. ``sources`` and ``pod_devices``: as in KernelState."""

    attachments: frozenset[Attachment] = frozenset()
    sources: Mapping[Address, int] = field(default_factory=lambda: MappingProxyType({}))
    pod_devices: frozenset[int] = frozenset()
    problems: tuple[Problem, ...] = ()


def decide(
    links: Iterable[Link],
    node_addresses: Iterable[Address],
    uplinks: Collection[str],
    local_pod_addresses: Iterable[Address],
    bound: Mapping[Address, int] = MappingProxyType({}),
) -> Devices:
    """Decide about all devices of the node.

    ``uplinks``: names of devices that are no pod's whatever they look like. ``local_pod_addresses``: of the managed
    pods of this node; ``bound``: the devices that they are bound to already, which stay theirs whoever claims them too.
    """
    links, addresses = tuple(links), frozenset(node_addresses)
    by_index = {link.ifindex: link for link in links}
    pods = {link.ifindex for link in links if _is_pods(link, by_index, addresses, uplinks)}
    sources, claims = _sources((by_index[index] for index in pods), frozenset(local_pod_addresses), bound)
    problems = (
        *_missing(links, addresses, uplinks),
        *_bridged(links, pods, frozenset(sources.values())),
        *_without_xfrm(links, pods),
        *claims,
    )
    attached = (
        Attachment(link.ifindex, link.name, program)
        for link in links
        for program in _programs(link, by_index, link.ifindex in pods, uplinks)
    )
    return Devices(frozenset(attached), sources, frozenset(sources.values()), problems)


def without_device(
    links: Iterable[Link],
    node_addresses: Iterable[Address],
    uplinks: Collection[str],
    pods: Iterable[Pod],
    found: Devices,
) -> Iterator[Problem]:
    """Name the managed pods of this node whose addresses no pod's device carries; ``found``: what is decided.

    Nothing is said of a pod that is beginning or ending; nor of any, as long as a device has just come and may be its,
    or there is one that cannot be asked.
    """
    links, addresses = tuple(links), frozenset(node_addresses)
    own = [link for link in links if _may_be_pods(link, addresses, uplinks)]
    if not links or any(link.far_addresses is None or link.fresh for link in own):
        return
    known = addresses | found.sources.keys()
    missing = [
        f"{', '.join(map(str, without))} of pod {pod.name}"
        for pod in sorted(pods, key=lambda one: one.name)
        if pod.settled and (without := [address for address in pod.addresses if address not in known])
    ]
    if missing:
        more = f" and those of {len(missing) - NAMES} more pods" if len(missing) > NAMES else ""
        yield Problem(
            ProblemKind.NO_DEVICE,
            f"no pod's device of this node carries {', '.join(missing[:NAMES])}{more}: packets between there and "
            "managed pods of other nodes are dropped; a pod that shares a device, or hides its address (macvlan, "
            "ipvlan, gVisor, KubeVirt), cannot be managed: do not label it",
        )


def with_pods_addresses(links: Iterable[Link], owner: Callable[[Address], str | None]) -> Iterator[Problem]:
    """Name the devices of the node that carry what is a managed pod's; ``owner``: the node that has the pod, if any."""
    for link in links:
        for address in link.addresses:
            if (name := owner(address)) is not None:
                yield Problem(
                    ProblemKind.ADDRESS,
                    f"device {link.name}: it carries {address}, which is a managed pod's on {name}; what this node "
                    f"sends or forwards to that pod ends here: ip addr del {address} dev {link.name}",
                )


def attach_order(attachments: Iterable[Attachment]) -> list[Attachment]:
    """Put devices by which packets leave the node first, then those within it, lo last of all.

    What a pod gets comes by others, which have been looked at by then: its guard belongs to those within.
    """
    wanted = tuple(attachments)
    inner = {one.ifindex for one in wanted if one.program is Program.INNER_GUARD}
    return sorted(
        wanted,
        key=lambda one: (
            one.ifindex == LOOPBACK,
            one.ifindex in inner or one.program is Program.POD_GUARD,
            one.ifindex,
            one.program.value,
        ),
    )


def _is_pods(
    link: Link, by_index: Mapping[int, Link], node_addresses: frozenset[Address], uplinks: Collection[str]
) -> bool:
    if not _may_be_pods(link, node_addresses, uplinks):
        return False
    if link.far_addresses is None:
        return not _is_port(link, by_index)
    return any(address not in node_addresses for address in link.far_addresses)


def _may_be_pods(link: Link, node_addresses: frozenset[Address], uplinks: Collection[str]) -> bool:
    """Tell whether a device is a pod's if what is behind it is."""
    if link.kind not in PAIRS or not link.peer_elsewhere or link.leads_out or link.name in uplinks:
        return False
    return node_addresses.isdisjoint(link.addresses)


def _is_port(link: Link, by_index: Mapping[int, Link]) -> bool:
    master = by_index.get(link.master)
    return link.master != 0 and (master is None or master.kind != "vrf")


def _programs(link: Link, by_index: Mapping[int, Link], is_pods: bool, uplinks: Collection[str]) -> tuple[Program, ...]:
    if is_pods:
        return (Program.MARK_ENCRYPT, Program.POD_GUARD)
    if link.kind in RETURNING:
        return ()
    # Until the address of its other end tells, a pair that has just come may be an uplink: between its route and our
    # hearing of it no guard but this one would keep what was decrypted for a pod that has just gone from leaving by it.
    guard = Program.INNER_GUARD if _is_inner(link, by_index, uplinks) else Program.LEAK_GUARD
    return (Program.MARK_DECRYPT, guard)


def _is_inner(link: Link, by_index: Mapping[int, Link], uplinks: Collection[str]) -> bool:
    """Tell whether what is sent to a device leaves the node by another one, if at all."""
    if link.ifindex == LOOPBACK or link.kind in SWITCHES:
        return True
    if link.kind in PAIRS:
        return not link.peer_elsewhere and link.name not in uplinks
    below = by_index.get(link.lower) if link.kind in STACKED else None
    return below is not None and below.kind in SWITCHES


def _sources(
    devices: Iterable[Link], local: frozenset[Address], bound: Mapping[Address, int]
) -> tuple[dict[Address, int], list[Problem]]:
    """Give the device of each managed pod's address: of several the one that it is bound to, else the likeliest.

    Whoever may set addresses inside a pod can claim any, also one that no pod has yet: who is known to have it keeps
    it. Else the pod has come just now, with no more addresses than it needs.
    """
    claims: dict[Address, list[Link]] = {}
    for device in sorted(devices, key=lambda one: (len(one.far_addresses or ()), -one.ifindex)):
        for address in local.intersection(device.far_addresses or ()):
            claims.setdefault(address, []).append(device)
    sources, problems = {}, []
    for address in sorted(claims, key=lambda one: (one.version, one)):
        owner = next((one for one in claims[address] if one.ifindex == bound.get(address)), claims[address][0])
        sources[address] = owner.ifindex
        problems += [
            Problem(
                ProblemKind.SOURCE,
                f"device {other.name}: its other end carries {address}, which is the managed pod's behind {owner.name};"
                f" what it sends from there is dropped: take the address away from that pod",
            )
            for other in claims[address]
            if other is not owner
        ]
    return sources, problems


def _missing(links: tuple[Link, ...], node_addresses: frozenset[Address], uplinks: Iterable[str]) -> Iterator[Problem]:
    names = {link.name for link in links}
    for name in uplinks:
        if name not in names:
            yield Problem(
                ProblemKind.UPLINK, f"uplink {name}: there is no such device; name one that is there, or none"
            )
    if links and node_addresses and all(node_addresses.isdisjoint(link.addresses) for link in links):
        told = ", ".join(map(str, sorted(node_addresses, key=lambda one: (one.version, one))))
        sentence = f"no device carries an address of this node ({told}): ESP from and to it goes nowhere;"
        yield Problem(ProblemKind.UPLINK, f"{sentence} mend the Node's InternalIP, or the device's addresses")


def _bridged(links: tuple[Link, ...], pods: Collection[int], managed: Collection[int]) -> Iterator[Problem]:
    """Name each bridge that managed pods share with a port that leads out.

    A port that has just come may turn out a pod's.
    """
    for bridge in (link for link in links if link.kind in SWITCHES - {"vrf"}):
        ports = [link for link in links if link.master == bridge.ifindex]
        out = [
            port.name
            for port in ports
            if port.ifindex not in pods and not (port.kind in PAIRS and (port.fresh or not port.peer_elsewhere))
        ]
        if out and any(port.ifindex in managed for port in ports):
            yield Problem(
                ProblemKind.BRIDGED,
                f"bridge {bridge.name}: devices of managed pods and {', '.join(sorted(out))} are its ports; what is "
                "bridged between managed pods of different nodes cannot be encrypted and is dropped: it must be routed",
            )


def _without_xfrm(links: tuple[Link, ...], pods: Collection[int]) -> Iterator[Problem]:
    for link in links:
        if link.xfrm_disabled and link.ifindex not in pods:
            yield Problem(
                ProblemKind.XFRM_DISABLED,
                f"device {link.name}: disable_xfrm keeps what leaves by it from being encrypted, and it is dropped: "
                f"sysctl -w net.ipv4.conf.all.disable_xfrm=0 net.ipv4.conf.{link.name}.disable_xfrm=0",
            )
        if link.unchecked and link.ifindex not in pods:
            yield Problem(
                ProblemKind.XFRM_DISABLED,
                f"device {link.name}: disable_policy lets in whatever is decrypted, so that a node may speak for "
                f"any pod: sysctl -w net.ipv4.conf.all.disable_policy=0 net.ipv4.conf.{link.name}.disable_policy=0",
            )

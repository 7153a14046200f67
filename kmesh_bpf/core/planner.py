"""view + what the kernel holds -> the kernel objects that should be (DESIGN section 4). Decides; does nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import product

from kmesh_bpf import contract
from kmesh_bpf.core import devices, interference, keys, marks
from kmesh_bpf.core.devices import Devices
from kmesh_bpf.core.keys import Retirement
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import (
    Direction,
    KernelState,
    Mark,
    Observation,
    PeerEntry,
    PodFlags,
    Policy,
    PolicyId,
    Sa,
    SaId,
    SaUsage,
)
from kmesh_bpf.core.view import Address, Network, Node, Peer, View

ENCRYPT = Mark(contract.MARK_ENCRYPT, contract.MARK_MASK)
DECRYPTED = Mark(contract.MARK_DECRYPTED, contract.MARK_MASK)
WHOLE_MARK = 0xFFFFFFFF
# Seconds an outbound SA stays after its last packet; the kernel counts use in whole seconds.
OUTBOUND_LINGER = 2.0
OUTPUT_MARK = Mark(contract.MARK_DECRYPTED, WHOLE_MARK)


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose. ``replay_window`` in packets: ours, announced to peers; 0 turns ESN off.

    ``mark_mask``: bits of the low byte of marks that are ours. ``strict``: between managed pods nothing passes in
    clear. ``max_exact``: managed addresses of other nodes that are selected one by one; beyond, nodes by their pod
    CIDRs where that means the same.
    """

    node_mark_mask: int = contract.NODE_MARK_MASK
    mark_mask: int = contract.MARK_MASK
    strict: bool = True
    max_exact: int = 30000
    replay_window: int = 4096
    uplinks: tuple[str, ...] = ()
    retirement: Retirement = field(default_factory=Retirement)


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome: the state to reach, and what follows from it for the world outside the kernel.

    ``ready_peers``: names of the peers we can send to. ``transition``: true while something waits for time or use to
    pass (an old SA still in use), so another pass is due without any event. ``lost``: SAs of ours that were in the
    kernel for these very incarnations and are not any more, or would have to be made again to be as planned (another
    replay window); a new incarnation must be chosen before, for their sequence numbers would start again.
    """

    state: KernelState
    ready_peers: frozenset[str]
    transition: bool
    lost: tuple[SaId, ...]
    problems: tuple[Problem, ...] = ()


def make_plan(view: View, observed: Observation, options: Options, now: float) -> Plan:
    """Decide which kernel objects should exist.

    ``now`` is in the clock of ``view.announced_at`` and of the kernel's use times (seconds since the epoch).
    """
    everybody = {peer.node.name: marks.incarnations(view.node, peer.node) for peer in view.peers}
    accepted, problems = _without_double_claims(view.peers, everybody, observed)
    fingerprints = {peer.node.name: everybody[peer.node.name] for peer in accepted}
    ids = _node_ids(fingerprints.values(), observed, options.node_mark_mask)
    by_node = _pods_by_node(view)
    sas: dict[SaId, Sa] = {}
    policies: dict[PolicyId, Policy] = {}
    peers: dict[Address, PeerEntry] = {}
    ready: set[str] = set()
    lost: list[SaId] = []
    on_devices = _devices(view, observed, options)
    problems += on_devices.problems
    problems += interference.judge(observed.suspects, observed.links, view.node.addresses, options.mark_mask)
    waiting = False
    if not view.keys and observed.state.sas:
        return _kept(view, observed, fingerprints, on_devices, problems)
    for peer in accepted:
        tunnels = _tunnels(view.node, peer.node)
        version = keys.outbound_version(view.keys, peer.spi)
        fingerprint = fingerprints[peer.node.name]
        node_id = ids[fingerprint]
        mark = marks.node_mark(node_id, options.node_mark_mask)
        for local, remote in sorted(set(tunnels.values()), key=str):
            mine = _sas(view, peer, (local, remote), version, mark, observed, options, now)
            waiting = waiting or any(sa.spi != version for sa in mine)
            lost.extend(_lost(mine, observed, remote, fingerprint))
            sas.update((sa.id, sa) for sa in mine)
            # The map remembers what was seen in the kernel, not what is hoped for: else an SA that the kernel
            # refuses would look like one that somebody removed.
            before = observed.state.peers.get(remote)
            remembered = before.spi if before and before.incarnations == fingerprint else 0
            spi = version if version and _made(mine, observed, version) else remembered
            peers[remote] = PeerEntry(node_id, mark, spi, fingerprint)
        for address in peer.node.addresses:
            peers.setdefault(address, PeerEntry(node_id, mark, 0, fingerprint))
        if version is None:
            continue
        for policy in _policies(view.node, peer.node, by_node, tunnels, version):
            if policies.setdefault(policy.id, policy) != policy:
                claimed = policy.dst if policy.direction is Direction.OUT else policy.src
                sentence = f"peer {peer.node.name}: {claimed} is claimed by another peer too; ignored"
                problems.append(Problem(ProblemKind.CONFLICT, sentence))
        if tunnels:
            ready.add(peer.node.name)
    _keep_quarantined((one.node for one in view.peers if one.node.name not in fingerprints), observed, peers, sas)
    return Plan(
        KernelState(
            sas=sas,
            policies=policies,
            pods=_pods(view, ready),
            peers=peers,
            services=frozenset(view.services),
            attachments=on_devices.attachments,
            nat_exemption=True,
            sources=on_devices.sources,
            pod_devices=on_devices.pod_devices,
        ),
        frozenset(ready),
        waiting,
        tuple(lost),
        tuple(dict.fromkeys(problems)),
    )


def _devices(view: View, observed: Observation, options: Options) -> Devices:
    local = (address for pod in view.pods if pod.node == view.node.name for address in pod.addresses)
    return devices.decide(observed.links, view.node.addresses, options.uplinks, local, observed.state.sources)


def _kept(
    view: View, observed: Observation, fingerprints: Mapping[str, int], on_devices: Devices, problems: list[Problem]
) -> Plan:
    """Plan what can be planned without any key: SAs and policies stay, for a daemon that started with a broken Secret.

    Without them the node's managed pods would be cut off, and no key can be derived to make them anew.
    """
    made = {entry.incarnations for entry in observed.state.peers.values() if entry.spi}
    ready = frozenset(name for name, fingerprint in fingerprints.items() if fingerprint in made)
    state = KernelState(
        sas=observed.state.sas,
        policies=observed.state.policies,
        pods=_pods(view, ready),
        peers=observed.state.peers,
        services=frozenset(view.services),
        attachments=on_devices.attachments,
        nat_exemption=True,
        sources=on_devices.sources,
        pod_devices=on_devices.pod_devices,
    )
    problems.append(Problem(ProblemKind.KEY, "no key is known; SAs and policies stay as they are until there is one"))
    return Plan(state, ready, transition=False, lost=(), problems=tuple(dict.fromkeys(problems)))


def _without_double_claims(
    peers: Iterable[Peer], fingerprints: Mapping[str, int], observed: Observation
) -> tuple[list[Peer], list[Problem]]:
    """Give the peers whose addresses are theirs alone, and a problem for each that is quarantined.

    Two KmeshNodeInfos with one address would take turns in one SA. The peer that the kernel knows stays, so that
    whoever claims its address later cannot push it out; among new ones the first by name.
    """
    known = {entry.incarnations for entry in observed.state.peers.values()}
    owners: dict[Address, str] = {}
    accepted, problems = [], []
    for peer in sorted(peers, key=lambda one: (fingerprints[one.node.name] not in known, one.node.name)):
        taken = next((address for address in peer.node.addresses if address in owners), None)
        if taken is not None:
            sentence = f"peer {peer.node.name}: its address {taken} is {owners[taken]}'s; quarantined, not ready"
            problems.append(Problem(ProblemKind.QUARANTINE, sentence))
            continue
        owners.update(dict.fromkeys(peer.node.addresses, peer.node.name))
        accepted.append(peer)
    return sorted(accepted, key=lambda one: one.node.name), problems


def _keep_quarantined(
    quarantined: Iterable[Node], observed: Observation, peers: dict[Address, PeerEntry], sas: dict[SaId, Sa]
) -> None:
    """Leave the SAs of quarantined peers as they are: made again later, they would count from the start."""
    for address in (address for node in quarantined for address in node.addresses):
        if address in observed.state.peers and address not in peers:
            peers[address] = observed.state.peers[address]
            sas.update((one.id, one) for one in observed.state.sas.values() if address in (one.src, one.dst))


def _node_ids(fingerprints: Iterable[int], observed: Observation, mask: int) -> dict[int, int]:
    held = {entry.incarnations: entry.node_id for entry in observed.state.peers.values()}
    taken = {marks.node_id(sa.mark.value, mask) for sa in observed.state.sas.values() if sa.mark}
    return marks.allocate(fingerprints, held, taken, mask)


def _tunnels(local: Node, peer: Node) -> dict[int, tuple[Address, Address]]:
    """Give the outer addresses for each inner family: the first ones of that family that both nodes have, else any."""
    ends = {}
    for version in (4, 6):
        ours = next((address for address in local.addresses if address.version == version), None)
        theirs = next((address for address in peer.addresses if address.version == version), None)
        if ours is not None and theirs is not None:
            ends[version] = (ours, theirs)
    return {inner: ends.get(inner, next(iter(ends.values()))) for inner in (4, 6)} if ends else {}


def _sas(
    view: View,
    peer: Peer,
    ends: tuple[Address, Address],
    version: int | None,
    node_mark: int,
    observed: Observation,
    options: Options,
    now: float,
) -> list[Sa]:
    local, remote = ends
    window = options.replay_window if peer.replay_window else 0
    mark = Mark(node_mark | contract.MARK_DECRYPTED, options.node_mark_mask | contract.MARK_MASK)
    usage: dict[int, SaUsage] = {
        identity.spi: use
        for identity, use in observed.usage.items()
        if identity.src == remote and identity.mark == mark
    }
    inbound = keys.inbound_versions(
        view.keys, peer.spi, view.announced, now - view.announced_at, usage, now, options.retirement
    )
    here, there = view.node.boot_id, peer.node.boot_id
    found = [
        Sa(remote, local, spi, keys.derive(view.keys[spi], remote, local, there, here), mark, OUTPUT_MARK, window, True)
        for spi in inbound
    ]
    if version is None:
        return found
    for spi in (version, *_still_sending(observed, ends, version, now)):
        if spi not in view.keys:
            continue
        key = keys.derive(view.keys[spi], local, remote, here, there)
        found.append(Sa(local, remote, spi, key, replay_window=window, any_family=True))
    return found


def _still_sending(observed: Observation, ends: tuple[Address, Address], version: int, now: float) -> list[int]:
    """Give the older key versions whose outbound SA must outlive this pass.

    While the policy in the kernel still points to it, or pointed to it a moment ago, packets may be on their way
    through it: deleting the SA then would drop them (XfrmOutStateInvalid).
    """
    local, remote = ends
    pointed_to = {
        policy.spi
        for policy in observed.state.policies.values()
        if policy.direction is Direction.OUT and policy.tunnel_dst == remote
    }
    return [
        identity.spi
        for identity, use in observed.usage.items()
        if (identity.src, identity.dst, identity.mark) == (local, remote, None)
        and identity.spi != version
        and (identity.spi in pointed_to or now - use.last_used < OUTBOUND_LINGER)
    ]


def _made(planned: list[Sa], observed: Observation, version: int | None) -> bool:
    """Tell whether the SAs of the version in use are in the kernel, as planned."""
    current = [sa for sa in planned if sa.spi == version]
    return bool(current) and all(observed.state.sas.get(sa.id) == sa for sa in current)


def _lost(planned: list[Sa], observed: Observation, remote: Address, fingerprint: int) -> list[SaId]:
    """Give the SAs made for these incarnations, as the peer map remembers, that are gone or differ from the plan."""
    before = observed.state.peers.get(remote)
    if before is None or not before.spi or before.incarnations != fingerprint:
        return []
    there = ((sa, observed.state.sas.get(sa.id)) for sa in planned if sa.spi == before.spi)
    return [sa.id for sa, made in there if made is None or (made != sa and made.key == sa.key)]


def _selectors(node: Node, by_node: dict[str, list[Address]]) -> list[Network]:
    """Give the node's pod CIDRs; where the CNI hands out none, its managed pods' own addresses."""
    if node.pod_cidrs:
        return list(node.pod_cidrs)
    return [ip_network(address) for address in by_node.get(node.name, [])]


def _policies(
    local: Node,
    peer: Node,
    by_node: dict[str, list[Address]],
    tunnels: dict[int, tuple[Address, Address]],
    version: int,
) -> list[Policy]:
    found = []
    for ours, theirs in product(_selectors(local, by_node), _selectors(peer, by_node)):
        if ours.version != theirs.version or ours.version not in tunnels:
            continue
        here, there = tunnels[ours.version]
        found.append(Policy(Direction.OUT, ours, theirs, ENCRYPT, here, there, version))
        found.extend(
            Policy(direction, theirs, ours, DECRYPTED, there, here) for direction in (Direction.FWD, Direction.IN)
        )
    return found


def _pods_by_node(view: View) -> dict[str, list[Address]]:
    found: dict[str, list[Address]] = {}
    for pod in view.pods:
        found.setdefault(pod.node, []).extend(pod.addresses)
    return found


def _pods(view: View, ready: Collection[str]) -> dict[Address, PodFlags]:
    flags = {}
    for pod in view.pods:
        if pod.node == view.node.name:
            flag = PodFlags.LOCAL
        elif pod.node in ready:
            flag = PodFlags.REMOTE | PodFlags.READY
        else:
            flag = PodFlags.REMOTE
        flags.update(dict.fromkeys(pod.addresses, flag))
    return flags

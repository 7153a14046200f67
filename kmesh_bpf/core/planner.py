"""view + what the kernel holds -> the kernel objects that should be (DESIGN section 4). Decides; does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmesh_bpf.core import cidrs, devices, marks, pods, sas
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.policies import Way, plan_policies
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import KernelState, Observation, PeerEntry, Sa, SaId
from kmesh_bpf.core.tunnels import tunnels
from kmesh_bpf.core.view import Address, Node, Peer, View


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome: the state to reach, and what follows from it for the world outside the kernel.

    ``ready_peers``: names of the peers we can send to. ``transition``: true while something waits for time or use to
    pass (an old SA still in use), so another pass is due without any event. ``lost``: SAs of ours that were in the
    kernel for these very incarnations and are not any more, or would have to be made again to be as planned (another
    replay window); a new incarnation must be chosen before, for their sequence numbers would start again. ``by_cidr``:
    names of the peers whose pods are selected by pod CIDR, for there are too many to select them one by one.
    """

    state: KernelState
    ready_peers: frozenset[str]
    transition: bool
    lost: tuple[SaId, ...]
    problems: tuple[Problem, ...] = ()
    by_cidr: frozenset[str] = frozenset()


def make_plan(view: View, observed: Observation, options: Options, now: float) -> Plan:
    """Decide which kernel objects should exist.

    ``now`` is in the clock of ``view.announced_at`` and of the kernel's use times (seconds since the epoch).
    """
    everybody = {peer.node.name: marks.incarnations(view.node, peer.node) for peer in view.peers}
    accepted, problems = _without_double_claims(view.peers, everybody, observed)
    fingerprints = {peer.node.name: everybody[peer.node.name] for peer in accepted}
    ids = _node_ids(fingerprints.values(), observed, options.node_mark_mask)
    problems += [
        Problem(ProblemKind.UPLINK, f"uplink {name}: there is no such device, so nothing guards or decrypts there")
        for name in devices.missing_uplinks(observed.links, options.uplinks)
    ]
    if not view.keys and observed.state.sas:
        # A daemon that started with a broken Secret: no key can be derived to make them anew.
        problems.append(Problem(ProblemKind.KEY, "no key is known; the SAs stay as they are until there is one"))
    held = sas.index(view, observed, options)
    planned: dict[SaId, Sa] = {}
    peers: dict[Address, PeerEntry] = {}
    ways: dict[str, Way] = {}
    lost: list[SaId] = []
    waiting = False
    for peer in accepted:
        ends = tunnels(view.node, peer.node)
        fingerprint = fingerprints[peer.node.name]
        node_id = ids[fingerprint]
        mark = marks.node_mark(node_id, options.node_mark_mask)
        before = {pair: _entry(observed, pair[1], fingerprint) for pair in sorted(set(ends.values()), key=str)}
        made = {pair: sas.plan_sas(view, peer, pair, mark, before[pair], held, options, now) for pair in before}
        for (_, remote), found in made.items():
            planned.update((sa.id, sa) for sa in found.sas)
            peers[remote] = PeerEntry(node_id, mark, found.spi, fingerprint, found.retired)
            lost += [*found.missing, *_lost(found.sas, observed, remote, fingerprint)]
            waiting = waiting or found.waiting
        for address in peer.node.addresses:
            peers.setdefault(address, PeerEntry(node_id, mark, 0, fingerprint))
        if made and all(found.sends for found in made.values()):
            ways[peer.node.name] = Way(peer, ends)
    _keep_quarantined((one.node for one in view.peers if one.node.name not in fingerprints), observed, peers, planned)
    outer = {address: peer.node.name for peer in accepted for address in peer.node.addresses}
    owner, conflicts = pods.owners(view, outer)
    limit = cidrs.bound(observed.state.policies.values(), options.max_exact)
    by_cidr = cidrs.by_cidr(view, owner, ways.keys(), limit)
    return Plan(
        KernelState(
            sas=planned,
            policies=plan_policies(view, owner, outer, ways, by_cidr, options),
            pods=pods.flags(view, owner, outer, accepted, ways.keys()),
            peers=peers,
            services=frozenset(view.services),
            attachments=devices.attachments(observed.links, view.node.addresses, options.uplinks),
            nat_exemption=True,
            policy_hash=observed.can_hash,
        ),
        frozenset(ways),
        waiting,
        tuple(lost),
        tuple(dict.fromkeys((*problems, *conflicts))),
        by_cidr,
    )


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


def _lost(planned: Iterable[Sa], observed: Observation, remote: Address, fingerprint: int) -> list[SaId]:
    """Give the SAs made for these incarnations, as the peer map remembers, that are gone or differ from the plan."""
    before = observed.state.peers.get(remote)
    if before is None or not before.spi or before.incarnations != fingerprint:
        return []
    there = ((sa, observed.state.sas.get(sa.id)) for sa in planned if sa.spi == before.spi)
    return [sa.id for sa, made in there if made is None or (made != sa and made.key == sa.key)]


def _entry(observed: Observation, address: Address, fingerprint: int) -> PeerEntry:
    """Give what the peer map remembers of an address under these incarnations: nothing yet, if it has none."""
    entry = observed.state.peers.get(address)
    return entry if entry and entry.incarnations == fingerprint else PeerEntry(0, 0, 0, fingerprint)

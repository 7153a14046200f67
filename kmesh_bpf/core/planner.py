"""view + what the kernel holds -> the kernel objects that should be (DESIGN section 4). Decides; does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kmesh_bpf.core import cidrs, claims, devices, marks, pods, sas
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.policies import Way, plan_policies
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import KernelState, Observation, PeerEntry, Sa, SaId
from kmesh_bpf.core.tunnels import tunnels
from kmesh_bpf.core.view import Address, View


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
    settled = claims.settle(view, everybody, observed, options.node_mark_mask)
    accepted, ids = settled.accepted, settled.ids
    fingerprints = {peer.node.name: everybody[peer.node.name] for peer in accepted}
    problems = [
        *(Problem(ProblemKind.QUARANTINE, sentence) for sentence in settled.quarantined),
        *(Problem(ProblemKind.CAPACITY, sentence) for sentence in settled.crowded),
        *(Problem(ProblemKind.CLAIM, sentence) for sentence in view.problems),
    ]
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
    shut_out = (one.node for one in view.peers if one.node.name not in fingerprints)
    claims.keep_quarantined(shut_out, observed, peers, planned)
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

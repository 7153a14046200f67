"""view + what the kernel holds -> the kernel objects that should be (DESIGN section 4). Decides; does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType

from kmesh_bpf.core import cidrs, claims, devices, formers, interference, keys, marks, pods, sas
from kmesh_bpf.core.incarnation import lost
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.policies import Way, plan_policies
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.sas import Held, TunnelSas
from kmesh_bpf.core.state import KernelState, Observation, PeerEntry, Sa, SaId
from kmesh_bpf.core.tunnels import Ends, tunnels
from kmesh_bpf.core.view import Address, Key, Peer, View

NOBODY: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome: the state to reach, and what follows from it for the world outside the kernel.

    ``ready_peers``: names of the peers we can send to. ``transition``: true while something waits for time or use to
    pass (an old SA still in use), so another pass is due without any event. ``lost``, ``returned`` (names of peers that
    are quarantined because they are back under keys that were used) and the state's formers call for a new incarnation
    (:mod:`kmesh_bpf.core.incarnation`). ``departing``: since when peers are missed, by fingerprint, whose SAs stay for
    a while; the next plan wants to know it. ``by_cidr``: names of the peers whose pods are selected by pod CIDR, for
    there are too many to select them one by one.
    """

    state: KernelState
    ready_peers: frozenset[str]
    transition: bool
    lost: tuple[SaId, ...]
    problems: tuple[Problem, ...] = ()
    by_cidr: frozenset[str] = frozenset()
    returned: frozenset[str] = frozenset()
    departing: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))


def make_plan(
    view: View, observed: Observation, options: Options, now: float, departed: Mapping[int, float] = NOBODY
) -> Plan:
    """Decide which kernel objects should exist.

    ``now`` is in the clock of ``view.announced_at`` and of the kernel's use times (seconds since the epoch).
    ``departed``: ``departing`` of the plan before.
    """
    everybody = {peer.node.name: marks.incarnations(view.node, peer.node) for peer in view.peers}
    settled = claims.settle(view, everybody, observed, options.node_mark_mask)
    fingerprints = {peer.node.name: everybody[peer.node.name] for peer in settled.accepted}
    known = _Known(
        observed,
        sas.index(view, observed, options),
        formers.used_versions(view.node, observed, fingerprints, settled.accepted),
        frozenset(sa.key for sa in observed.state.sas.values()),
    )
    planned: dict[SaId, Sa] = {}
    peers: dict[Address, PeerEntry] = {}
    ways: dict[str, Way] = {}
    gone: list[SaId] = []
    returned: set[str] = set()
    waiting = False
    for peer in settled.accepted:
        fingerprint = fingerprints[peer.node.name]
        found = _plan_peer(view, peer, fingerprint, settled.ids[fingerprint], known, options, now)
        if found is None:
            returned.add(peer.node.name)
            continue
        planned.update((sa.id, sa) for sa in found.sas)
        peers.update(found.entries)
        gone += found.lost
        waiting = waiting or found.waiting
        if found.way is not None:
            ways[peer.node.name] = found.way
    named = fingerprints.keys() - returned
    claims.keep_quarantined((one.node for one in view.peers if one.node.name not in named), observed, peers, planned)
    leaving = formers.partings(view.node, observed, peers, departed, now)
    accepted = [peer for peer in settled.accepted if peer.node.name in named]
    owner, conflicts = pods.owners(view)
    limit = cidrs.bound(observed.state.policies.values(), options.max_exact)
    ready = frozenset(name for name, way in ways.items() if way.sends)
    by_cidr = cidrs.by_cidr(view, owner, ready, limit)
    here = [pod for pod in view.pods if pod.node == view.node.name]
    local = (address for pod in here for address in pod.addresses)
    on_devices = devices.decide(observed.links, view.node.addresses, options.uplinks, local, observed.state.sources)
    alone = devices.without_device(observed.links, view.node.addresses, options.uplinks, here, on_devices)
    hindered = interference.judge(observed.suspects, observed.links, view.node.addresses, options.mark_mask)
    return Plan(
        KernelState(
            sas={**planned, **leaving.sas},
            policies=plan_policies(view, owner, ways, by_cidr, options),
            pods=pods.flags(view, owner, accepted, ready),
            peers={**peers, **leaving.peers},
            services=frozenset(view.services),
            attachments=on_devices.attachments,
            nat_exemption=True,
            policy_hash=observed.can_hash,
            formers=leaving.formers,
            sources=on_devices.sources,
            pod_devices=on_devices.pod_devices,
        ),
        ready,
        waiting or bool(leaving.departing),
        tuple(gone),
        tuple(
            dict.fromkeys(
                (*_problems(view, observed, settled, returned), *conflicts, *on_devices.problems, *alone, *hindered)
            )
        ),
        by_cidr,
        frozenset(returned),
        leaving.departing,
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the kernel holds, sorted once for all peers.

    ``used``: the highest key version of pairs whose SAs are gone, by :func:`marks.pair`; ``keys``: of all SAs.
    """

    observed: Observation
    held: Held
    used: Mapping[int, int]
    keys: frozenset[Key]


@dataclass(frozen=True, slots=True)
class _PeerPlan:
    """What one peer takes. ``way`` None: nothing is taken from it, nor can it be sent to."""

    sas: tuple[Sa, ...]
    entries: Mapping[Address, PeerEntry]
    lost: tuple[SaId, ...]
    waiting: bool
    way: Way | None


def _plan_peer(
    view: View, peer: Peer, fingerprint: int, node_id: int, known: _Known, options: Options, now: float
) -> _PeerPlan | None:
    """Plan for one peer; None: an SA would have to be made under a key that was in use, and its numbers start again."""
    ends = tunnels(view.node, peer.node)
    mark = marks.node_mark(node_id, options.node_mark_mask)
    before = {address: _entry(known.observed, address, fingerprint) for address in peer.node.addresses}
    pair = marks.pair(view.node, peer.node)
    used = formers.used_with(pair, known.used)
    reached = max((keys.outbound_version(view.keys, peer.spi) or 0, *(entry.spi for entry in before.values())))
    left_behind = used if min(reached, view.announced) > used else 0  # both are past what was used
    made: dict[Ends, TunnelSas] = {}
    for tunnel in sorted(set(ends.values()), key=str):
        entry = before[tunnel[1]]
        entry = replace(entry, retired=max(entry.retired, left_behind))
        made[tunnel] = sas.plan_sas(view, peer, tunnel, mark, entry, known.held, options, now)
    if formers.reuses(chain.from_iterable(one.sas for one in made.values()), known.observed, used):
        return None
    entries: dict[Address, PeerEntry] = {}
    gone: list[SaId] = []
    for (_, remote), one in made.items():
        entries[remote] = PeerEntry(node_id, mark, one.spi, fingerprint, one.retired, pair)
        gone += one.missing
        gone += lost(one.sas, known.observed, remote, fingerprint, view.announced, known.keys)
    for address in peer.node.addresses:
        entries.setdefault(address, PeerEntry(node_id, mark, 0, fingerprint, pair=pair))
    sends = bool(ends) and all(one.sends for one in made.values())
    planned = tuple(chain.from_iterable(one.sas for one in made.values()))
    takes = any(sa.mark is not None for sa in planned)
    return _PeerPlan(
        planned,
        entries,
        tuple(gone),
        any(one.waiting for one in made.values()),
        Way(peer, ends, sends) if sends or takes else None,
    )


def _entry(observed: Observation, address: Address, fingerprint: int) -> PeerEntry:
    """Give what the peer map remembers of an address under these incarnations: nothing yet, if it has none."""
    entry = observed.state.peers.get(address)
    return entry if entry and entry.incarnations == fingerprint else PeerEntry(0, 0, 0, fingerprint)


def _problems(view: View, observed: Observation, settled: claims.Claims, returned: set[str]) -> list[Problem]:
    found = [
        *(Problem(ProblemKind.QUARANTINE, sentence) for sentence in settled.quarantined),
        *(Problem(ProblemKind.QUARANTINE, formers.sentence(name)) for name in sorted(returned)),
        *(Problem(ProblemKind.CAPACITY, sentence) for sentence in settled.crowded),
        *(Problem(ProblemKind.CLAIM, sentence) for sentence in view.problems),
    ]
    if not view.keys and observed.state.sas:
        # A daemon that started with a broken Secret: no key can be derived to make them anew.
        found.append(Problem(ProblemKind.KEY, "no key is known; the SAs stay as they are until there is one"))
    return found

"""What there is to tell of a pass, as one frozen record: metrics, readiness and events are made from it. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import get_args

from kmesh.launcher.totals import Totals, Traffic, Way, advance
from kmesh_bpf import Operation, Problem, Report, SaId, SaUsage, View

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: three nodes take some ms, thousands of peers that change at once take seconds."""
SEQUENCE_NUMBERS, EXTENDED_SEQUENCE_NUMBERS = 1 << 32, 1 << 64
NO_TRAFFIC = Traffic()
CONVERGED, UNFINISHED, FAILED = "converged", "unfinished", "failed"
APPLIED = "applied"


def kind(operation: object) -> str:
    """Give an operation's kind as a word: ``AddSa(...)`` -> ``add_sa``."""
    return _word(type(operation).__name__)


def _word(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


KINDS = tuple(_word(one.__name__) for one in get_args(Operation))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums since the daemon started: passes by result, operations by (kind, result), durations of whole passes.

    ``durations`` are numbers of passes by bucket, the last one for those longer than every bound of ``BUCKETS``.
    """

    passes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((CONVERGED, UNFINISHED, FAILED), 0))
    operations: Mapping[tuple[str, str], int] = field(
        default_factory=lambda: {(one, result): 0 for one in KINDS for result in (APPLIED, FAILED)}
    )
    durations: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Direction:
    """The SAs of a peer in one direction.

    ``newest`` and ``oldest`` are SPIs, 0 where there is no SA. ``sequence_use``: the largest part of its sequence
    numbers that one of them has used. ``last_used``: seconds since the epoch, 0: never. ``traffic``: see ``totals``.
    """

    newest: int = 0
    oldest: int = 0
    sequence_use: float = 0.0
    last_used: int = 0
    traffic: Traffic = NO_TRAFFIC


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer: whether we can send to it, by what is in the kernel; what it announces; its SAs."""

    ready: bool
    announced: int
    ways: Mapping[Way, Direction]


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The key in force (SPI 0: none), the SPI in our KmeshNodeInfo, and why the Secret's content was refused.

    ``generation``: of our KmeshNodeInfo in the cluster; 0: it is not known to stand there as we announced it.
    """

    spi: int = 0
    announced: int = 0
    refused: str = ""
    generation: int = 0


NO_KEY = KeyRecord()


@dataclass(frozen=True, slots=True)
class Record:
    """The daemon of a node after an attempt at a pass. Times are seconds since the epoch.

    ``attempted``: end of the last attempt; ``succeeded``: of the last one that reached its plan, 0 before the first.
    ``error``: why the last attempt had to be given up, empty when it was not; everything below is then of the last
    one that was carried through. ``failures``: the kernel's words; ``drift``: how many objects differed
    from the plan. ``settled``: the newest SPI that everything was on; ``unready``: why the node is not ready, since
    ``unready_since``; empty when it is. ``been_ready``: whether it ever was, up to here.
    """

    node: str
    attempted: float
    succeeded: float = 0.0
    error: str = ""
    statistics: Statistics = field(default_factory=Statistics)
    failures: tuple[str, ...] = ()
    drift: int = 0
    key: KeyRecord = NO_KEY
    key_since: float = 0.0
    settled: int = 0
    peers: Mapping[str, PeerRecord] = field(default_factory=lambda: MappingProxyType({}))
    peers_expected: int = 0
    pods_local: int = 0
    pods_remote: int = 0
    plan_problems: tuple[Problem, ...] = ()
    cluster_problems: tuple[str, ...] = ()
    incarnation: str = ""
    renewed: bool = False
    renewed_why: str = ""
    counters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    xfrm_errors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    totals: Totals = field(default_factory=Totals)
    unready: tuple[str, ...] = ()
    unready_since: float = 0.0
    been_ready: bool = False

    @property
    def peers_ready(self) -> int:
        """How many peers we can send to."""
        return sum(peer.ready for peer in self.peers.values())


def after_pass(
    before: Record,
    view: View,
    report: Report,
    key: KeyRecord,
    *,
    cluster_problems: tuple[str, ...],
    counters: Mapping[str, int],
    xfrm_errors: Mapping[str, int],
    now: float,
    seconds: float,
) -> Record:
    """Give the record after a pass that took so many seconds."""
    addresses = {address: peer.node.name for peer in view.peers for address in peer.node.addresses}
    usage = report.observed.usage
    totals = advance(before.totals, usage, addresses)
    local = sum(pod.node == view.node.name for pod in view.pods)
    record = replace(
        before,
        attempted=now,
        succeeded=now if report.converged else before.succeeded,
        error="",
        statistics=_counted(before.statistics, report, seconds),
        failures=tuple(str(failure.error) for failure in report.failures),
        drift=len(report.drift),
        key=key,
        key_since=_key_since(before, key.spi, usage, now),
        peers=_peers(view, report, totals),
        peers_expected=len(report.expected),
        pods_local=local,
        pods_remote=len(view.pods) - local,
        plan_problems=report.plan.problems,
        cluster_problems=cluster_problems,
        incarnation=report.incarnation,
        renewed=report.renewed,
        renewed_why=report.decision.why,
        counters=counters,
        xfrm_errors=xfrm_errors,
        totals=totals,
    )
    return replace(record, settled=_settled(before.settled, record))


def after_error(before: Record, error: str, now: float) -> Record:
    """Give the record after a pass that had to be given up."""
    passes = {**before.statistics.passes, FAILED: before.statistics.passes[FAILED] + 1}
    return replace(
        before, attempted=now, error=error, renewed=False, statistics=replace(before.statistics, passes=passes)
    )


def _counted(before: Statistics, report: Report, seconds: float) -> Statistics:
    result = CONVERGED if report.converged else FAILED if report.failures else UNFINISHED
    operations = Counter(before.operations)
    for one, number in Counter(map(type, report.applied)).items():
        operations[_word(one.__name__), APPLIED] += number
    for failure in report.failures:
        operations[kind(failure.operation), FAILED] += 1
    slot = bisect_left(BUCKETS, seconds)
    durations = tuple(number + (index == slot) for index, number in enumerate(before.durations))
    passes = {**before.passes, result: before.passes[result] + 1}
    return Statistics(passes, operations, durations, before.seconds + seconds)


def _key_since(before: Record, spi: int, usage: Mapping[SaId, SaUsage], now: float) -> float:
    """Give since when the key is in use here, at the latest: SAs of it tell what was before a restart of the daemon."""
    known = before.key_since if before.key.spi == spi else now
    return min([known, *(float(use.added) for identity, use in usage.items() if identity.spi == spi)]) if spi else 0.0


def _peers(view: View, report: Report, totals: Totals) -> dict[str, PeerRecord]:
    sums = totals.sums()
    windows = {identity: sa.replay_window for identity, sa in report.observed.state.sas.items()}
    found: dict[tuple[str, Way], list[tuple[SaId, SaUsage]]] = {}
    for identity, (flow, use) in totals.seen.items():
        found.setdefault(flow, []).append((identity, use))
    ways: tuple[Way, ...] = ("in", "out")
    peers = {}
    for peer in view.peers:
        name = peer.node.name
        directions = {
            way: _direction(found.get((name, way), ()), windows, sums.get((name, way), NO_TRAFFIC)) for way in ways
        }
        peers[name] = PeerRecord(name in report.reachable, peer.spi, directions)
    return peers


def _direction(sas: Sequence[tuple[SaId, SaUsage]], windows: Mapping[SaId, int], traffic: Traffic) -> Direction:
    spis = [identity.spi for identity, _ in sas]
    if not spis:
        return Direction(traffic=traffic)
    return Direction(
        max(spis),
        min(spis),
        max(_sequence_use(use, windows.get(identity, 0)) for identity, use in sas),
        max(use.last_used for _, use in sas),
        traffic,
    )


def _sequence_use(use: SaUsage, window: int) -> float:
    """Give the used part of an SA's sequence numbers; without ESN the kernel tells packets only, one number each."""
    return use.sequence / EXTENDED_SEQUENCE_NUMBERS if window else use.packets / SEQUENCE_NUMBERS


def _settled(before: int, record: Record) -> int:
    """Give the newest SPI that we announced and that all SAs of all peers were on.

    A daemon that starts in mid-replacement takes the oldest SPI in the kernel for it.
    """
    ways = [way for peer in record.peers.values() for way in peer.ways.values() if way.newest]
    wanted = record.key.spi
    if wanted and record.key.announced == wanted and all(way.newest == way.oldest == wanted for way in ways):
        return wanted
    return before or min((way.oldest for way in ways if way.oldest < wanted), default=0)

# SPDX-License-Identifier: Apache-2.0
"""What there is to tell of the daemon, as one frozen record: all that it says of itself is a view of it. Pure.

The Lease, the metrics, readiness, Events and conditions are made from a record and from nothing else, so that they
cannot contradict each other. What a pass leaves is taken in by :func:`after_pass`, which costs what the pass did; what
costs more, the peers one by one, is taken in by :func:`surveyed` when it is told.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import get_args

from kmesh.cluster.status import DROPPING
from kmesh.telling.peers import PeerRecord, Sums
from kmesh_bpf import Network, Operation, Pods, Problem, Report, View

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: three nodes take some ms, thousands of peers that change at once take seconds."""
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
class KeyRecord:
    """The key in force (SPI 0: none), the SPI in our KmeshNodeInfo, and why the Secret's content was refused.

    ``generation``: of our KmeshNodeInfo in the cluster; 0: it is not known to stand there as we announced it.
    ``hindrance``: why what is to be announced cannot be written, empty where it can.
    """

    spi: int = 0
    announced: int = 0
    refused: str = ""
    generation: int = 0
    hindrance: str = ""


NO_KEY = KeyRecord()


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that was carried through: what it was made for, what it did, and what is known beside.

    ``ended``: seconds since the epoch; ``seconds``: how long it took.
    """

    view: View
    report: Report
    key: KeyRecord
    cluster_problems: tuple[str, ...]
    ended: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds without an attempt at a pass after which the daemon counts as dead; a view's age that is too old."""

    silence: float = math.inf
    view_age: float = math.inf


@dataclass(frozen=True, slots=True)
class Record:
    """The daemon of a node after an attempt at a pass. Times are seconds since the epoch.

    ``attempted``: end of the last attempt; ``succeeded``: of the last one that reached its plan, 0 before the first.
    ``error``: why the last attempt had to be given up, empty when it was not; everything below is then of the last
    one that was carried through. ``failures``: the kernel's words; ``drift``: how many objects differed
    from the plan. ``renewals``: how often another incarnation took the place of one. ``strict``: how the programs were
    loaded.

    ``now``: when it is told; ``view_age``: how long the cluster had not been seen then, in seconds; ``unready``: why
    the node was not ready, empty when it was (:mod:`kmesh.telling.readiness`). ``peers`` with their ``sums``,
    ``counters`` and ``xfrm_errors`` are as old as the last telling, a second or so.

    What only a series of records shows: ``incarnation_since``: since when it has been this one, here;
    ``unready_since``, ``been_ready``: whether it ever was, up to here; ``key_since``: since when the key is in force
    here; ``settled``: the newest SPI that everything was on; ``replacing_since``: since when not everything is on the
    newest key, None: everything is; ``last_drop``: the counter that rose last of those of packets that our programs
    dropped, and when.
    """

    node: str
    attempted: float
    succeeded: float = 0.0
    error: str = ""
    statistics: Statistics = field(default_factory=Statistics)
    failures: tuple[str, ...] = ()
    drift: int = 0
    key: KeyRecord = NO_KEY
    pods_local: int = 0
    pods_remote: int = 0
    plan_problems: tuple[Problem, ...] = ()
    cluster_problems: tuple[str, ...] = ()
    incarnation: str = ""
    renewals: int = 0
    renewed_why: str = ""
    services: tuple[Network, ...] = ()
    nat_exemption: bool = False
    by_cidr: frozenset[str] = frozenset()
    strict: bool = True
    bounds: Bounds = Bounds()

    now: float = 0.0
    view_age: float = 0.0
    unready: tuple[str, ...] = ()
    peers: Mapping[str, PeerRecord] = field(default_factory=lambda: MappingProxyType({}))
    sums: Sums = field(default_factory=Sums)
    counters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    xfrm_errors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    incarnation_since: float = 0.0
    unready_since: float = 0.0
    been_ready: bool = False
    key_since: float = 0.0
    settled: int = 0
    replacing_since: float | None = None
    last_drop: tuple[str, float] | None = None

    @property
    def newest_spi(self) -> int:
        """The newest key version held, 0 without a key."""
        return max(self.key.spi, self.key.announced)

    @property
    def old_inbound(self) -> int:
        """How many SAs still accept what was sent with an older version than the newest."""
        return sum(number for spi, number in self.sums.receiving.items() if spi < self.newest_spi)

    @property
    def on_newest(self) -> int:
        """How many peers are sent to with the newest version."""
        return len(self.sums.sending.get(self.newest_spi, ())) if self.newest_spi else 0


def after_pass(before: Record, done: Pass) -> Record:
    """Give the record after a pass. Of what there is for each peer it tells what it told before."""
    report, view = done.report, done.view
    local = len(Pods.of(view.pods).on(view.node.name))
    return replace(
        before,
        attempted=done.ended,
        succeeded=done.ended if report.converged else before.succeeded,
        error="",
        statistics=_counted(before.statistics, report, done.seconds),
        failures=tuple(str(failure.error) for failure in report.failures),
        drift=len(report.drift),
        key=done.key,
        pods_local=local,
        pods_remote=len(view.pods) - local,
        plan_problems=report.plan.problems,
        cluster_problems=done.cluster_problems,
        incarnation=report.incarnation,
        renewals=before.renewals + report.renewed,
        renewed_why=report.decision.why if report.renewed else before.renewed_why,
        services=view.services,
        nat_exemption=report.observed.state.nat_exemption,
        by_cidr=report.plan.by_cidr,
    )


def after_error(before: Record, error: str, now: float) -> Record:
    """Give the record after a pass that had to be given up."""
    passes = {**before.statistics.passes, FAILED: before.statistics.passes[FAILED] + 1}
    return replace(before, attempted=now, error=error, statistics=replace(before.statistics, passes=passes))


def surveyed(
    record: Record,
    peers: Mapping[str, PeerRecord],
    sums: Sums,
    counters: Mapping[str, int],
    xfrm_errors: Mapping[str, int],
) -> Record:
    """Give the record with what there is for each peer, and the counters, as they are now."""
    return replace(record, peers=peers, sums=sums, counters=counters, xfrm_errors=xfrm_errors)


def in_series(before: Record, record: Record) -> Record:
    """Give a record with what it takes the one told ``before`` to know."""
    since = before.unready_since if before.unready else record.attempted
    same = before.incarnation == record.incarnation and before.incarnation_since
    record = replace(
        record,
        incarnation_since=before.incarnation_since if same else record.attempted,
        unready_since=since,
        been_ready=before.been_ready or not record.unready,
    )
    replacing = (before.replacing_since or record.now) if _replacing(record) else None
    return replace(
        record,
        key_since=_key_since(before, record),
        settled=_settled(before.settled, record),
        replacing_since=replacing,
        last_drop=_last_drop(before, record),
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


def _key_since(before: Record, record: Record) -> float:
    """Give since when the key is in use here, at the latest: SAs of it tell what was before a restart of the daemon."""
    spi, sums = record.key.spi, record.sums
    if not spi:
        return 0.0
    known = before.key_since if before.key.spi == spi and before.key_since else record.attempted
    return min(known, float(sums.since)) if sums.newest == spi and sums.since else known


def _settled(before: int, record: Record) -> int:
    """Give the newest SPI that we announced and that all SAs of all peers were on.

    A daemon that starts in mid-replacement takes the oldest SPI in the kernel for it.
    """
    wanted, sums = record.key.spi, record.sums
    if wanted and record.key.announced == wanted and (not sums.newest or sums.newest == sums.oldest == wanted):
        return wanted
    return before or (sums.oldest if sums.oldest < wanted else 0)


def _replacing(record: Record) -> bool:
    newest = record.newest_spi
    behind = any(0 < spi < newest for spi in record.sums.sending)
    return record.key.announced < newest or record.old_inbound > 0 or behind


def _last_drop(before: Record, record: Record) -> tuple[str, float] | None:
    """Give the counter that rose most since the record before; where none did, what that knew."""
    if not before.counters:
        return None
    risen = {name: record.counters.get(name, 0) - before.counters.get(name, 0) for name in DROPPING}
    most = max(DROPPING, key=lambda name: risen[name])
    return (most, record.now) if risen[most] > 0 else before.last_drop

"""Keeps the newest record, for the health server's threads, and tells the cluster what an operator must know."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from kmesh.cluster import reporting
from kmesh.cluster.status import NodeStatus, to_lease
from kmesh.launcher import conditions
from kmesh.launcher.conditions import Condition
from kmesh.launcher.events import Allowance, admit, manifest, notes
from kmesh.launcher.outbox import Outbox
from kmesh.launcher.readiness import Bounds, Page, answer, unready
from kmesh.launcher.record import KeyRecord, Record, after_error, after_pass
from kmesh_bpf import Report, View

JITTER_SECONDS = 20.0
"""By so much reports of idle nodes differ in their time, so that a cluster does not report all at once."""


class Recorder:
    """One daemon's. The loop's thread calls :meth:`passed`, :meth:`failed`, :meth:`report`, any thread :meth:`answer`.

    ``view_age`` is a ClusterSource's; ``clock`` gives seconds since the epoch, ``jitter`` something from 0 to 1.
    ``record`` is replaced as a whole, so whoever reads it needs no lock.
    """

    def __init__(
        self,
        node: str,
        view_age: Callable[[], float],
        outbox: Outbox,
        bounds: Bounds,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self.record = Record(node, attempted=clock())
        self._view_age, self._outbox, self._jitter = view_age, outbox, jitter
        self._bounds = bounds
        self._allowances: dict[str, Allowance] = {}
        self._reported: NodeStatus | None = None
        self._conditions: dict[str, Condition] = {}
        self._written: dict[str, Condition] = {}
        self._written_at = 0.0
        self._conditions_wait = self._report_wait = math.inf
        self._take(self.record)

    @property
    def unwritten(self) -> float:
        """The seconds after which another pass would write what had to wait; infinity: nothing has."""
        return min(self._conditions_wait, self._report_wait)

    def passed(
        self,
        view: View,
        report: Report,
        key: KeyRecord,
        *,
        cluster_problems: tuple[str, ...],
        counters: Mapping[str, int],
        xfrm_errors: Mapping[str, int],
        seconds: float,
    ) -> None:
        """Take in a pass that was carried through."""
        record = after_pass(
            self.record,
            view,
            report,
            key,
            cluster_problems=cluster_problems,
            counters=counters,
            xfrm_errors=xfrm_errors,
            now=self.clock(),
            seconds=seconds,
        )
        self._take(record)

    def failed(self, error: str) -> None:
        """Take in a pass that had to be given up."""
        self._take(after_error(self.record, error, self.clock()))

    def report(self, status: NodeStatus) -> None:
        """Send the node's report if it is worth it now; one that came too soon is not forgotten, see ``unwritten``."""
        jitter = self._jitter() * JITTER_SECONDS
        self._report_wait = reporting.delay(self._reported, status, self.clock(), jitter)
        if not self._report_wait:
            self._report_wait, self._reported = math.inf, status
            self._outbox.report(to_lease(status))

    def answer(self, path: str) -> Page:
        """Give the health server's page at a path."""
        return answer(path, self.record, self.clock(), self._view_age(), self._bounds)

    def _take(self, record: Record) -> None:
        before, now = self.record, record.attempted
        reasons = unready(record, self._view_age(), self._bounds)
        since = before.unready_since if before.unready else now
        been_ready = before.been_ready or not reasons
        self.record = replace(record, unready=reasons, unready_since=since, been_ready=been_ready)
        self._allowances, told = admit(self._allowances, notes(before, self.record), now)
        for number, note in enumerate(told):
            self._outbox.tell(manifest(note, record.node, now, number))
        self._conditions = conditions.conditions(self.record, self._conditions)
        self._conditions_wait = math.inf
        if not record.key.generation:
            self._written = {}  # one that was deleted and made anew has none of them, and counts from the start
        else:
            self._conditions_wait = conditions.delay(self._written, self._conditions, self._written_at, now)
        if not self._conditions_wait:
            self._conditions_wait, self._written, self._written_at = math.inf, self._conditions, now
            self._outbox.conditions(conditions.manifest(self._conditions, record.node))

# SPDX-License-Identifier: Apache-2.0
"""Keeps the newest record, for the health server's threads, and tells the cluster what an operator must know."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping

from kmesh.cluster.status import NodeStatus, to_lease
from kmesh.telling import conditions, reporting
from kmesh.telling.conditions import Condition
from kmesh.telling.events import Allowance, admit, manifest, notes
from kmesh.telling.outbox import Outbox
from kmesh.telling.peers import Peers
from kmesh.telling.readiness import Page, answer, judged
from kmesh.telling.record import Bounds, Pass, Record, after_error, after_pass, in_series, surveyed

SOONEST = 1.0
"""Seconds between two tellings at least: they cost more than a pass of one event, and nobody reads faster."""
JITTER_SECONDS = 20.0
"""By so much reports of idle nodes differ in their time, so that a cluster does not report all at once."""

Counts = Callable[[], Mapping[str, int]]


class Recorder:
    """One daemon's. The loop's thread calls all but :meth:`answer`, which any thread may.

    A pass is taken in by :meth:`passed` or :meth:`failed`, which cost what it did. What there is to tell of it is made,
    and sent, by :meth:`tell`, whenever :meth:`due` says so and nothing else is to be done.

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
        *,
        strict: bool = True,
    ) -> None:
        self.clock = clock
        now = clock()
        self.record = Record(node, attempted=now, bounds=bounds, strict=strict, unready_since=now)
        self._view_age, self._outbox, self._jitter = view_age, outbox, jitter
        self._told = self._judged()
        self._peers = Peers()
        self._last: Pass | None = None
        self._counters: Counts = dict
        self._xfrm_errors: Counts = dict
        self._news = False
        self._allowances: dict[str, Allowance] = {}
        self._reported: NodeStatus | None = None
        self._late = jitter() * JITTER_SECONDS
        self._conditions: dict[str, Condition] = {}
        self._written: dict[str, Condition] = {}
        self._written_at = 0.0
        self._waits = math.inf

    def count(self, counters: Counts, xfrm_errors: Counts) -> None:
        """Take the packets counted, by the programs and by XFRM, from there, at each telling."""
        self._counters, self._xfrm_errors = counters, xfrm_errors

    def passed(self, done: Pass) -> None:
        """Take in a pass that was carried through."""
        self.record = after_pass(self.record, done)
        self._peers.note(done.report)
        self._last, self._news = done, True

    def failed(self, error: str) -> None:
        """Take in a pass that had to be given up."""
        self.record = after_error(self.record, error, self.clock())
        self._news = True

    def due(self) -> float:
        """Give the seconds until there is something to tell, 0: now; infinity: nothing before the next pass."""
        since = self.clock() - self._told.now
        soonest = max(0.0, SOONEST - since) if since >= 0 else 0.0
        if self._news or self._is_old(self._view_age()) != self._is_old(self._told.view_age):
            return soonest
        return max(soonest, self._waits - since)

    def tell(self) -> None:
        """Make the record of now, and send of it what is worth it; what comes too soon is due later."""
        before, self._news = self._told, False
        if self._last is not None:
            peers, sums = self._peers.take(self._last.view, self._last.report)
            self.record = surveyed(self.record, peers, sums, self._counters(), self._xfrm_errors())
        self.record = self._told = in_series(before, self._judged())
        self._tell_events(before)
        self._waits = min(self._tell_conditions(), self._report())

    def answer(self, path: str) -> Page:
        """Give the health server's page at a path."""
        return answer(path, self._judged())

    def _judged(self) -> Record:
        return judged(self.record, self.clock(), self._view_age())

    def _is_old(self, view_age: float) -> bool:
        return view_age > self.record.bounds.view_age

    def _tell_events(self, before: Record) -> None:
        now = self._told.now
        self._allowances, told = admit(self._allowances, notes(before, self._told), now)
        for number, note in enumerate(told):
            self._outbox.tell(manifest(note, self._told.node, now, number))

    def _tell_conditions(self) -> float:
        """Send the conditions if it is worth it; give the seconds until it is."""
        told = self._told
        self._conditions = conditions.conditions(told, self._conditions)
        if not told.key.generation:
            self._written = {}  # one that was deleted and made anew has none of them, and counts from the start
            return math.inf
        wait = conditions.delay(self._written, self._conditions, self._written_at, told.now)
        if wait:
            return wait
        self._written, self._written_at = self._conditions, told.now
        self._outbox.conditions(conditions.manifest(self._conditions, told.node))
        return math.inf

    def _report(self) -> float:
        """Send the node's report if it is worth it; give the seconds until it is."""
        status = reporting.make_status(self._told)
        wait = reporting.delay(self._reported, status, status.reported_at, self._late)
        if wait:
            return wait
        self._reported, self._late = status, self._jitter() * JITTER_SECONDS
        self._outbox.report(to_lease(status))
        return math.inf

# SPDX-License-Identifier: Apache-2.0
"""Many histories, on several processors, and what they come to."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.simulator import coverage
from tests.simulator.history import live, make
from tests.simulator.speed import hasten

BATCH = 5
"""Histories handed to a process at one time."""
MEASURED = 40
"""Histories of a run whose branches are counted."""


@dataclass
class Tally:
    """Sums over histories. ``failed``: seeds that violated a check, and its words."""

    histories: int = 0
    packets: int = 0
    arrivals: int = 0
    passes: int = 0
    events: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    reached: coverage.Reached = field(default_factory=coverage.Reached)

    def add(self, other: Tally) -> None:
        """Add another one's sums."""
        self.histories += other.histories
        self.packets += other.packets
        self.arrivals += other.arrivals
        self.passes += other.passes
        self.events += other.events
        self.reasons += other.reasons
        self.failed |= other.failed
        self.reached = coverage.union((self.reached, other.reached))


def batch(seeds: tuple[int, ...], measure: bool = False) -> Tally:
    """Live some histories."""
    tally = Tally()
    for seed in seeds:
        if measure:
            with coverage.Measuring() as measuring:
                outcome = live(make(seed))
            tally.reached = coverage.union((tally.reached, measuring.reached))
        else:
            outcome = live(make(seed))
        tally.histories += 1
        tally.packets += outcome.packets
        tally.arrivals += outcome.arrivals
        tally.passes += outcome.passes
        tally.events += outcome.events
        tally.reasons += outcome.reasons
        if outcome.violation is not None:
            tally.failed[seed] = str(outcome.violation)
    return tally


def prepare() -> None:
    """Make this process ready to live histories: fast, and without the logs of thousands of daemons."""
    hasten()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    logging.getLogger("kmesh").setLevel(logging.CRITICAL + 1)


def run(
    first: int,
    histories: int,
    jobs: int,
    *,
    branches: bool,
    seconds: float | None = None,
    tell: Callable[[Tally, float], None] = lambda _tally, _seconds: None,
) -> tuple[Tally, float]:
    """Live ``histories`` of them from a seed on, for ``seconds`` at most; give the sums, and the seconds that it took.

    ``branches``: count those of the first MEASURED. ``tell`` is called as results come.
    """
    started = time.monotonic()
    total = Tally()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=prepare) as pool:
        work = _batches(first, histories, branches)
        waiting = [pool.submit(batch, *one) for _, one in zip(range(jobs * 2), work, strict=False)]
        while waiting:
            done = waiting.pop(0)
            total.add(done.result())
            over = time.monotonic() - started
            tell(total, over)
            following = next(work, None) if seconds is None or over < seconds else None
            if following is not None:
                waiting.append(pool.submit(batch, *following))
    return total, time.monotonic() - started


def _batches(first: int, histories: int, branches: bool) -> Iterator[tuple[tuple[int, ...], bool]]:
    measured = min(MEASURED, histories) if branches else 0
    for at in range(0, histories, BATCH):
        yield tuple(range(first + at, first + min(at + BATCH, histories))), at < measured

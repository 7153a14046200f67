# SPDX-License-Identifier: Apache-2.0
"""What is measured, and how it is told."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

BEST_OF = 5


@dataclass(frozen=True)
class Result:
    """``unit`` is of ``cost`` and of ``baseline_cost``; ``ratio`` is what to quote. ``goal``: the most it should be."""

    what: str
    cost: float
    baseline: str
    baseline_cost: float
    unit: str
    goal: float | None = None

    @property
    def ratio(self) -> float:
        return self.cost / self.baseline_cost

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.ratio > self.goal

    def line(self) -> str:
        """Tell it in a line for eyes."""
        goal = "" if self.goal is None else f"  goal {self.goal:g}{', missed' if self.missed else ''}"
        return (
            f"{self.what:<76} {self.cost:10,.1f} {self.unit:<5} {self.ratio:7.2f} x {self.baseline}"
            f" ({self.baseline_cost:,.1f} {self.unit}){goal}"
        )

    def row(self) -> str:
        """Tell it as a row of a table in Markdown."""
        goal = "" if self.goal is None else f"{'**missed:** ' if self.missed else ''}{self.goal:g}"
        cells = (
            self.what,
            f"{self.cost:,.1f} {self.unit}",
            f"{self.ratio:.2f}",
            f"{self.baseline} ({self.baseline_cost:,.1f} {self.unit})",
            goal,
        )
        return f"| {' | '.join(cells)} |"

    def fields(self) -> dict[str, object]:
        """Tell it for scripts."""
        return asdict(self) | {"ratio": self.ratio, "missed": self.missed}


HEAD = "| what | cost | ratio | baseline | goal |\n| --- | --- | --- | --- | --- |"


def spent() -> float:
    """Give the milliseconds of processor time so far: this process's and its children's, the kernel's for them too.

    Netlink and bpf(2) do their work while they are called, so nothing is missing; and other load does not count.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (time.process_time() + children.ru_utime + children.ru_stime) * 1e3


def best(action: Callable[[], object], times: int) -> float:
    """Give the microseconds that one of so many repetitions takes, the best of a few rounds."""
    found = []
    for _ in range(BEST_OF):
        start = time.process_time()
        for _ in range(times):
            action()
        found.append((time.process_time() - start) / times * 1e6)
    return min(found)


def p99(values: Sequence[float]) -> float:
    """Give the largest of the values that is not among the largest hundredth: of a hundred all but one."""
    return sorted(values)[-1 - math.ceil(len(values) / 100)]

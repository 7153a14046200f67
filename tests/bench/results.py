"""What is measured, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """``unit`` is of ``cost`` and of ``baseline_cost``; ``ratio`` is what to quote."""

    what: str
    cost: float
    baseline: str
    baseline_cost: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.cost / self.baseline_cost

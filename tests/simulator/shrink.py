# SPDX-License-Identifier: Apache-2.0
"""A history that fails -> one with as few events as do it, for people to read. Delta debugging (Zeller, TSE 2002)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulator.history import History, Outcome, Step, live

TRIES = 120


def shrink(failed: Outcome, tell: Callable[[str], None] = lambda _: None, *, tries: int = TRIES) -> Outcome:
    """Give the outcome of the shortest history found that violates the same check.

    An event's draws hang on its number, not on what was before it, so those that stay mean what they meant.
    """
    best = failed
    check = failed.violation.check if failed.violation else -1

    def still(steps: tuple[Step, ...]) -> Outcome | None:
        nonlocal tries
        if tries <= 0:
            return None
        tries -= 1
        outcome = live(replace(failed.history, steps=steps))
        return outcome if outcome.violation is not None and outcome.violation.check == check else None

    size = max(1, len(failed.history.steps) // 2)
    while size and tries > 0:
        at = 0
        while at < len(best.history.steps):
            steps = best.history.steps
            outcome = still(steps[:at] + steps[at + size :])
            if outcome is None:
                at += size
            else:
                best = outcome
                tell(f"{len(best.history.steps)} events are enough")
        size //= 2
    return best


def command(history: History) -> str:
    """Give the command that lives a history again."""
    kept = ",".join(str(step.number) for step in history.steps)
    return f"scripts/simulate --seed {history.seed} --only {kept or 'none'} --show"

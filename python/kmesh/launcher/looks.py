# SPDX-License-Identifier: Apache-2.0
"""What the daemon does while nothing happens: it looks whether all is as it was, in steps that nothing waits for long.

A look finds, cheaply and twice a second, what no notification tells of. An audit reads everything once more, slowly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from kmesh_bpf import KmeshBpfError, Reconciler

log = logging.getLogger("kmesh")

LOOK = 0.5
"""Seconds between two looks."""
DEAREST = 50
"""How many times as long as one took is between two looks, at least: they never cost more than 2 % of a processor."""
AUDIT = 25.0
"""Seconds between two audits."""
SLOWLY = 200
"""How many times as long as a step of an audit took is until the next one: they never cost more than half a percent."""
OVERDUE = 1.0
"""Seconds after which a look does not wait for events to stop coming."""


class Round:
    """Something that is done again and again, in steps.

    ``every``: seconds between two rounds, or ``share`` times as long as one took; ``pause``: how many times as long as
    a step took is between two steps. ``clock`` gives seconds that only grow.
    """

    def __init__(
        self, begin: Callable[[], Iterator[bool]], clock: Callable[[], float], every: float, share: float, pause: float
    ) -> None:
        self._begin, self._clock = begin, clock
        self._every, self._share, self._pause = every, share, pause
        self._steps: Iterator[bool] | None = None
        self._spent = 0.0
        self.due = clock() + every

    def step(self) -> bool:
        """Do a step, and say when the next one is due; tell whether it found anything.

        Raises:
            KmeshBpfError: it could not be found out; the round is over.

        """
        if self._steps is None:
            self._steps, self._spent = self._begin(), 0.0
        began = self._clock()
        over = True
        try:
            found = next(self._steps, None)
            over = found is None
            return bool(found)
        finally:
            now = self._clock()
            self._spent += now - began
            if over:
                self._steps = None
                self.due = now + max(self._every, self._share * self._spent)
            else:
                self.due = now + self._pause * (now - began)


class Looks:
    """Looks and audits over what a daemon's passes know."""

    def __init__(self, passes: Reconciler, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._look = Round(passes.look, clock, LOOK, DEAREST, 0)
        self._audit = Round(passes.audit, clock, AUDIT, 0, SLOWLY)

    def left(self) -> float:
        """Give the seconds until a step is due, 0 when one is."""
        return max(0.0, min(self._look.due, self._audit.due) - self._clock())

    def step(self) -> bool:
        """Do a step, if one is due; tell whether a pass should look closer.

        One that cannot be finished is for a pass to tell of.
        """
        now = self._clock()
        round_ = self._look if self._look.due <= now else self._audit
        if round_.due > now:
            return False
        try:
            return round_.step()
        except KmeshBpfError as error:
            log.debug("%s; a pass will tell", error)
            return True

    def catch_up(self) -> None:
        """Do a step of a look that is overdue, for events have come all the time."""
        if self._clock() - self._look.due >= OVERDUE:
            self.step()

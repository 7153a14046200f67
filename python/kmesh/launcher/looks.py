# SPDX-License-Identifier: Apache-2.0
"""What the daemon does while nothing happens: it looks whether all is as it was, in steps that nothing waits for long.

A look finds, cheaply, what no notification tells of: begun often enough that what others have done is found, and
mended, within a second. An audit reads the rest once more, slowly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from kmesh_bpf import KmeshBpfError, Reconciler

log = logging.getLogger("kmesh")

LOOK = 0.5
"""Seconds from the beginning of a look to that of the next, at least."""
CHEAP, LATEST = 120, 0.85
"""How many times as long as one took of a processor's time it is, so that looks cost less than a percent; and up to how
many seconds that holds: the rest of one is left to finish the look, and to mend."""
DEAREST = 15
"""How many times as long it is beyond that: never more than 7 %, in clusters larger than we promise anything for, and
where others crowd the processor so that a look takes several times what it should."""
AUDIT = 25.0
"""Seconds between two audits."""
SLOWLY = 600
"""How many times as long as a step of an audit took is until the next one: they never cost more than a sixth of a
percent. What they find late is what notifications that were lost would have told, and how SAs are used."""
WAITING = 0.004
"""Seconds until it is asked again whether a thread has come to an end."""
OVERDUE = 0.05
"""Seconds after which a look does not wait for events to stop coming."""
AT_ONCE = 0.005
"""Seconds that a look may take of an event's time then."""


class Round:
    """Something that is done again and again, in steps; a step of None had to wait for a thread.

    ``every`` gives the seconds from the beginning of a round, or where it ``rests`` from its end, to the next, by what
    it took of a processor's time, and whether it found anything; ``pause``: how many times as long as a step took is
    between two steps. ``clock`` gives seconds that only grow, ``spent`` those of processors.
    """

    def __init__(
        self,
        begin: Callable[[], Iterator[bool | None]],
        clock: Callable[[], float],
        spent: Callable[[], float],
        every: Callable[[float, bool], float],
        pause: float,
        *,
        rests: bool,
    ) -> None:
        self._begin, self._clock, self._spent = begin, clock, spent
        self._every, self._pause, self._rests = every, pause, rests
        self._steps: Iterator[bool | None] | None = None
        self._began = self._spent_before = 0.0
        self._found = False
        self.due = clock() + every(0.0, False)

    @property
    def is_under_way(self) -> bool:
        """Whether one has begun and not ended."""
        return self._steps is not None

    def step(self) -> bool:
        """Do a step, and say when the next one is due; tell whether it found anything.

        Raises:
            KmeshBpfError: it could not be found out; the round is over.

        """
        began = self._clock()
        if self._steps is None:
            self._steps, self._began, self._spent_before = self._begin(), began, self._spent()
            self._found = False
        found: bool | None = None
        over = True
        try:
            found = next(self._steps)
            over = False
            self._found = self._found or bool(found)
            return bool(found)
        except StopIteration:
            return False
        finally:
            now = self._clock()
            if over:
                self._steps = None
                took = self._spent() - self._spent_before
                self.due = max(now, (now if self._rests else self._began) + self._every(took, self._found))
            else:
                self.due = now + (WAITING if found is None else self._pause * (now - began))


def between_looks(took: float, found: bool) -> float:
    """Give the seconds from a look that took so many of a processor's time to the next one.

    One that ``found`` anything has named the entries too, which is dear, and rare: the next one is not late for it.
    """
    return max(LOOK, min(CHEAP * took, LATEST), 0.0 if found else DEAREST * took)


class Looks:
    """Looks and audits over what a daemon's passes know; ``clock`` and ``spent`` as of :class:`Round`."""

    def __init__(
        self, passes: Reconciler, clock: Callable[[], float], spent: Callable[[], float] = time.process_time
    ) -> None:
        self._clock = clock
        self._look = Round(passes.look, clock, spent, between_looks, 0, rests=False)
        self._audit = Round(passes.audit, clock, spent, lambda *_: AUDIT, SLOWLY, rests=True)

    def left(self) -> float:
        """Give the seconds until a step is due, 0 when one is."""
        return max(0.0, min(self._look.due, self._audit.due) - self._clock())

    def step(self) -> bool:
        """Do a step, if one is due; tell whether a pass should look closer.

        One that cannot be finished is for a pass to tell of.
        """
        now = self._clock()
        round_ = self._look if self._look.due <= now else self._audit
        return round_.due <= now and self._step(round_)

    def catch_up(self) -> None:
        """Go on with a look that is overdue, for events have come all the time; for a few milliseconds at most."""
        began = self._clock()
        if began - self._look.due < OVERDUE and not self._look.is_under_way:
            return
        while self._look.due <= self._clock() < began + AT_ONCE:
            self._step(self._look)

    def _step(self, round_: Round) -> bool:
        try:
            return round_.step()
        except KmeshBpfError as error:
            log.debug("%s; a pass will tell", error)
            return True

"""The cheap look, twice a second, whether anything of ours has been changed that no notification tells of."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kmesh_bpf import Kernel, KmeshBpfError

log = logging.getLogger("kmesh")

LOOK = 0.5
"""Seconds between two looks."""
DEAREST = 50
"""How many times as long as one took is between two looks, at least: they never cost more than 2 % of a processor."""


class Looks:
    """Looks during one sleep. ``clock`` gives seconds that only grow."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._clock = clock
        self._due = clock() + LOOK

    def left(self) -> float:
        """Give the seconds until the next look is due, 0 when it is."""
        return max(0.0, self._due - self._clock())

    def finds_anything(self) -> bool:
        """Look; tell whether a pass should look closer. One that cannot be finished is for a pass to tell of."""
        began = self._clock()
        try:
            found = self._kernel.look()
        except KmeshBpfError as error:
            log.debug("%s; a pass will tell", error)
            found = True
        ended = self._clock()
        self._due = ended + max(LOOK, DEAREST * (ended - began))
        return found

# SPDX-License-Identifier: Apache-2.0
"""A server that was away and answers one request is back for all: none waits out a back-off without a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable

QUIET_SECONDS = 5.0
"""Between two wakings at least: a server that answers some requests and fails others must not keep all awake."""


class Comeback:
    """Of one server; its methods may be called from several threads. ``clock`` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._away = False
        self._times = 0
        self._woken_at = float("-inf")

    def away(self) -> None:
        """Note that a request was not answered, or not as it would be on a good day."""
        with self._condition:
            self._away = True

    def answered(self) -> None:
        """Note that a request was answered well: after a time away, wake those who wait."""
        with self._condition:
            if self._away and self._clock() - self._woken_at >= QUIET_SECONDS:
                self._away, self._woken_at = False, self._clock()
                self._times += 1
                self._condition.notify_all()

    def nudge(self) -> None:
        """Let those who wait look whether they should stop."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, seconds: float, stopping: threading.Event, *, early: bool) -> None:
        """Wait so long, or until ``stopping``; ``early``: or until the server is back."""
        with self._condition:
            times = self._times
            self._condition.wait_for(lambda: stopping.is_set() or (early and self._times != times), seconds)

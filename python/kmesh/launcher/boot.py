"""What the daemon does for its node's next boot, and with what was done for this one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from kmesh_bpf import Address, KmeshBpfError, Report, boot_guard, remote_pods

log = logging.getLogger("kmesh")

REWRITE = 10.0
"""Seconds between two writes of the file, at least: pods come and go all the time."""


class BootGuard:
    """Keeps the file of a state folder up to date; permissive nodes have none. ``clock``: seconds that only grow."""

    def __init__(self, folder: Path, *, strict: bool, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._strict = strict
        self._clock = clock
        self._wanted: frozenset[Address] | None = None
        self._kept: frozenset[Address] | None = None
        self._written_at = -REWRITE
        self._lifted = False

    def passed(self, report: Report) -> None:
        """Take in a pass: keep what it knew, and lift the guard of this boot once all is in place."""
        self._wanted = remote_pods(report.plan.state) if self._strict else frozenset()
        if report.converged and not self._lifted:
            try:
                boot_guard.remove()
                self._lifted = True
            except KmeshBpfError as error:
                log.warning("%s", error)
        self.catch_up()

    def catch_up(self) -> None:
        """Write what is not written yet, unless the last time was a moment ago."""
        now = self._clock()
        if self._wanted == self._kept or self._wanted is None or now - self._written_at < REWRITE:
            return
        self._written_at = now
        try:
            if self._wanted:
                boot_guard.keep(self._folder, self._wanted)
            else:
                boot_guard.forget(self._folder)
            self._kept = self._wanted
        except KmeshBpfError as error:
            log.warning("%s", error)

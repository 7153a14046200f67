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
        self._kept: frozenset[Address] | None = None
        self._written_at = -REWRITE
        self._lifted = False

    def passed(self, report: Report) -> None:
        """Take in a pass: keep what it knew, and lift the guard of this boot once all is in place."""
        try:
            if report.converged and not self._lifted:
                boot_guard.remove()
                self._lifted = True
            self._keep(report)
        except KmeshBpfError as error:
            log.warning("%s", error)

    def _keep(self, report: Report) -> None:
        now = self._clock()
        if now - self._written_at < REWRITE:
            return
        self._written_at = now
        remote = remote_pods(report.plan.state) if self._strict else frozenset()
        if remote == self._kept:
            return
        if remote:
            boot_guard.keep(self._folder, remote)
        else:
            boot_guard.forget(self._folder)
        self._kept = remote

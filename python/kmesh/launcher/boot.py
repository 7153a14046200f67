# SPDX-License-Identifier: Apache-2.0
"""What the daemon does for its node's next boot, and with what was done for this one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from kmesh_bpf import Address, DeletePod, KmeshBpfError, Plan, Report, SetPod, boot_guard, remote_pods

log = logging.getLogger("kmesh")

REWRITE = 10.0
"""Seconds between two writes of the file, at least: pods come and go all the time."""


class BootGuard:
    """Keeps the file of a state folder up to date; permissive nodes have none. ``clock``: seconds that only grow."""

    def __init__(self, folder: Path, *, strict: bool, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._strict = strict
        self._clock = clock
        self._plan: Plan | None = None
        self._changed = True
        self._kept: frozenset[Address] | None = None
        self._written_at = -REWRITE
        self._lifted = False

    def passed(self, report: Report) -> None:
        """Take in a pass: :meth:`catch_up` keeps what it knew; lift the guard of this boot once all is in place."""
        self._plan = report.plan
        # To go through all pods takes longer than a pass of one event does.
        self._changed = self._changed or any(
            isinstance(one, SetPod | DeletePod) for one in (*report.applied, *report.drift)
        )
        if report.converged and not self._lifted:
            try:
                boot_guard.remove()
                self._lifted = True
            except KmeshBpfError as error:
                log.warning("%s", error)

    def catch_up(self) -> None:
        """Write what is not written yet, unless the last time was a moment ago."""
        now = self._clock()
        if self._plan is None or not self._changed or now - self._written_at < REWRITE:
            return
        wanted = remote_pods(self._plan.state) if self._strict else frozenset()
        if wanted == self._kept:
            self._changed = False
            return
        self._written_at = now
        try:
            if wanted:
                boot_guard.keep(self._folder, wanted)
            else:
                boot_guard.forget(self._folder)
            self._kept, self._changed = wanted, False
        except KmeshBpfError as error:
            log.warning("%s", error)

# SPDX-License-Identifier: Apache-2.0
"""What the log says of passes, to whoever looks at one node: kmesh.telling.lines decides on the words."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from kmesh.telling.lines import counted, milliseconds, news
from kmesh_bpf import Kernel, Operation, Report, managed_pods

log = logging.getLogger("kmesh")


class PassLog:
    """One daemon's; it remembers what it said of what lasts. ``kernel`` renders operations."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._standing: dict[str, tuple[str, ...]] = {}
        self._ready = False

    def ahead(self, done: tuple[Operation, ...]) -> None:
        """Tell what was done ahead of a pass."""
        if done:
            log.info("ahead of a pass: %s", counted(done))
            self._operations(done)

    def passed(self, report: Report, took: float) -> None:
        """Tell of a pass of so many seconds: in a line what it has changed; to who debugs, how, and in which phase."""
        if report.decision.new:
            level = logging.WARNING if report.renewed else logging.INFO
            log.log(level, "%s: new incarnation %s, and new keys", report.decision.why, report.incarnation)
        if report.applied:
            log.info("%s (%s)", counted(report.applied), milliseconds(took))
            self._operations(report.applied)
        phases = ", ".join(f"{phase} {milliseconds(seconds)}" for phase, seconds in report.spent.items())
        log.debug("a pass of %s: %s", milliseconds(took), phases)
        self.problems("kernel", tuple(str(failure.error) for failure in report.failures), logging.ERROR)
        self.problems("plan", tuple(map(str, report.plan.problems)))
        if report.converged and not self._ready:
            self._ready = True
            managed = managed_pods(report.plan.state)
            log.info("ready: %d peers, %d managed addresses", len(report.plan.ready_peers), len(managed))

    def problems(self, where: str, problems: tuple[str, ...], level: int = logging.WARNING) -> None:
        """Tell of what is wrong somewhere, each when it comes."""
        for sentence in news(self._standing.get(where, ()), problems):
            log.log(level, "%s", sentence)
        self._standing[where] = problems

    def _operations(self, applied: Iterable[Operation]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            for operation in applied:
                log.debug("%s", self._kernel.render(operation))

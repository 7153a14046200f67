"""What a row has at hand while it is acted: the lab, and a clock that notes when the last thing was done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.lab.cluster import Daemon, wait_for
from tests.lab.lab import Lab
from tests.lab.network import run

SECONDS = 45.0
"""How long something is waited for at most, under emulation; the goals are measured, not these."""


@dataclass
class Moment:
    """One row's. ``undo``: what is done, in reverse, when the row's span is over."""

    lab: Lab
    random: random.Random
    cause: float = 0.0
    restored: float | None = None
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)

    def happened(self) -> None:
        """Note that something was done just now: what is measured as healing counts from the last one."""
        self.cause, self.restored = time.monotonic(), None

    def until(self, what: str, true: Callable[[], bool], seconds: float = SECONDS) -> float:
        """Wait for what a node has to put right; it counts as healing."""
        took = wait_for(what, true, seconds)
        self.restored = time.monotonic()
        return took

    def meanwhile(self, what: str, true: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Wait for what belongs to the event itself."""
        wait_for(what, true, seconds)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def daemon(self, node: str) -> Daemon:
        return self.lab.daemons[node]

    def restart(self, node: str, *flags: str) -> None:
        """Start a node's daemon, and wait until it is ready: under emulation that takes half a minute."""
        self.daemon(node).start(*flags)
        self.daemon(node).wait_ready()


def within(node: str, command: str, stdin: str | None = None) -> str:
    """Run a command in a node's network namespace; bpffs stays visible."""
    return run(
        f"nsenter --net=/run/netns/{node} bash -ec {command!r}"
        if stdin is None
        else f"nsenter --net=/run/netns/{node} {command}",
        stdin,
    )

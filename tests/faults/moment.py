# SPDX-License-Identifier: Apache-2.0
"""What a row has at hand while it is acted: the lab, and a clock that notes when the last thing was done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.faults.asking import Asking
from tests.faults.flows import Numbered
from tests.lab.cluster import Daemon, wait_for
from tests.lab.lab import Lab
from tests.lab.network import Pod, run

SECONDS = 45.0
"""How long something is waited for at most, under emulation; the goals are measured, not these."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """From when on a row is measured, and the counters of XFRM, of our programs and of the stack at that time."""

    start: float
    errors: Mapping[str, int]
    drops: Mapping[str, int]
    stack: Mapping[str, int]


@dataclass
class Moment:
    """One row's. ``undo``: what is done, in reverse, when the row's span is over; ``flows``: the row's own traffic."""

    lab: Lab
    random: random.Random
    measure: Callable[[], Beginning]
    beginning: Beginning
    cause: float = 0.0
    restored: float | None = None
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)
    flows: list[Numbered] = field(default_factory=list)

    def prepared(self) -> None:
        """Begin to measure now: what was done up to here is another row's event."""
        self.beginning = self.measure()
        self.cause, self.restored = 0.0, None

    @contextmanager
    def asking(self, *whom: tuple[Pod, str, str, int]) -> Iterator[None]:
        """Have each of these pods ask an address for the length of the block: pod, node of who answers, address, port."""
        with ExitStack() as all_of_them:
            for source, node, address, port in whom:
                self.flows.append(all_of_them.enter_context(Asking(source, node, address, port)).flow)
            yield

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

# SPDX-License-Identifier: Apache-2.0
"""What a row of the matrix is, what it may cost, and whether what was measured is that. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from tests.faults.flows import Span, span

if TYPE_CHECKING:
    from tests.faults.moment import Moment

HEALED = 2.0
"""Seconds from the last cause until nothing is lost any more: the goal, on a machine that is not emulated."""
GROUPS = {
    0: "Controls",
    1: "The key is replaced",
    2: "The daemon comes and goes",
    3: "Somebody's hands in the kernel",
    4: "Peers",
    5: "Bad objects",
    6: "Other software",
    7: "The network",
}
ALL = ("n1", "n2", "n3")
SECONDS, LONG = 100, 600
"""Seconds that a row may take under emulation, and from which on it is long."""


class Shows(Enum):
    """What a row is for: that the goals are kept, or that what measures them would notice."""

    GOALS = "goals"
    LEAK = "the leak check fires"
    LOSS = "the loss count fires"


@dataclass(frozen=True, slots=True)
class Excuse:
    """Why packets between these nodes and others may be lost: a rule of the kernel or of the network, not our order of steps.

    ``clear``: why some may be in clear, empty if none may.
    """

    why: str
    nodes: tuple[str, ...] = ALL
    breaks: bool = False
    clear: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An event: ``what`` is done to three nodes under traffic, by ``act``.

    ``quick``: among those that e2e runs; ``since``: the kernel's series from which on there is what it is done with, ``until``: that
    from which on there is what it is about the lack of;
    ``seconds``: how long it may take under emulation; one that takes minutes is run only by its name.
    ``needs``: Debian's packages with other people's programs (:mod:`tests.faults.packages`).
    """

    name: str
    group: int
    what: str
    act: Callable[[Moment], None]
    excuse: Excuse | None = None
    quick: bool = False
    since: tuple[int, ...] = ()
    until: tuple[int, ...] | None = None
    needs: tuple[str, ...] = ()
    seconds: int = SECONDS
    shows: Shows = Shows.GOALS

    @property
    def long(self) -> bool:
        return self.seconds >= LONG

    def is_of(self, kernel: tuple[int, ...]) -> bool:
        """Tell whether it can be run on a kernel of this series."""
        return self.since <= kernel and (self.until is None or kernel < self.until)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured. ``slowness``: how many times longer a loop of Python's takes than on the host of the emulation."""

    commit: str
    kernel: str
    when: str
    emulated: bool
    slowness: float

    def __str__(self) -> str:
        emulated = f", emulated, {self.slowness:.1f} times slower than its host" if self.emulated else ""
        return f"Linux {self.kernel}{emulated}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row cost.

    ``cause``: when the last thing was done, ``restored``: when what was waited for was there, seconds of the span's
    clock; None: nothing was waited for. ``errors``: counters of XFRM, by node and name, before and after, ``drops`` those
    of our programs, ``stack`` those of the kernel's network stack; None: they were not read yet when this was measured.
    ``said``: what nodes, logs and `kmeshctl status` said meanwhile. ``failed``: why the row did not come to its end.
    """

    row: str
    machine: Machine
    span: Span
    cause: float
    restored: float | None = None
    errors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    drops: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failed: str = ""
    stack: Mapping[str, tuple[int, int]] | None = None

    @property
    def series(self) -> str:
        """The kernel's series, 6.12 say: outcomes of one row on several kernels stand beside each other."""
        return ".".join(self.machine.kernel.split(".")[:2])

    @property
    def healing_limit(self) -> float:
        """Seconds that healing may take on this machine."""
        return HEALED * self.machine.slowness

    @property
    def healed(self) -> float:
        """Seconds from the last cause until the last packet that was lost had been sent, or until what was waited for was there."""
        ends = [self.cause]
        if self.span.last_lost is not None:
            ends.append(self.span.last_lost)
        if self.restored is not None:
            ends.append(self.restored)
        return max(ends) - self.cause

    def plain(self) -> dict[str, Any]:
        """Give it as JSON can hold it."""
        return {**asdict(self), "span": self.span.plain()}


def outcome(plain: Mapping[str, Any]) -> Outcome:
    """Give what :meth:`Outcome.plain` was made of."""
    pairs = {
        name: {key: tuple(value) for key, value in plain[name].items()}
        for name in ("errors", "drops", "stack")
        if plain.get(name) is not None
    }
    lists = {name: tuple(plain[name]) for name in ("said", "notes")}
    return Outcome(**{**plain, **pairs, **lists, "machine": Machine(**plain["machine"]), "span": span(plain["span"])})


@dataclass(frozen=True, slots=True)
class Soak:
    """Rows at random for so many minutes, summed up. ``rows``: how often each was run; ``missed``: what missed its goals, and how.

    ``unexcused`` counts lost packets that no row's excuse covers; ``healed`` is the longest time in seconds.
    """

    seed: int
    minutes: float
    machine: Machine
    rows: Mapping[str, int]
    missed: tuple[str, ...]
    sent: int
    lost: int
    unexcused: int
    twice: int
    clear: int
    healed: float

    def plain(self) -> dict[str, Any]:
        """Give it as JSON can hold it."""
        return asdict(self)


def soak(plain: Mapping[str, Any]) -> Soak:
    """Give what :meth:`Soak.plain` was made of."""
    return Soak(**{**plain, "machine": Machine(**plain["machine"]), "missed": tuple(plain["missed"])})


def soaked(seed: int, minutes: float, outcomes: Sequence[tuple[Row, Outcome]]) -> Soak:
    """Sum up; there is at least one."""
    return Soak(
        seed,
        minutes,
        outcomes[0][1].machine,
        dict(Counter(row.name for row, _ in outcomes)),
        tuple(f"{row.name}: {'; '.join(missed)}" for row, was in outcomes if (missed := misses(row, was))),
        sum(was.span.sent for _, was in outcomes),
        sum(was.span.lost for _, was in outcomes),
        sum(was.span.lost_outside(row.excuse.nodes if row.excuse else ()) for row, was in outcomes),
        sum(was.span.twice for _, was in outcomes),
        sum(was.span.clear for _, was in outcomes),
        round(max(was.healed for _, was in outcomes), 1),
    )


def misses(row: Row, was: Outcome) -> tuple[str, ...]:
    """Give which goals a row missed, a sentence each; nothing: it is as it should be."""
    if was.failed:
        return (was.failed,)
    if row.shows is Shows.LEAK:
        return () if was.span.clear else ("nothing was seen in clear though nothing was encrypted",)
    if row.shows is Shows.LOSS:
        return () if was.span.lost else ("no loss was counted though the wire drops",)
    found, excuse = [], row.excuse
    unexcused = was.span.lost if excuse is None else was.span.lost_outside(excuse.nodes)
    if unexcused:
        found.append(f"{unexcused} packets lost" + (" between nodes that nothing was done to" if excuse else ""))
    if was.span.twice:
        found.append(f"{was.span.twice} packets accepted twice")
    if was.span.clear and not (excuse and excuse.clear):
        found.append(f"{was.span.clear} packets in clear: {'; '.join(was.span.what)}")
    broken = sum(
        one.broken for one in was.span.streams if not (excuse and excuse.breaks and {*excuse.nodes} & {*one.nodes})
    )
    if broken:
        found.append(f"TCP connections broke {broken} times")
    if was.healed > was.healing_limit:
        found.append(f"healed after {was.healed:.1f} s, more than {was.healing_limit:.1f}")
    return tuple(found)

# SPDX-License-Identifier: Apache-2.0
"""Whom a command answers: a terminal, with its size and colours, or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from kmesh.kmeshctl.output import COLUMNS, wants_colour

# xterm's private modes 1049 (the alternate screen), 25 (the cursor) and 7 (lines that are too long go on below), and
# ECMA-48's CUP, EL and ED.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def _size() -> tuple[int, int]:
    import shutil  # noqa: PLC0415 # brings all compressions; a file has no size

    return shutil.get_terminal_size()


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads standard output. ``size`` gives columns and lines of a terminal as they are now."""

    terminal: bool = False
    colour: bool = False
    size: Callable[[], tuple[int, int]] = _size

    @property
    def columns(self) -> int:
        """How wide a table may be: no wider than the terminal, and than anybody expects."""
        return min(COLUMNS, self.size()[0]) if self.terminal else COLUMNS

    @property
    def line(self) -> int:
        """How long a line of text may be; 0: as long as it is, for whoever takes it line by line."""
        return self.size()[0] if self.terminal else 0


def reader(stdout: TextIO, colour: str, environment: Mapping[str, str]) -> Reader:
    """Give who reads ``stdout``; ``colour`` is the choice of auto, always, never."""
    terminal = stdout.isatty()
    return Reader(terminal, wants_colour(colour, environment, terminal=terminal))


@contextmanager
def screen(stdout: TextIO) -> Iterator[Callable[[Sequence[str]], None]]:
    """Take the terminal's other screen while this lasts; gives what draws lines on it from its top."""

    def draw(lines: Sequence[str]) -> None:
        # Overwritten, not cleared first: nothing flickers.
        stdout.write(HOME + "\r\n".join(f"{line}{REST_OF_LINE}" for line in lines) + REST_OF_SCREEN)
        stdout.flush()

    stdout.write(ENTER)
    try:
        yield draw
    finally:
        stdout.write(LEAVE)
        stdout.flush()


def fitted(parts: Sequence[Sequence[str]], lines: int) -> list[str]:
    """Give the parts one below the other with an empty line between two, in so many lines at most.

    The first part is kept; the others share what is left, each with at least a quarter of it, and say how much of them
    there is no room for.
    """
    parts = [part for part in parts if part]
    first, others = list(parts[0]), parts[1:]
    room = max(1, lines - len(first) - len(others))
    wanted = [len(part) for part in others]
    shares = list(wanted)
    while sum(shares) > room:
        largest = max(range(len(shares)), key=lambda index: shares[index])
        if shares[largest] <= max(2, room // 4):
            break
        shares[largest] -= 1
    found = first
    for part, share in zip(others, shares, strict=True):
        found.append("")
        shown = len(part) if share >= len(part) else share - 1
        found.extend(part[:shown])
        if shown < len(part):
            found.append(f"… {len(part) - shown} more lines")
    return found[:lines]

# SPDX-License-Identifier: Apache-2.0
"""How answers look: tables for people, JSON and YAML for programs. Pure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STRUCTURED = ("json", "yaml")
"""Values of ``-o`` for programs."""
FORMS = ("table", "wide", *STRUCTURED)
"""Values of ``-o``, of every command that answers."""
HIDDEN = "(hidden)"
"""What stands in the place of a key."""
COLUMNS = 80
"""What a table has at most, unless it was asked for as ``wide``."""
SHORTEST_NAME = 8
"""To so many characters names are cut before a column is left out."""
NAMES = 5
"""Named in one sentence."""
LONGEST_SPAN = 100_000
"""Of any unit."""
UNITS = (("d", 86400), ("h", 3600), ("m", 60))
GAPS = ("   ", "  ", " ")
"""What stands between two columns; the narrower ones where there is no room."""
COLOURS = {"bad": "31", "wrong": "33", "good": "32", "head": "1", "dim": "2"}
"""SGR parameters of ECMA-48, the 8 colours that every terminal has: whoever cannot tell them apart reads the words."""


class Marked(str):
    """A text with a meaning of COLOURS."""

    __slots__ = ("meaning",)
    meaning: str

    def __new__(cls, text: str, meaning: str) -> Marked:
        """Make one."""
        made = super().__new__(cls, text)
        made.meaning = meaning
        return made


def add_form(parser: argparse.ArgumentParser) -> None:
    """Add ``-o`` to a command's parser."""
    parser.add_argument(
        "-o",
        "--output",
        # "text" is what earlier versions called a table that is none.
        type=lambda text: "table" if text == "text" else text,
        choices=FORMS,
        default="table",
        help="default: %(default)s",
    )


def structured(value: Any, form: str) -> str:
    """Give plain values in a form of STRUCTURED, with a line end."""
    if form == "json":
        return json.dumps(value, indent=2) + "\n"
    import yaml  # noqa: PLC0415 # a fifth of the start of a command that needs none of it

    return str(yaml.safe_dump(value, sort_keys=False))


def coloured(text: str, meaning: str, *, colour: bool) -> str:
    """Give a text in the colour of its meaning, where there is colour."""
    return f"\x1b[{COLOURS[meaning]}m{text}\x1b[0m" if colour and text else text


def wants_colour(choice: str, environment: Mapping[str, str], *, terminal: bool) -> bool:
    """Tell whether to colour; ``choice``: auto, always or never (https://no-color.org, and TERM of terminfo)."""
    if choice == "auto":
        return terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    return choice == "always"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int = 0,
    least: Sequence[str] = (),
    *,
    colour: bool = False,
) -> str:
    """Give lines of columns that are as wide as their widest cell; an empty cell is ``-``.

    ``width``: columns of the terminal that it has to fit in, 0: any. Where it does not, the columns stand closer, names
    (the first column) are cut in their middle, and of the columns named in ``least``, the first ones first, some are
    left out.
    """
    cells = [tuple(head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    for gap, gone in ((gap, count) for count in range(len(least) + 1) for gap in GAPS):
        kept = [index for index, name in enumerate(head) if name not in least[:gone]]
        chosen = [tuple(row[index] for index in kept) for row in cells]
        widths = [max(map(len, column)) for column in zip(*chosen, strict=True)]
        over = sum(widths) + len(gap) * (len(widths) - 1) - width
        if not width or over <= 0 or (gap == GAPS[-1] and widths[0] - over >= SHORTEST_NAME):
            break
    if width and over > 0:
        widths[0] = max(SHORTEST_NAME, widths[0] - over)
        chosen = [(_cut(row[0], widths[0]), *row[1:]) for row in chosen]
    return "".join(f"{_line(row, widths, gap, colour=colour)}\n" for row in chosen)


def _cell(text: str) -> str:
    shown = printable(text) or "-"
    return Marked(shown, text.meaning) if isinstance(text, Marked) else shown


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    found = f"{text[: width - 1 - end]}…{text[len(text) - end :]}"
    return Marked(found, text.meaning) if isinstance(text, Marked) else found


def _line(row: Sequence[str], widths: Sequence[int], gap: str, *, colour: bool) -> str:
    last = len(row) - 1
    padded = (
        cell if index == last else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return gap.join(
        coloured(text, cell.meaning, colour=colour) if isinstance(cell, Marked) else text
        for text, cell in zip(padded, row, strict=True)
    ).rstrip()


def wrapped(text: str, width: int) -> str:
    """Give a sentence in lines of that width at most, the later ones indented; 0: in one line."""
    if not width or len(text) <= width:
        return text
    import textwrap  # noqa: PLC0415 # of no use where there is room

    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=True, break_on_hyphens=False)


def span(seconds: float) -> str:
    """Give a length of time as kubectl does: ``42s``, ``3m``, ``2h``, ``5d``."""
    for unit, length in UNITS:
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def named(names: Iterable[str]) -> str:
    """Name the first few."""
    found = list(names)
    more = f" and {len(found) - NAMES} more" if len(found) > NAMES else ""
    return f"{', '.join(found[:NAMES])}{more}" if found else "some"


def duration(text: str) -> float:
    """Read a length of time as :func:`span` writes one; seconds.

    Raises:
        ValueError: it is none.

    """
    units = {"s": 1, **dict(UNITS)}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not (number.isascii() and number.isdecimal()) or not 0 < int(number) <= LONGEST_SPAN:
        raise ValueError(text)
    return float(int(number) * units[unit])


def share(value: float) -> str:
    """Give a share of 0 to 1 in percent."""
    if 0 < value < 0.0001:
        return "<0.01%"
    return f"{value:.2%}" if value else "0%"


def printable(text: str) -> str:
    """Give a text for a terminal: what others wrote into the cluster must not move the cursor or hide a line."""
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in text)

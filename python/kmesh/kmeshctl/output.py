# SPDX-License-Identifier: Apache-2.0
"""How answers look: tables for people, JSON and YAML for programs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

STRUCTURED = ("json", "yaml")
"""Values of ``-o`` for programs."""
NAMES = 5
"""Named in one sentence."""
LONGEST_SPAN = 100_000
"""Of any unit."""
UNITS = (("d", 86400), ("h", 3600), ("m", 60))


def structured(value: Any, form: str) -> str:
    """Give plain values in a form of STRUCTURED, with a line end."""
    return json.dumps(value, indent=2) + "\n" if form == "json" else yaml.safe_dump(value, sort_keys=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give lines of columns that are as wide as their widest cell; an empty cell is ``-``."""
    cells = [tuple(head), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("   ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "".join(f"{line}\n" for line in lines)


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

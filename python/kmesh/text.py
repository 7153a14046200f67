# SPDX-License-Identifier: Apache-2.0
"""Text that others chose, as it may stand in a sentence or be taken for a path. Pure but for the type of a path."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SHOWN = 64
"""Characters of somebody else's text that a sentence quotes."""
LONGEST_NAME = 512
"""Characters of NAMESPACE/NAME, and of a path that anybody types."""

LONGEST_PATH = 4095
"""Bytes: PATH_MAX of linux/limits.h, without the NUL."""


def shown(text: str) -> str:
    """Give somebody else's text as it may stand in a sentence: quoted, on one line, not too long."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def short(text: str) -> str:
    """Give a text that others chose without its end, where it is longer than anybody reads."""
    return text if len(text) <= LONGEST_NAME else f"{text[:SHOWN]}…"


def one_line(text: str) -> str:
    """Give a text with everything escaped that would end a line, move a cursor or be no character."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def path(text: str) -> Path:
    """Read a path from a command line; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: nothing can be called so.

    """
    return Path(file_name(text))


def file_name(text: str) -> str:
    """Give the text of a path, as :func:`path` reads it.

    Raises:
        argparse.ArgumentTypeError: nothing can be called so.

    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{one_line(short(text))} holds a byte 0, and no path can")
    if len(os.fsencode(text)) > LONGEST_PATH:
        raise argparse.ArgumentTypeError(f"{one_line(short(text))} is longer than a path can be")
    return text

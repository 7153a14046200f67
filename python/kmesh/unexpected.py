# SPDX-License-Identifier: Apache-2.0
"""What is said of an error that is none of our own: one line, and for who debugs where it came from."""

from __future__ import annotations

import errno
import os
import traceback
from types import TracebackType

from kmesh.text import one_line
from kmesh_bpf import KmeshBpfError

OURS = ("kmesh.", "kmesh_bpf.")


def sentence(error: Exception) -> str:
    """Give one line on any error.

    Of errors of others only the operating system's words are repeated: what the others quote could be a key.
    """
    if isinstance(error, KmeshBpfError):
        return one_line(str(error))
    if isinstance(error, MemoryError):
        return f"out of memory, at {_where(error)}"
    if isinstance(error, OSError) and error.errno:
        name = errno.errorcode.get(error.errno, str(error.errno))
        what = f"{one_line(error.filename)}: " if isinstance(error.filename, str) else ""
        return f"{what}{os.strerror(error.errno)} ({name}), at {_where(error)}"
    return f"{type(error).__name__} at {_where(error)}, a mistake of this program; please report it"


def origin(error: BaseException) -> str:
    """Give the traceback without what the errors themselves say, the causes first, as Python does."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\n".join(
        f"Traceback (most recent call last):\n{''.join(traceback.format_tb(one.__traceback__))}{type(one).__name__}"
        for one in reversed(found)
    )


def _where(error: Exception) -> str:
    """Give module and line of the last place of ours that the error passed."""
    frames = list(_frames(error.__traceback__))
    own = [place for place in frames if place.startswith(OURS)]
    return (own or frames or ["an unknown place"])[-1]


def _frames(trace: TracebackType | None) -> list[str]:
    found = []
    while trace is not None:
        found.append(f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}")
        trace = trace.tb_next
    return found

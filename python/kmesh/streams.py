# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a command line: missing, full, or with nobody at the other end; and memory kept private."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import resource
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TextIO, TypeVar, cast

from kmesh.errors import OutputError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
T = TypeVar("T")
PR_SET_DUMPABLE = 4
"""linux/prctl.h."""


class Output(io.TextIOBase):
    """A text stream whose failures are errors of ours; None: standard output is closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write.

        Raises:
            OutputError: it cannot be.

        """
        return self._do(lambda stream: stream.write(text))

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            OutputError: it cannot be.

        """
        if self._stream is not None:
            self._do(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Tell whether somebody looks at it."""
        return self._stream is not None and self._stream.isatty()

    def _do(self, act: Callable[[TextIO], T]) -> T:
        if self._stream is None:
            raise OutputError(errno.EBADF)
        try:
            return act(self._stream)
        except OSError as error:
            raise OutputError(error.errno or errno.EIO) from error


def run(program: str, main: Callable[[TextIO, TextIO], int]) -> int:
    """Run a command line over the process's streams, standard output and errors; give the exit status."""
    _fill_gaps()
    errors = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 # to the end of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that a terminal's encoding has no letters for
    out = cast("TextIO", Output(sys.stdout))
    try:
        with redirect_stdout(out):
            status = _status(main, out, errors)
            out.flush()
            return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OutputError as error:
        if error.told:
            with suppress(OSError):
                print(f"{program}: {error}", file=errors)
        return EXIT_FAILED
    except OSError:  # not even the errors can be written
        return EXIT_FAILED
    finally:
        _let_go()


def _status(main: Callable[[TextIO, TextIO], int], out: TextIO, errors: TextIO) -> int:
    try:
        return main(out, errors)
    except SystemExit as done:  # argparse, behind --help
        return int(done.code or 0)


def keep_memory_private() -> None:
    """Have no key end in a core file, or be read by another process of the same user.

    Best effort: where it is not permitted, memory is as private as that of any other program.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core that is piped into a program is not limited by that.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _fill_gaps() -> None:
    """Have 0, 1 and 2 be open: the next file, which could be anything, would get the number of one that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _let_go() -> None:
    """Have nothing waiting when the interpreter ends, which would try once more, and tell that it cannot."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())

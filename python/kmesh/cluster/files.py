# SPDX-License-Identifier: Apache-2.0
"""Reading a file that somebody else wrote, or put there: what waits, never ends or is too large is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kmesh_bpf import ConfigError


def read_file(path: Path, most: int, way_out: str = "") -> tuple[bytes, os.stat_result, os.stat_result]:
    """Give the content of a regular file of at most so many bytes, and what the file was before and after the reading.

    ``way_out``: from its being larger.

    Links are followed: the files of a mounted ConfigMap or Secret are links. What they lead to may be a FIFO or a
    device, whose opening or reading could take for ever or never end.

    Raises:
        ConfigError: it cannot be read, is no regular file, or is larger.

    """
    try:
        # Not to wait for whoever would write into a FIFO, and to become no terminal's process.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ConfigError("cannot be read: it is no regular file")
            # A file may be larger than it says, as those of /proc are.
            content = file.read(most + 1) if before.st_size <= most else b""
            after = os.fstat(descriptor)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    size = max(before.st_size, after.st_size, len(content))
    if size > most:
        raise ConfigError(f"cannot be read: it is larger than {_size(most)}{way_out}")
    return content, before, after


def _size(number: int) -> str:
    return f"{number >> 20} MiB" if number >= 1 << 20 else f"{number >> 10} KiB"

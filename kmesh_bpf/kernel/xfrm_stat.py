# SPDX-License-Identifier: Apache-2.0
"""XFRM's own error counters, by the kernel's names: why IPsec dropped packets, ours and everybody else's."""

from __future__ import annotations

from pathlib import Path

from kmesh_bpf.errors import DecodeError, KernelError

PATH = Path("/proc/thread-self/net/xfrm_stat")
"""Of the calling *thread's* network namespace: /proc/net shows that of the process's first thread."""


def parse(text: str) -> dict[str, int]:
    """Read lines of a name and a number.

    Raises:
        DecodeError: a line is anything else.

    """
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal():
            raise DecodeError(f"xfrm_stat: {line!r} is not a name and a number")
        found[words[0]] = int(words[1])
    return found


def read(path: Path = PATH) -> dict[str, int]:
    """Give the counters by name; none on a kernel that keeps none (CONFIG_XFRM_STATISTICS).

    Raises:
        DecodeError: see :func:`parse`.
        KernelError: the file is there and cannot be read.

    """
    try:
        return parse(path.read_text(encoding="ascii", errors="replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error

# SPDX-License-Identifier: Apache-2.0
"""The daemon's own processor time, memory and descriptors, as Prometheus text under the names that its clients use.

By hand, as the other metrics are (kmesh.telling.metrics): six numbers of proc(5). The compiler, a process of its own
that is gone soon, is not in them.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kmesh.telling.metrics import CONTENT_TYPE
from kmesh.telling.readiness import Page

PROC = Path("/proc")
STAT_AFTER_NAME = {"utime": 11, "stime": 12, "starttime": 19, "vsize": 20, "rss": 21}
"""Fields of /proc/PID/stat, counted from 0 behind the name, which may hold spaces."""


def beside(answer: Callable[[str], Page]) -> Callable[[str], Page]:
    """Give a function as ``answer``, whose page of metrics has the process's at its end."""

    def both(path: str) -> Page:
        page = answer(path)
        return replace(page, body=page.body + text(PROC)) if page.content_type == CONTENT_TYPE else page

    return both


def text(proc: Path) -> str:
    """Give the metrics; where proc(5) cannot be read, none."""
    with suppress(OSError, ValueError, IndexError):
        return "".join(
            f"# HELP process_{name} {meaning}\n# TYPE process_{name} {kind}\nprocess_{name} {value}\n"
            for name, kind, meaning, value in _samples(proc)
        )
    return ""


def _samples(proc: Path) -> Iterator[tuple[str, str, str, float]]:
    fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
    stat = {name: int(fields[number]) for name, number in STAT_AFTER_NAME.items()}
    boot = next(int(line.split()[1]) for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield "cpu_seconds_total", "counter", "Processor time used, in seconds.", (stat["utime"] + stat["stime"]) / ticks
    yield "resident_memory_bytes", "gauge", "Memory in RAM.", stat["rss"] * page
    yield "virtual_memory_bytes", "gauge", "Address space.", stat["vsize"]
    yield "open_fds", "gauge", "Open file descriptors.", len(list((proc / "self/fd").iterdir()))
    yield (
        "max_fds",
        "gauge",
        "File descriptors that may be open at once.",
        most if most != resource.RLIM_INFINITY else -1,
    )
    yield "start_time_seconds", "gauge", "When the process started, since the epoch.", boot + stat["starttime"] / ticks

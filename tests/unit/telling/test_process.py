# SPDX-License-Identifier: Apache-2.0
"""What the daemon tells of its own process."""

import os
import re
import time
from pathlib import Path

import pytest
from kmesh.telling import process
from kmesh.telling.metrics import CONTENT_TYPE
from kmesh.telling.readiness import Page


def values() -> dict[str, float]:
    return {
        name: float(value) for name, value in re.findall(r"^(process_\w+) (\S+)$", process.text(process.PROC), re.M)
    }


def test_it_tells_of_this_process():
    before, start = values(), time.process_time()
    while time.process_time() - start < 0.1:
        pass
    with Path("/dev/null").open():
        after = values()
    assert after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"] + 0.05
    assert after["process_open_fds"] == before["process_open_fds"] + 1
    assert after["process_max_fds"] == os.sysconf("SC_OPEN_MAX")
    assert 1 << 20 < after["process_resident_memory_bytes"] < after["process_virtual_memory_bytes"]
    started = Path("/proc/self").stat().st_ctime  # of the folder, made with the process or later
    assert 0 < after["process_start_time_seconds"] <= time.time()
    assert after["process_start_time_seconds"] < started + 2


def test_it_stands_behind_the_page_of_metrics_and_no_other():
    pages = {"/metrics": Page(200, CONTENT_TYPE, "a 1\n"), "/healthz": Page(200, "text/plain", "ok\n")}
    answer = process.beside(pages.__getitem__)
    assert answer("/metrics").body.startswith("a 1\n# HELP process_")
    assert answer("/healthz") == pages["/healthz"]


@pytest.mark.parametrize("content", [None, "", "1 (x) S", "1 (x) S" + " y" * 50])
def test_where_proc_cannot_be_read_there_is_none(tmp_path, content):
    (tmp_path / "self").mkdir()
    if content is not None:
        (tmp_path / "self/stat").write_text(content)
    assert process.text(tmp_path) == ""

# SPDX-License-Identifier: Apache-2.0
"""scripts/bench stays alive: each part gives its rows, at sizes that tell nothing. No time is asserted."""

import json
import subprocess
import sys

import pytest

from tests.bench.bench import BEGIN, END, PAGE, PARTS, replaced
from tests.bench.results import Result
from tests.bench.sizes import SIZES
from tests.bench.starts import NotHereError

ROWS = {
    "event": ("a pod's event", "a label's event", "a peer's event", "steady", "replacing", "exact", "by CIDR"),
    "view": ("to the view",),
    "kernel": ("a pod's event, one pass", "a peer's event, one pass", "a namespace of 20 pods labelled at once"),
    "start": ("cold start, Python's share", "warm restart", "wall time"),
    "rotation": ("until announced", "until the old is gone"),
    "policy": ("update a policy among 36", "delete a policy among 36"),
    "audit": ("the longest step of a look", "the longest step of an audit", "a pod written and read back"),
    "idle": ("an idle hour",),
    "memory": ("imports of the daemon", "the daemon, 6 peers"),
    "scrape": ("a scrape, 6 peers",),
    "packets": ("classifier, hit, IPv4, 20 pods", "classifier, source is no pod, IPv6, 10 pods", "tc_pod_guard"),
    "messages": ("encode an SA", "write a pod, in batches"),
    "plan": ("plan and difference from scratch",),
}


def test_every_part_is_known_here():
    assert list(ROWS) == list(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_gives_its_rows(name):
    try:
        found = list(PARTS[name][0](SIZES["tiny"]))
    except NotHereError as error:
        assert name == "rotation", error
        return
    assert all(one.cost > 0 and one.baseline_cost > 0 for one in found)
    assert [row for row in ROWS[name] if not any(row in one.what for one in found)] == []


def test_results_are_printed_for_eyes_for_scripts_and_as_a_table():
    def run(*words):
        command = [sys.executable, "-m", "tests.bench.bench", "--size", "tiny", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True)

    printed = run("scrape", "view").stdout
    assert "x 100 kB" in printed and "goal 1" in printed
    found = json.loads(run("scrape", "--json").stdout)
    assert found["machine"]
    assert [(one["unit"], one["missed"]) for one in found["results"]] == [("kB", False), ("ms", False)]
    table = run("scrape", "--markdown").stdout
    assert "| what | cost | ratio | baseline | goal |\n| --- |" in table
    refused = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench", "nothing"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "no part is called nothing: event, view" in refused.stderr


def test_a_goal_that_is_missed_is_told():
    assert "goal 2, missed" in Result("a", 3.0, "b", 1.0, "ms", 2.0).line()
    assert "| **missed:** 2 |" in Result("a", 3.0, "b", 1.0, "ms", 2.0).row()
    assert not Result("a", 2.0, "b", 1.0, "ms", 2.0).missed
    assert not Result("a", 3.0, "b", 1.0, "ms").missed


def test_the_page_s_table_is_replaced_and_nothing_else():
    page = PAGE.read_text()
    written = replaced(page, "| a |")
    assert written.startswith(page.partition(BEGIN)[0])
    assert written.endswith(page.partition(END)[2])
    assert f"{BEGIN}\n| a |\n{END}" in written
    with pytest.raises(ValueError, match="end of the table"):
        replaced("nothing", "| a |")

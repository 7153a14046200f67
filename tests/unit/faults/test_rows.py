# SPDX-License-Identifier: Apache-2.0
"""Each goal of a row is missed by what misses it, and by nothing else; the page and the JSON tell the same."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import page
from tests.faults.__main__ import keep, listed, main
from tests.faults.flows import Cost, Span, Stream
from tests.faults.matrix import SOAK, chosen
from tests.faults.registry import BY_NAME, ROWS
from tests.faults.rows import GROUPS, Excuse, Machine, Outcome, Row, Shows, misses, outcome, soaked

ROOT = Path(__file__).resolve().parents[3]
NATIVE = Machine("abc", "6.12.1-amd64", "2026-11-27", False, 1.0)
EMULATED = replace(NATIVE, emulated=True, slowness=10.0)
GOOD = Outcome("row", NATIVE, Span(0, 10, 100, 20, (), (Stream("TCP", ("n1", "n3"), 9, 0, 5, 0),), 100, 0), cause=2.0)
ROW = Row("row", 3, "something is done", lambda moment: None)
EXCUSED = replace(ROW, excuse=Excuse("the kernel", ("n1",)))


def lost(nodes, at=3.0, packets=2):
    return replace(GOOD, span=replace(GOOD.span, costs=(Cost("UDP", nodes, 50, packets, 0, 100, at),)))


def test_nothing_lost_nothing_clear_is_as_it_should_be():
    assert misses(ROW, GOOD) == misses(EXCUSED, GOOD) == ()


def test_a_lost_packet_misses_the_goal_but_where_the_row_says_why_and_of_its_nodes_only():
    assert misses(ROW, lost(("n1", "n2"))) == ("2 packets lost",)
    assert misses(EXCUSED, lost(("n1", "n2"))) == ()
    assert misses(EXCUSED, lost(("n2", "n1"))) == ()
    assert misses(EXCUSED, lost(("n2", "n3"))) == ("2 packets lost between nodes that nothing was done to",)


def test_healing_counts_from_the_last_cause_and_longer_on_a_machine_that_is_slower():
    late = lost(("n1", "n2"), at=4.5)
    assert late.healed == 2.5
    assert misses(EXCUSED, late) == ("healed after 2.5 s, more than 2.0",)
    assert misses(EXCUSED, replace(late, machine=EMULATED)) == ()
    assert misses(EXCUSED, replace(late, cause=4.0)) == ()
    assert lost(("n1", "n2"), at=1.0).healed == 0
    assert misses(ROW, replace(GOOD, restored=5.0)) == ("healed after 3.0 s, more than 2.0",)


def test_clear_text_a_packet_accepted_twice_and_a_broken_connection_miss_goals_whatever_the_excuse():
    span = GOOD.span
    twice = replace(span, costs=(Cost("UDP", ("n1", "n2"), 50, 0, 3, 100, None),))
    broken = replace(span, streams=(replace(span.streams[0], broken=1),))
    for row in (ROW, EXCUSED):
        assert misses(row, replace(GOOD, span=replace(span, clear=4, what=("4 of a > b",)))) == (
            "4 packets in clear: 4 of a > b",
        )
        assert misses(row, replace(GOOD, span=twice)) == ("3 packets accepted twice",)
        assert misses(row, replace(GOOD, span=broken)) == ("TCP connections broke 1 times",)
    clear = replace(GOOD, span=replace(span, clear=4))
    assert misses(replace(ROW, excuse=Excuse("why", clear="why")), clear) == ()
    assert misses(replace(ROW, excuse=Excuse("why", ("n3",), breaks=True)), replace(GOOD, span=broken)) == ()
    assert misses(replace(ROW, excuse=Excuse("why", ("n2",), breaks=True)), replace(GOOD, span=broken)) != ()


def test_a_control_that_shows_nothing_has_failed():
    leak, loss = replace(ROW, shows=Shows.LEAK), replace(ROW, shows=Shows.LOSS)
    assert misses(leak, GOOD)
    assert misses(loss, GOOD)
    assert misses(leak, replace(GOOD, span=replace(GOOD.span, clear=1))) == ()
    assert misses(loss, lost(("n1", "n2"))) == ()


def test_a_row_that_did_not_come_to_its_end_has_failed():
    assert misses(ROW, replace(GOOD, failed="it broke")) == ("it broke",)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_says_what_it_does_and_why_it_may_lose(row):
    assert BY_NAME[row.name] is row
    assert row.group in GROUPS
    assert row.what
    assert row.excuse is None or (row.excuse.why and set(row.excuse.nodes) <= {"n1", "n2", "n3"})


def test_a_row_about_what_a_kernel_has_or_lacks_is_run_there_only():
    has, lacks = replace(ROW, since=(6, 6)), replace(ROW, until=(6, 6))
    assert [one.is_of((6, 1)) for one in (ROW, has, lacks)] == [True, False, True]
    assert [one.is_of((6, 6)) for one in (ROW, has, lacks)] == [True, True, False]
    assert [one.is_of((7, 2)) for one in (ROW, has, lacks)] == [True, True, False]


def test_names_are_used_once_and_the_quick_ones_show_that_counting_works():
    assert len(BY_NAME) == len(ROWS)
    assert {Shows.LEAK, Shows.LOSS, Shows.GOALS} == {row.shows for row in ROWS if row.quick}


FULL = replace(
    lost(("n1", "n2")),
    row="quiet",
    restored=3.5,
    errors={"n1 XfrmInNoStates": (0, 2)},
    drops={"n2 dropped_by_guard": (1, 4)},
    said=("n1 /readyz: something | else",),
    notes=("a note",),
    stack={"p1a Udp6 RcvbufErrors": (0, 5)},
)


def test_an_outcome_and_the_json_are_read_as_they_were_written():
    assert outcome(json.loads(json.dumps(FULL.plain()))) == FULL
    assert page.read(page.write([FULL, GOOD])) == (FULL, GOOD)
    assert page.read("") == ()
    older = FULL.plain()
    del older["stack"]
    assert outcome(older) == replace(FULL, stack=None)


def test_a_row_that_is_run_again_takes_the_place_of_what_it_was_on_the_same_kernel():
    other = replace(FULL, machine=replace(NATIVE, kernel="6.1.0-56-amd64"))
    newer = replace(FULL, machine=replace(NATIVE, commit="def", kernel="6.12.9-amd64"))
    gone = replace(FULL, row="a row that is no more")
    assert page.merged([other, FULL, gone], [newer], ROWS) == (newer, other)


def test_the_page_tells_each_figure_and_what_was_said():
    text = page.render([FULL], ROWS)
    for part in (
        "`quiet`",
        "| 100 | 2 | 20 ms |",
        "n1 XfrmInNoStates 0 → 2",
        "n2 dropped_by_guard 1 → 4",
        "a note",
        "p1a Udp6 RcvbufErrors 0 → 5",
        "abc",
    ):
        assert part in text
    assert "**missed**: 2 packets lost" in text
    assert page.NO_SOAK in text
    (left,) = (line for line in text.splitlines() if line.startswith("Not run on it yet: "))
    assert set(re.findall("`([^`]+)`", left)) == {row.name for row in ROWS if row.is_of((6, 12))} - {"quiet"}


def test_the_page_in_docs_is_what_its_figures_say():
    kept = ROOT / "docs/faults.json"
    outcomes, soaks = page.read(kept.read_text()), page.soaks(kept.read_text())
    assert page.merged(outcomes, (), ROWS) == outcomes
    assert kept.with_suffix(".md").read_text() == page.render(outcomes, ROWS, soaks)


def test_a_soak_sums_up_its_rows_and_tells_what_no_excuse_covers(tmp_path):
    rows = [(EXCUSED, lost(("n1", "n2"))), (EXCUSED, lost(("n2", "n3"), packets=3)), (ROW, GOOD)]
    found = soaked(7, 0.5, rows)
    assert (found.sent, found.lost, found.unexcused, found.twice, found.clear, found.rows) == (
        300,
        5,
        3,
        0,
        0,
        {"row": 3},
    )
    assert found.missed == ("row: 3 packets lost between nodes that nothing was done to",)
    file = tmp_path / "faults.json"
    keep(file, [FULL], None)
    keep(file, [], found)
    keep(file, [], replace(found, seed=8))
    assert page.read(file.read_text()) == (FULL,)
    assert page.soaks(file.read_text()) == (replace(found, seed=8),)
    text = file.with_suffix(".md").read_text()
    assert "scripts/faults --soak 0.5 --seed 8" in text
    assert page.NO_SOAK not in text
    assert "* missed: row: 3 packets lost" in text
    assert "`quiet`" in text


def test_a_soak_draws_the_same_rows_from_the_same_seed_and_no_controls():
    def first(seed):
        rows = chosen([f"{SOAK}1"], seed)
        return [next(rows).name for _ in range(20)]

    assert first(7) == first(7) != first(8)
    drawn = {row.name for row in itertools.islice(chosen([f"{SOAK}1"], 7), 2000)}
    assert drawn == {row.name for row in ROWS if row.shows is Shows.GOALS and not row.long}
    assert [row.name for row in chosen(["quiet", "key-twice"], 7)] == ["quiet", "key-twice"]


def test_the_list_names_every_row_and_what_it_may_lose(capsys):
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip("\n") == "\n".join(listed(ROWS))
    assert all(row.name in text and (not row.excuse or row.excuse.why in text) for row in ROWS)


@pytest.mark.parametrize("arguments", [["--row", "no-such"], ["--soak", "1", "--quick"], ["--nonsense"]])
def test_wrong_arguments_are_refused_with_2(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr

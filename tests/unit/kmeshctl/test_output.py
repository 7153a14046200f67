# SPDX-License-Identifier: Apache-2.0
"""Tables that fit, colours that are asked for, and what a screen has room for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.kmeshctl.output import COLUMNS, Marked, coloured, table, wants_colour, wrapped
from kmesh.kmeshctl.terminal import ENTER, LEAVE, Reader, fitted, screen

SGR = re.compile(r"\x1b\[\d*m")
NAMES = st.text("abc-.0", min_size=1, max_size=60)
ROWS = st.lists(st.tuples(NAMES, st.text("yn", max_size=5), st.text("0123456789/", max_size=12)), max_size=8)


@given(ROWS)
def test_a_table_fits_and_keeps_a_line_for_each_row_whatever_stands_in_it(rows):
    lines = table(("NODE", "READY", "SPI"), rows, 40, ("SPI",)).splitlines()
    assert len(lines) == len(rows) + 1
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].split()[:2] == ["NODE", "READY"]


@given(ROWS)
def test_colours_change_nothing_but_colours(rows):
    marked = [(Marked(name, "bad"), ready, Marked(spi, "good")) for name, ready, spi in rows]
    plain = table(("NODE", "READY", "SPI"), rows)
    assert SGR.sub("", table(("NODE", "READY", "SPI"), marked, colour=True)) == plain
    assert table(("NODE", "READY", "SPI"), marked) == plain


def test_where_there_is_room_nothing_is_left_out_or_cut():
    rows = [("a" * 60, "yes", "1")]
    assert table(("NODE", "READY", "SPI"), rows, COLUMNS, ("SPI",)).splitlines()[1].split() == ["a" * 60, "yes", "1"]
    assert "…" in table(("NODE", "READY", "SPI"), [("a" * 100, "yes", "1")], COLUMNS)


def test_columns_go_in_their_order_and_only_as_many_as_have_to():
    rows = [("n" * 8, "x" * 30, "y" * 30, "z" * 20)]
    assert table(("NODE", "A", "B", "C"), rows, COLUMNS, ("B", "A")).split()[:3] == ["NODE", "A", "C"]


@pytest.mark.parametrize(
    ("choice", "environment", "terminal", "wanted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_colour_is_for_terminals_whose_user_has_nothing_against_it(choice, environment, terminal, wanted):
    assert wants_colour(choice, environment, terminal=terminal) is wanted


def test_a_sentence_is_broken_to_the_width_and_loses_no_word():
    text = "the quick brown fox jumps over the lazy dog"
    assert wrapped(text, 0) == text
    assert all(len(line) <= 20 for line in wrapped(text, 20).splitlines())
    assert wrapped(text, 20).split() == text.split()
    assert coloured("", "bad", colour=True) == ""


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(6, 60))
def test_what_is_on_the_screen_fits_and_says_what_does_not(sizes, lines):
    parts = [["summary"], *([f"{number}.{line}" for line in range(size)] for number, size in enumerate(sizes))]
    shown = fitted(parts, lines)
    assert len(shown) <= lines
    assert shown[0] == "summary"
    hidden = sum(int(line.split()[1]) for line in shown if line.startswith("…"))
    told = sum("." in line for line in shown)
    if lines >= 3 * len(parts):
        assert told + hidden == sum(sizes)


def test_each_part_keeps_a_share_of_the_screen():
    shown = fitted([["summary"], ["row"] * 200, ["finding"] * 200], 24)
    assert shown.count("row") >= 5
    assert shown.count("finding") >= 5


def test_the_other_screen_is_left_whatever_happens():
    import io  # noqa: PLC0415

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        with screen(out) as draw:
            draw(["a", "b"])
            raise KeyboardInterrupt
    assert out.getvalue().startswith(ENTER)
    assert out.getvalue().endswith(LEAVE)


def test_a_reader_that_is_no_terminal_has_tables_of_80_columns_and_lines_of_any_length():
    wide = Reader(True, size=lambda: (200, 50))
    narrow = Reader(True, size=lambda: (60, 20))
    assert [(one.columns, one.line) for one in (Reader(), wide, narrow)] == [(80, 0), (80, 200), (60, 60)]

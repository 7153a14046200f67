# SPDX-License-Identifier: Apache-2.0
"""What was found once is read or refused; a short search in every target; and that a search finds."""

import io
import sys
import time
from pathlib import Path

import pytest

from kmesh_bpf import ConfigError
from tests.fuzz import __main__ as command
from tests.fuzz import inputs, search
from tests.fuzz.targets import TARGETS, Target

FINDS = [(path.parent.name, path) for path in sorted(inputs.CORPUS.glob("*/*"))]
GOOD = b"123"
SHORT = 40
"""Inputs of each target in a run of all tests, always the same ones; scripts/fuzz makes others each time."""


@pytest.mark.parametrize(("name", "path"), FINDS, ids=lambda one: one.name if isinstance(one, Path) else one)
def test_what_was_found_once_is_read_or_refused(name, path):
    search.examine(name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_input_is_read_and_a_short_search_finds_nothing(name):
    for good in TARGETS[name].seeds:
        search.examine(name, good)
    found = search.search(name, 20_261_127, SHORT)
    assert found is None, f"{found}; scripts/fuzz --target={name} keeps what it finds"


def fails_often(data: bytes) -> None:
    if len(data) != len(GOOD):
        raise KeyError("the find")


def looks_on_for_ever(_: bytes) -> None:
    while True:
        pass


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "CORPUS", tmp_path)
    monkeypatch.setattr(search, "CORPUS", tmp_path)
    return tmp_path


def targets(monkeypatch, run) -> None:
    for place in (search, command):
        monkeypatch.setattr(place, "TARGETS", {"t": Target(run, (GOOD,))})


def test_a_find_is_made_small_kept_and_read_from_then_on(corpus, monkeypatch, capsys):
    targets(monkeypatch, fails_often)
    monkeypatch.setattr(sys, "argv", ["fuzz", "0.5"])
    assert command.main() == 1
    (path,) = corpus.glob("t/*")
    assert path.read_bytes() == b""
    assert f"t: {path}: KeyError('the find')" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["fuzz", "0"])
    assert command.main() == 1
    targets(monkeypatch, lambda data: None)
    assert command.main() == 0
    assert capsys.readouterr().out.endswith("0 finds\n")


def test_what_takes_too_long_is_a_find(monkeypatch):
    targets(monkeypatch, looks_on_for_ever)
    with pytest.raises(TimeoutError, match="more than 1 s"), search.bounded(1):
        search.check(search.TARGETS["t"], b"")


@pytest.mark.parametrize("sentence", ["", "x" * 5000])
def test_so_is_a_sentence_that_says_nothing_or_too_much(monkeypatch, sentence):
    def refuse(_: bytes) -> None:
        raise ConfigError(sentence)

    targets(monkeypatch, refuse)
    with pytest.raises(AssertionError, match="a sentence of"):
        search.check(search.TARGETS["t"], b"")


def test_the_same_number_makes_the_same_inputs(monkeypatch):
    seen: list[bytes] = []
    targets(monkeypatch, seen.append)
    search.search("t", 1, 20)
    first, seen[:] = list(seen), []
    search.search("t", 1, 20)
    assert seen == first


def test_the_search_ends_when_its_time_is_over(monkeypatch):
    targets(monkeypatch, lambda data: None)
    assert list(search.rounds(time.monotonic())) == []


def test_progress_is_told(corpus, monkeypatch):
    targets(monkeypatch, lambda data: None)
    monkeypatch.setattr(sys, "argv", ["fuzz", "2.5"])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert command.main() == 0
    assert "inputs, 0 finds" in sys.stderr.getvalue()

# SPDX-License-Identifier: Apache-2.0
"""docs/kmeshctl.md says what kmeshctl does."""

import re
import textwrap
from pathlib import Path

import pytest
from kmesh.cluster.status import describe
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.completion import commands_of
from kmesh.kmeshctl.status import HEAD, WIDE_HEAD
from kmesh.kmeshctl.upstream import NOT_PROVIDED

from kmesh_bpf import Fate, ProblemKind
from tests.unit.cluster.test_status import STATUS
from tests.unit.kmeshctl.test_explain import ask

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "kmeshctl.md").read_text()
SECTIONS = dict(re.findall(r"^## kmeshctl (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_every_command_and_flag_stands_in_its_section():
    top, *commands = commands_of(parser(), "kmeshctl")
    assert {word for word, _ in top.words} == set(SECTIONS)
    shared = {name for flag in top.flags for name in flag.names}
    assert all(name in TEXT for name in shared - {"-h", "--help"})
    for command in commands:
        words = command.path.split()
        section = SECTIONS[words[1]]
        assert " ".join(words[1:]) in section or len(words) == 2
        for flag in command.flags:
            for name in flag.names:
                assert name in section or name in shared, (command.path, name)
            where = TEXT if shared.issuperset(flag.names) else section
            assert "|".join(flag.words) in where.replace("\\|", "|"), (command.path, flag)


def test_every_command_of_go_kmesh_s_that_is_not_provided_is_named():
    assert [name for name in NOT_PROVIDED if f"`{name}`" not in TEXT] == []


def test_the_sample_of_explain_is_what_it_prints():
    assert textwrap.indent(ask("web", "api")[1], "    ") in SECTIONS["explain"]


@pytest.mark.parametrize("word", [*HEAD[1:], *WIDE_HEAD])
def test_every_column_of_the_table_is_explained(word):
    columns = re.findall(r"^\| ([A-Z ,]+) \|", SECTIONS["status"], re.MULTILINE)
    assert word in {one for column in columns for one in column.split(", ")}


def test_every_field_of_a_report_and_every_verdict_is_named():
    assert all(f"`{name}`" in SECTIONS["status"] for name in describe(STATUS))
    assert all(f"`{kind.name}`" in SECTIONS["status"] for kind in ProblemKind)
    assert all(f"| {fate.name} |" in SECTIONS["explain"] for fate in Fate)

# SPDX-License-Identifier: Apache-2.0
"""The manual page says what --help says."""

import io

import pytest
from kmesh.kmeshctl import manual
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.cli import main
from kmesh.kmeshctl.completion import commands_of

PAGE = manual.page(parser())


def shown(text):
    return text.replace("-", "\\-")


def test_every_command_and_flag_has_its_place():
    for command in commands_of(parser(), "kmeshctl"):
        _, _, section = PAGE.partition(f".SS {command.path}\n")
        assert section or command.path == "kmeshctl"
        for flag in command.flags:
            assert all(f"\\fB{shown(name)}\\fR" in PAGE for name in flag.names)


def test_it_has_the_sections_that_man_7_wants_in_their_order():
    heads = [line[4:] for line in PAGE.splitlines() if line.startswith(".SH ")]
    assert heads == ["NAME", "SYNOPSIS", "DESCRIPTION", "FLAGS OF EVERY COMMAND", "COMMANDS", "ENVIRONMENT", "FILES"]
    assert PAGE.startswith(".TH KMESHCTL 1 ")


def test_nothing_of_the_help_is_taken_for_a_request_of_roff():
    odd = parser()
    odd.description = ".so /etc/passwd"
    odd.epilog = "examples:\n  'x \\fB\n"
    lines = manual.page(odd).splitlines()
    known = (".TH ", ".SH ", ".SS ", ".B ", ".TP", ".PP", ".nf", ".fi", ".RS", ".RE")
    assert all(line.startswith(known) for line in lines if line.startswith("."))
    assert not any(line.startswith("'") for line in lines)
    assert "\\&'x \\efB" in lines


def test_examples_stand_as_they_are():
    assert ".nf\n.RS\nkmeshctl status" in PAGE
    lines = PAGE.splitlines()
    assert lines.count(".nf") == lines.count(".fi") == lines.count(".RS") == lines.count(".RE") > 10


@pytest.mark.parametrize("program", ["kmeshctl", "kubectl kmesh"])
def test_the_command_prints_it_and_needs_no_cluster(program):
    out = io.StringIO()
    assert main(["man"], io.StringIO(), out, io.StringIO(), {}, program) == 0
    assert out.getvalue() == PAGE

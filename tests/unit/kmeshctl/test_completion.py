# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest
from kmesh.kmeshctl import completion
from kmesh.kmeshctl.arguments import parser

COMMANDS = list(completion.commands_of(parser(), "kmeshctl"))
SHARED = {name for flag in COMMANDS[0].flags for name in flag.names}
"""Flags that every command takes."""


def test_the_tree_holds_every_command_with_the_words_that_lead_to_it():
    assert {command.path for command in COMMANDS} == {
        "kmeshctl",
        "kmeshctl help",
        "kmeshctl version",
        "kmeshctl status",
        "kmeshctl doctor",
        "kmeshctl explain",
        "kmeshctl monitor",
        "kmeshctl completion",
        "kmeshctl bundle",
        "kmeshctl dashboard",
        "kmeshctl man",
        "kmeshctl secret",
        "kmeshctl secret create",
        "kmeshctl secret get",
        "kmeshctl secret delete",
    }


# What zsh's completion system does with the words, the cursor and what a script offers; it runs at a terminal only.
ZSH = """
compdef() { : }
compadd() { shift; print -l -- ${(M)@:#$PREFIX*} }
_describe() { local -a _words; _words=(${(P)2}); print -l -- ${(M)${_words%%:*}:#$PREFIX*} }
_files() { if [[ $1 == -/ ]]; then print -l -- $PREFIX*(/N:t); else print -l -- $PREFIX*(N:t); fi }
compset() { PREFIX=${PREFIX#${~2}} }
"""


def ran(*command: str, folder="/") -> set[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return {line for line in done.stdout.split("\n") if line}


def bash(line: str, folder="/") -> set[str]:
    """Give what bash offers at the end of a line, as readline would ask for it: words taken apart at ``=`` too."""
    words = line.replace("=", " = ").split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    asked = " ".join(f"'{word}'" for word in words)
    text = completion.script(parser(), "bash")
    driver = f"COMP_WORDS=({asked}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _kmeshctl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return ran("bash", "--norc", "-u", "-c", f"{text}\n{driver}", folder=folder)


def zsh(line: str, folder="/") -> set[str]:
    driver = 'words=("$@"); CURRENT=$#; PREFIX=$words[-1]; _kmeshctl'
    text = completion.script(parser(), "zsh")
    return ran("zsh", "-f", "-c", f"{ZSH}\n{text}\n{driver}", "zsh", *line.split(" "), folder=folder)


def fish(line: str, folder="/") -> set[str]:
    """Give what fish offers, without what it says of each, and without the flag of ``--flag=value``."""
    script = f"{completion.script(parser(), 'fish')}\ncomplete -C $argv[1]"
    offers = ran("fish", "--no-config", "-c", script, line, folder=folder)
    return {offer.partition("\t")[0].rpartition("=")[2].rstrip("/") for offer in offers}


IN_SHELL = {"bash": bash, "zsh": zsh, "fish": fish}


@pytest.mark.parametrize("shell", IN_SHELL)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kmeshctl st", ["status"]),
        ("kmeshctl secret ", ["create", "get", "delete", "--key", "-k"]),
        ("kmeshctl secret create --k", ["--key", "--key-file"]),
        ("kmeshctl status -o ", ["table", "wide", "json", "yaml"]),
        ("kmeshctl status --output=", ["table", "wide", "json", "yaml"]),
        ("kmeshctl status --output=w", ["wide"]),
        ("kmeshctl explain web api -o y", ["yaml"]),
        ("kmeshctl completion ", ["bash", "zsh", "fish"]),
        ("kmeshctl secret --key ", []),
        ("kmeshctl --manifests secret st", ["status"]),
        ("kmeshctl --manifests=secret st", ["status"]),
        ("kmeshctl status --watch -o j", ["json"]),
        ("kmeshctl nonsense", []),
    ],
)
def test_each_shell_offers_what_may_follow(shell, line, offered):
    if shell == "fish" and line.endswith(" "):  # it offers no flag before a dash was typed
        offered = [word for word in offered if not word.startswith("-")]
    assert IN_SHELL[shell](line) - SHARED == set(offered)


@pytest.mark.parametrize("offers", IN_SHELL.values(), ids=IN_SHELL)
def test_each_shell_offers_folders_and_files_where_they_belong(offers, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert offers("kmeshctl --manifests f", tmp_path) == {"folder"}
    assert offers("kmeshctl secret create --key-file f", tmp_path) == {"folder", "file"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_command_and_every_flag_is_in_the_script(shell):
    text = completion.script(parser(), shell)
    for command in COMMANDS:
        for word in (*(word for word, _ in command.words), *(name for flag in command.flags for name in flag.names)):
            assert word in text


def test_fish_has_a_line_for_each_word_and_each_flag_of_each_command():
    lines = completion.script(parser(), "fish").splitlines()
    for command in COMMANDS:
        quoted = f"'__kmeshctl_at {command.path}'"
        ours = [line for line in lines if f"-n {quoted} " in line]
        assert len(ours) == len(command.words) + len(command.flags) + bool(command.names)
        for flag in command.flags:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
            assert sum(f"{quoted} {names} " in line for line in ours) == 1
            assert all(word in " ".join(ours) for word in flag.words)


@pytest.mark.parametrize("shell", IN_SHELL)
def test_what_help_says_cannot_break_out_of_a_script(shell, tmp_path):
    odd = parser()
    odd.add_argument("--odd", metavar="FILE", help='it\'s $(reboot) `x` "y" a:b')
    text = completion.script(odd, shell)
    assert "it's $(reboot)" not in text
    (tmp_path / "script").write_text(text)
    assert ran(shell, "-n", str(tmp_path / "script")) == set()

# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl completion``: a script that completes commands, flags and their values, made from the parser. Pure.

The script is a table of what may follow what. Only for names of the cluster (pods, namespaces, contexts) kmeshctl runs
while completing (:mod:`kmesh.kmeshctl.names`).
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PROGRAM = "kmeshctl"
ASK = f"{PROGRAM} __complete"
NAMES = {"CONTEXT": "contexts", "NAMESPACE": "namespaces", "NODE": "nodes", "POD": "ends"}
"""By what an argument is called in the help: the kind of names that it takes."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag. ``value``: empty without one, else ``words``, ``file``, ``folder``, ``any`` or a kind of NAMES."""

    names: tuple[str, ...]
    value: str
    words: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the words that lead to it, what may follow (word, help), and its flags.

    ``names``: of NAMES, the kind that may follow too; empty: none.
    """

    path: str
    words: tuple[tuple[str, str], ...]
    flags: tuple[Flag, ...]
    names: str = ""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Give the script for a shell of SHELLS."""
    return SHELLS[shell](list(commands_of(parser, PROGRAM)))


def commands_of(parser: argparse.ArgumentParser, path: str) -> Iterator[Command]:
    """Give a parser's command, and those below it."""
    words: list[tuple[str, str]] = []
    flags = []
    below: dict[str, argparse.ArgumentParser] = {}
    names = ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below.update(action.choices)
            words.extend((one.dest, one.help or "") for one in action._choices_actions)
        elif action.option_strings:
            flags.append(_flag(action))
        elif action.choices:
            words.extend((str(one), "") for one in action.choices)
        else:
            names = NAMES.get(str(action.metavar), names)
    yield Command(path, tuple(words), tuple(flags), names)
    for name, one in below.items():
        yield from commands_of(one, f"{path} {name}")


def _flag(action: argparse.Action) -> Flag:
    value, words = "any", tuple(str(one) for one in action.choices or ())
    if action.nargs in (0, "?"):
        value = ""
    elif words:
        value = "words"
    elif action.metavar in ("FILE", "DIR"):
        value = "file" if action.metavar == "FILE" else "folder"
    else:
        value = NAMES.get(str(action.metavar), "any")
    text = (action.help or "") % {"default": action.default}
    return Flag(tuple(action.option_strings), value, words, text)


def _at(path: str, flag: Flag) -> str:
    """Give a pattern of a shell's ``case`` for a flag of a command."""
    return "|".join(shlex.quote(f"{path}:{name}") for name in flag.names)


def _arms(commands: list[Command], values: dict[str, str]) -> Iterator[str]:
    """Give the arms of a ``case`` on ``command:flag`` for flags that take a value; ``values`` by kind of value."""
    for command in commands:
        for flag in command.flags:
            if flag.value:
                what = values[flag.value].format(words=" ".join(map(shlex.quote, flag.words)))
                yield f"        {_at(command.path, flag)}) {what}return ;;"


def _walk(commands: list[Command], words: str, first: int, end: str) -> str:
    """Give the loop that finds the command in the words before the cursor; understood by bash and zsh."""
    takers = "|".join(_at(command.path, flag) for command in commands for flag in command.flags if flag.value)
    deeper = "|".join(shlex.quote(command.path) for command in commands[1:])
    return f"""\
    local at={PROGRAM} index
    for ((index = {first}; index < {end}; index++)); do
        case "$at:${{{words}[index]}}" in
        {takers})
            if [[ ${{{words}[index + 1]}} == '=' ]]; then ((index += 2)); else ((index += 1)); fi
            continue ;;
        esac
        case "$at ${{{words}[index]}}" in
        {deeper}) at="$at ${{{words}[index]}}" ;;
        esac
    done
"""


def _bash(commands: list[Command]) -> str:
    values = {
        "words": 'COMPREPLY=($(compgen -W "{words}" -- "$cur")); ',
        "file": 'COMPREPLY=($(compgen -f -- "$cur")); ',
        "folder": 'COMPREPLY=($(compgen -d -- "$cur")); ',
        "any": "",
        **{kind: f'COMPREPLY=($(compgen -W "$(_{PROGRAM}_names {kind})" -- "$cur")); ' for kind in NAMES.values()},
    }
    arms = "\n".join(_arms(commands, values))
    choices = "\n".join(f"        {shlex.quote(command.path)}) {_bash_words(command)} ;;" for command in commands)
    return f"""\
# bash completion for {PROGRAM}: source <({PROGRAM} completion bash)
_{PROGRAM}_names() {{
    {ASK} "$1" "${{COMP_WORDS[@]:1:COMP_CWORD-1}}" 2>/dev/null
}}
_{PROGRAM}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=
    # bash takes --flag=value apart at the equals sign.
    if [[ $prev == '=' ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; elif [[ $cur == '=' ]]; then cur=; fi
{_walk(commands, "COMP_WORDS", 1, "COMP_CWORD")}\
    COMPREPLY=()
    case "$at:$prev" in
{arms}
    esac
    case "$at" in
{choices}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -F _{PROGRAM} {PROGRAM}
"""


def _zsh(commands: list[Command]) -> str:
    values = {
        "words": "compadd -- {words}; ",
        "file": "_files; ",
        "folder": "_files -/; ",
        "any": "",
        **{kind: f'compadd -- ${{{{(f)"$(_{PROGRAM}_names {kind})"}}}}; ' for kind in NAMES.values()},
    }
    arms = "\n".join(_arms(commands, values))
    choices = "\n".join(f"        {shlex.quote(command.path)}) {_zsh_words(command)} ;;" for command in commands)
    return f"""\
#compdef {PROGRAM}
# zsh completion for {PROGRAM}: {PROGRAM} completion zsh > "${{fpath[1]}}/_{PROGRAM}"
_{PROGRAM}_names() {{
    {ASK} $1 "${{(@)words[2,CURRENT-1]}}" 2>/dev/null
}}
_{PROGRAM}() {{
    local previous=${{words[CURRENT-1]}}
    local -a offers
{_walk(commands, "words", 2, "CURRENT")}\
    if [[ $PREFIX == -*=* ]]; then
        previous=${{PREFIX%%=*}}
        compset -P '*='
    fi
    case "$at:$previous" in
{arms}
    esac
    case "$at" in
{choices}
    esac
    _describe {PROGRAM} offers
}}
if [[ $funcstack[1] == _{PROGRAM} ]]; then _{PROGRAM} "$@"; else compdef _{PROGRAM} {PROGRAM}; fi
"""


def _bash_words(command: Command) -> str:
    """Give what sets the words that may follow: names of the cluster too, unless a flag is being typed."""
    words = f"words={shlex.quote(' '.join(_all_words(command)))}"
    ask = f'words="$words $(_{PROGRAM}_names {command.names})"'
    return f"{words}; [[ $cur == -* ]] || {ask}" if command.names else words


def _zsh_words(command: Command) -> str:
    words = f"offers=({' '.join(map(shlex.quote, _described(command)))})"
    ask = f'compadd -- ${{(f)"$(_{PROGRAM}_names {command.names})"}}'
    return f"{words}; [[ $PREFIX == -* ]] || {ask}" if command.names else words


def _described(command: Command) -> Iterator[str]:
    """Give ``word:help`` for everything that may follow, as zsh's _describe wants it."""
    for word, text in (*command.words, *((name, flag.help) for flag in command.flags for name in flag.names)):
        yield f"{word.replace(':', chr(92) + ':')}:{text}"


def _all_words(command: Command) -> Iterator[str]:
    yield from (word for word, _ in command.words)
    yield from (name for flag in command.flags for name in flag.names)


def _fish(commands: list[Command]) -> str:
    takers = " ".join(
        shlex.quote(f"{command.path}:{name}")
        for command in commands
        for flag in command.flags
        for name in flag.names
        if flag.value
    )
    deeper = " ".join(shlex.quote(command.path) for command in commands[1:])
    lines = [
        f"# fish completion for {PROGRAM}: {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
        f"function __{PROGRAM}_at",
        f"    set -l at {PROGRAM}",
        "    set -l skip 0",
        "    for word in (commandline -opc)[2..-1]",
        "        if test $skip = 1",
        "            set skip 0",
        f'        else if contains -- "$at:$word" {takers}',
        "            set skip 1",
        f'        else if contains -- "$at $word" {deeper}',
        '            set at "$at $word"',
        "        end",
        "    end",
        '    test "$at" = "$argv"',
        "end",
        f"complete -c {PROGRAM} -f",
    ]
    for command in commands:
        start = f"complete -c {PROGRAM} -n {shlex.quote(f'__{PROGRAM}_at {command.path}')}"
        for word, text in command.words:
            lines.append(f"{start} -a {word}{_about(text)}")
        if command.names:
            lines.append(f"{start} -a '{_fish_ask(command.names)}'")
        for flag in command.flags:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
            lines.append(f"{start} {names}{_fish_value(flag)}{_about(flag.help)}")
    return "".join(f"{line}\n" for line in lines)


def _fish_value(flag: Flag) -> str:
    match flag.value:
        case "":
            return ""
        case "words":
            return f" -x -a {shlex.quote(' '.join(flag.words))}"
        case "file":
            return " -r -F"
        case "folder":
            return " -x -a '(__fish_complete_directories)'"
        case "any":
            return " -x"
        case kind:
            return f" -x -a '{_fish_ask(kind)}'"


def _fish_ask(kind: str) -> str:
    return f"({ASK} {kind} (commandline -opc)[2..-1] 2>/dev/null)"


def _about(text: str) -> str:
    return f" -d {shlex.quote(text)}" if text else ""


SHELLS: dict[str, Callable[[list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""The shells that are known, with what makes their script."""

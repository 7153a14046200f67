# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl man``: the manual page, from the same words as ``--help``. Pure."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from kmesh_bpf import __version__

SECTION = 1
FILES = (
    ("~/.kube/config", "The kubeconfig, unless KUBECONFIG or --kubeconfig names others."),
    ("docs/kmeshctl.md", "All of this at length: every column, every field of the JSON, where it comes from."),
)
ENVIRONMENT = (
    ("KUBECONFIG", "Kubeconfigs, as kubectl reads them."),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "The way to the API server, where the kubeconfig names none."),
    ("NO_COLOR", "If it is not empty, nothing is coloured unless --color=always asks for it."),
)


def page(parser: argparse.ArgumentParser) -> str:
    """Give the page in man(7)'s macros."""
    lines = [
        f'.TH {parser.prog.upper()} {SECTION} "" "kmesh-ipsec {__version__}"',
        ".SH NAME",
        rf"{parser.prog} \- {_text(_first_small(parser.description or ''))}",
        ".SH SYNOPSIS",
        rf".B {parser.prog}",
        r"[\fIFLAGS\fR] \fICOMMAND\fR",
        ".SH DESCRIPTION",
        _text(parser.description or ""),
        *_epilog(parser.epilog or ""),
        ".SH FLAGS OF EVERY COMMAND",
        *_flags(parser, {}),
        ".SH COMMANDS",
    ]
    shared = {name: True for action in parser._actions for name in action.option_strings}
    for below in _below(parser):
        lines += _command(below, shared)
    for title, rows in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        lines.append(f".SH {title}")
        for name, text in rows:
            lines += [".TP", rf"\fB{_text(name)}\fR", _text(text)]
    return "".join(f"{line}\n" for line in lines)


def _first_small(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Give the parsers of all commands, each before those below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield one
                yield from _below(one)


def _command(parser: argparse.ArgumentParser, shared: dict[str, bool]) -> Iterator[str]:
    yield f".SS {_text(parser.prog)}"
    # What stands in the usage of every command stands in its own section above.
    positional = " ".join(_arguments(parser))
    yield rf"\fB{_text(parser.prog)}\fR [\fIFLAGS\fR]{' ' if positional else ''}{positional}"
    yield ".PP"
    if parser.description:
        yield _text(parser.description)
    yield from _flags(parser, shared)
    yield from _epilog(parser.epilog or "")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not action.option_strings and action.help is not argparse.SUPPRESS:
            name = str(action.metavar or action.dest)
            count = action.nargs if isinstance(action.nargs, int) else 1
            words = " ".join([rf"\fI{_text(name)}\fR"] * count)
            yield f"[{words} ...]" if action.nargs == "*" else words


def _flags(parser: argparse.ArgumentParser, shared: dict[str, bool]) -> Iterator[str]:
    for action in parser._actions:
        if not action.option_strings or action.option_strings[0] in shared:
            continue
        names = ", ".join(rf"\fB{_text(name)}\fR" for name in action.option_strings)
        yield ".TP"
        yield names + _value(action)
        yield _text((action.help or "") % {"default": action.default})


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    value = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
    shown = rf"\fI{_text(value)}\fR"
    return f" [{shown}]" if action.nargs == "?" else f" {shown}"


def _epilog(text: str) -> Iterator[str]:
    """Give an epilog: indented lines as they are, others as paragraphs."""
    yield ".PP"
    literal = False
    for line in text.splitlines():
        example = line.startswith("  ")
        if example != literal:
            yield ".PP\n.nf\n.RS" if example else ".RE\n.fi\n.PP"
            literal = example
        if line.strip():
            yield _text(line.strip())
        elif not example:
            yield ".PP"
    if literal:
        yield ".RE\n.fi"


def _text(text: str) -> str:
    """Give a text as it may stand on a line: nothing in it is a request or an escape, and a hyphen is the ASCII one."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped

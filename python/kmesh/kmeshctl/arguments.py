# SPDX-License-Identifier: Apache-2.0
"""kmeshctl's command line: what may be said, and its help. Errors are raised, never printed, and show no key."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from kmesh.cluster.objects import NAMESPACE
from kmesh.cluster.secret import KEY_DIGITS
from kmesh.kmeshctl import commands as others
from kmesh.kmeshctl import upstream
from kmesh.kmeshctl.output import HIDDEN, add_form, duration, span
from kmesh.text import file_name, path, short
from kmesh_bpf import ConfigError, __version__

PROGRAM, PLUGIN = "kmeshctl", "kubectl kmesh"
"""What it is called, and what as a plugin of kubectl's, which finds it as kubectl-kmesh on PATH."""
EXIT_STATUS = """
exit status: 0 done, 1 failed, 2 refused (nothing was written)
"""
TOP_EPILOG = """\
examples:
  kmeshctl secret --key=$(dd if=/dev/urandom count=36 bs=1 2>/dev/null | xxd -p -c 64)
  kmeshctl secret create                   # makes a key, or replaces it
  kmeshctl status                          # is every node as it should be?
  kmeshctl explain shop/web backend/api    # is the traffic between these two encrypted?
  kmeshctl dashboard                       # the same in a browser
  kmeshctl bundle                          # all that a bug report needs, and no key
  kmeshctl doctor                          # on a node: does anything stand in the way there?
  kmeshctl monitor --only dropped          # on a node: what is dropped, as it happens, and why
  kmeshctl completion bash
  kmeshctl version -o json

kmeshctl COMMAND --help, or kmeshctl help COMMAND, tells more about each.
"""
EPILOG = """\
examples:
  kmeshctl secret --key=$(dd if=/dev/urandom count=36 bs=1 2>/dev/null | xxd -p -c 64)
  kmeshctl secret create --random          # the key never enters a command line
  kmeshctl secret create --key-file=-      # 72 digits on standard input
  kmeshctl secret get -o json
  kmeshctl secret delete

--key shows in the machine's process list while kmeshctl runs; --key-file and --random do not.
"""
CREATE_EPILOG = """\
examples:
  kmeshctl secret create                   # a random key: it never enters a command line
  kmeshctl secret create --key-file=-      # 72 digits on standard input
  kmeshctl secret create --wait            # until every node uses it, 5 minutes at most
  kmeshctl secret create --if-older-than 30d   # for whoever runs it each day

The first key gets SPI 1, every other one an SPI above all that are in use; nodes move to it without losing a packet.
A key is used once: one that the Secret holds or has held is refused, and one of 36 equal bytes.
"""
GET_EPILOG = """\
examples:
  kmeshctl secret get
  kmeshctl secret get -o json
"""
DELETE_EPILOG = """\
examples:
  kmeshctl secret delete
"""
VERSION_EPILOG = """\
examples:
  kmeshctl version
  kmeshctl version -o json
"""
HELP_EPILOG = """\
examples:
  kmeshctl help
  kmeshctl help secret create
"""
WAIT_SECONDS = 300.0
"""How long --wait waits: ten times what a replacement takes on an idle cluster."""
KEY_LIKE = re.compile(r"[0-9A-Fa-f]{8,}")


class Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of exiting; a key that stands where it should not is hidden in the message."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        if self.epilog and self.prog.startswith(PLUGIN):
            self.epilog = self.epilog.replace(f"  {PROGRAM} ", f"  {PLUGIN} ").replace(f"({PROGRAM} ", f"({PLUGIN} ")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        words = (short(word) for word in KEY_LIKE.sub(HIDDEN, message).split(" "))
        raise ConfigError(f"{' '.join(words)}{self._meant(message)} (see {self.prog} --help)")

    def _meant(self, message: str) -> str:
        """Say which word of ours is the nearest to one that is none."""
        from difflib import get_close_matches  # noqa: PLC0415 # of no use to who types well

        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            near = get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), 1)
        elif wrong := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            near = get_close_matches(wrong[1], sorted(set(_flags_below(self))), 1)
        else:
            return ""
        return f"; did you mean {near[0]}?" if near else ""


def _flags_below(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Give the flags of a parser and of all commands below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _flags_below(below)


def parse(argv: Sequence[str], program: str = PROGRAM) -> argparse.Namespace:
    """Read a command line; where it asks for help, or names no command, help is printed and the program ends.

    Raises:
        ConfigError: it means nothing, or what it asks for is not provided.
        SystemExit: help, or the version, was printed.

    """
    upstream.refuse(cluster_flags(program).parse_known_args(argv)[1])
    flags = parser(program).parse_args(argv)
    match flags.command:
        case None:
            return parse(["--help"], program)
        case "help":
            return parse([*flags.words, "--help"], program)
        case "secret" if flags.action is None and flags.direct_key is None:
            return parse(["secret", "--help"], program)
        case "version" if flags.pod is not None:
            raise ConfigError(
                "version POD is not provided by this project: kmeshctl status shows each daemon's version"
            )
    return flags


def cluster_flags(program: str = PROGRAM) -> Parser:
    """Make the parser of the flags that name the cluster, and how it is asked, which every command takes."""
    shared = Parser(prog=program, add_help=False)
    # SUPPRESS: it may stand before or behind the command, and a default of the latter would undo the former.
    for flags, settings in SHARED.items():
        shared.add_argument(*flags, default=argparse.SUPPRESS, **settings)
    return shared


def _age(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write 30d, 12h or 45m") from error


def _timeout(text: str) -> float:
    """Read what kubectl takes: a number of seconds or a length of time; 0 is no bound of its own."""
    return 0.0 if text in ("0", "0s") else _age(f"{text}s" if text.isdecimal() else text)


SHARED: dict[tuple[str, ...], dict[str, Any]] = {
    ("--manifests",): {"type": path, "metavar": "DIR", "help": "the cluster: a folder of Kubernetes manifests"},
    ("--kubeconfig",): {
        "type": file_name,
        "metavar": "FILE",
        "help": "the cluster: the API server of this file (default: as kubectl finds it)",
    },
    ("--context",): {"metavar": "CONTEXT", "help": "a context of the kubeconfig (default: its current one)"},
    ("-n", "--namespace"): {
        "metavar": "NAMESPACE",
        "help": f"where Kmesh is (default: {NAMESPACE}); explain: where pods are (default)",
    },
    ("--as",): {"dest": "as_user", "metavar": "USER", "help": "ask in the name of this user"},
    ("--as-group",): {
        "dest": "as_groups",
        "action": "append",
        "metavar": "GROUP",
        "help": "ask in the name of this group, too (several)",
    },
    ("--request-timeout",): {
        "type": _timeout,
        "metavar": "TIME",
        "help": "give up a request that is not answered after this time: 5s, 1m (default: 10s to look, 30s to write)",
    },
    ("--color", "--colour"): {
        "choices": ("auto", "always", "never"),
        "help": "colour the answer (default, auto: at a terminal, unless NO_COLOR is set)",
    },
}
"""Flags that every command takes."""


def parser(program: str = PROGRAM) -> Parser:
    """Make the parser.

    ``command`` is None, ``help``, ``version``, ``completion``, ``man``, ``status``, ``explain``, ``doctor``,
    ``monitor``, ``bundle``, ``dashboard`` or ``secret``; ``action`` of the latter None, ``create``, ``get`` or
    ``delete``; ``direct_key`` the key of the guide's form, ``secret --key=HEX``. What SHARED has is there if given.
    """
    shared = cluster_flags(program)

    def look(epilog: str) -> dict[str, Any]:
        return {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": epilog}

    about = "Works on Kmesh's IPsec: the key, the nodes, the traffic between pods."
    top = Parser(prog=program, description=about, parents=[shared], **look(TOP_EPILOG + EXIT_STATUS))
    top.add_argument(
        "--version", action="version", version=f"{program} {__version__}", help="show the version and exit"
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    version = commands.add_parser("version", help="print the version", parents=[shared], **look(VERSION_EPILOG))
    add_form(version)
    version.add_argument("pod", nargs="?", help=argparse.SUPPRESS)  # of Go Kmesh's kmeshctl
    about_help = commands.add_parser("help", help="show the help of a command", parents=[shared], **look(HELP_EPILOG))
    about_help.add_argument("words", nargs="*", metavar="COMMAND", help="a command, and what it can do")
    others.register(commands, shared)
    secret = commands.add_parser(
        "secret", help="create, replace, show or delete the key", parents=[shared], **look(EPILOG + EXIT_STATUS)
    )
    digits = f"{KEY_DIGITS} hexadecimal digits"
    secret.add_argument("--key", "-k", dest="direct_key", metavar="HEX", help=f"{digits}: creates or replaces the key")
    actions = secret.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
    create = actions.add_parser("create", help="create or replace the key", parents=[shared], **look(CREATE_EPILOG))
    origin = create.add_mutually_exclusive_group()
    origin.add_argument("--key", "-k", metavar="HEX", help=f"{digits} (show in the process list)")
    origin.add_argument(
        "--key-file", type=file_name, metavar="FILE", help=f"a file with the {digits}; - is standard input"
    )
    origin.add_argument("--random", action="store_true", help="make one (default)")
    create.add_argument(
        "--if-older-than",
        type=_age,
        metavar="TIME",
        help="replace the key only if it was stored longer ago than that: 30d, 12h, 45m",
    )
    create.add_argument(
        "--wait",
        type=_age,
        nargs="?",
        const=WAIT_SECONDS,
        metavar="TIME",
        help=f"wait until all nodes use it, at most so long (default: {span(WAIT_SECONDS)})",
    )
    get = actions.add_parser("get", help="show the key's version and algorithm", parents=[shared], **look(GET_EPILOG))
    get.add_argument("--show-key", action="store_true", help="show the key itself, too")
    add_form(get)
    gone = "delete the key: nodes keep using what they hold; that it was used is remembered"
    actions.add_parser("delete", help=gone, parents=[shared], **look(DELETE_EPILOG))
    return top

# SPDX-License-Identifier: Apache-2.0
"""kmeshctl: the operator's tool, and kubectl-kmesh, the plugin. What a command does is in its own module."""

from __future__ import annotations

import argparse
import io
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from typing import TextIO

from kmesh import streams, unexpected
from kmesh.cluster.source import ClusterSource
from kmesh.errors import OutputError
from kmesh.kmeshctl import opening, version
from kmesh.kmeshctl.arguments import PLUGIN, PROGRAM, parse, parser
from kmesh.kmeshctl.terminal import Reader, reader
from kmesh_bpf import ConfigError

EXIT_FAILED, EXIT_REFUSED = 1, 2
SILENT_SECONDS = 2.0
"""After so long it is said who is asked."""
COMPLETE = "__complete"
"""The command by which the scripts of ``kmeshctl completion`` ask for names; nobody types it."""


def main(
    argv: Sequence[str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    environment: Mapping[str, str] | None = None,
    program: str = PROGRAM,
) -> int:
    """Run a command; give the exit status. ``environment`` may name a kubeconfig; ``program``: what it is called.

    Raises:
        OutputError: ``stdout`` cannot be written.

    """
    try:
        return _command(argv, stdin, stdout, stderr, environment or {}, program)
    except OutputError:
        raise  # of the streams, which kmesh.streams knows
    except Exception as error:  # noqa: BLE001 # no traceback is what a user sees
        said = unexpected.sentence(error)
        if program != PROGRAM:  # a way out that is a command of ours is one that can be pasted
            said = said.replace(f"{PROGRAM} ", f"{program} ")
        print(f"{program}: {said}", file=stderr)
        return EXIT_REFUSED if isinstance(error, ConfigError) else EXIT_FAILED


def _command(
    argv: Sequence[str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    environment: Mapping[str, str],
    program: str,
) -> int:
    if tuple(argv[:1]) == (COMPLETE,):
        from kmesh.kmeshctl import names  # noqa: PLC0415 # of nobody else's use

        return names.run(argv[1:], stdout, environment)
    try:
        with redirect_stdout(stdout):  # argparse prints its help to sys.stdout
            flags = parse(argv, program)
    except SystemExit as done:  # argparse, behind --help
        return int(done.code or 0)
    to = reader(stdout, vars(flags).get("color", "auto"), environment)
    match flags.command:
        case "version":
            return version.run(flags, stdout, program)
        case "completion":
            from kmesh.kmeshctl import completion  # noqa: PLC0415 # likewise

            stdout.write(completion.script(parser(), flags.shell))
            return 0
        case "man":
            from kmesh.kmeshctl import manual  # noqa: PLC0415 # likewise

            stdout.write(manual.page(parser()))
            return 0
        case "bundle":
            from kmesh.kmeshctl import bundle  # noqa: PLC0415 # likewise

            return bundle.run(flags, environment, stdout, stderr)
        case "doctor":
            from kmesh.kmeshctl import doctor  # noqa: PLC0415 # likewise

            return doctor.run(flags, stdout)
        case "monitor":
            from kmesh.kmeshctl import monitor  # noqa: PLC0415 # likewise

            return monitor.run(flags, lambda: opening.cluster(flags, environment), stdout, stderr)
    with closing(opening.cluster(flags, environment)) as source, _telling_whom(flags, source, stderr, program):
        return _run(flags, source, stdin, stdout, stderr, to)


@contextmanager
def _telling_whom(
    flags: argparse.Namespace, source: ClusterSource, stderr: TextIO, program: str = PROGRAM
) -> Iterator[None]:
    """Say who is asked, where that takes a while; what is shown again and again needs nobody to say so."""
    server = getattr(source, "server", "")
    again = any(vars(flags).get(one) is not None for one in ("watch", "wait"))
    if not server or again or flags.command == "dashboard":
        yield
        return

    def say() -> None:
        with suppress(OSError, ValueError):  # nobody listens
            print(f"{program}: asking {server} …", file=stderr, flush=True)

    waiting = threading.Timer(SILENT_SECONDS, say)
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def _run(
    flags: argparse.Namespace, source: ClusterSource, stdin: TextIO, stdout: TextIO, stderr: TextIO, to: Reader
) -> int:
    # Each brings what the others need not: a command starts as fast as it can.
    match flags.command:
        case "status":
            from kmesh.kmeshctl import status  # noqa: PLC0415

            return status.run(flags, source, stdout, reader=to)
        case "explain":
            from kmesh.kmeshctl import explain  # noqa: PLC0415

            return explain.run(flags, source, stdout, reader=to)
        case "dashboard":
            from kmesh.kmeshctl import dashboard  # noqa: PLC0415

            return dashboard.run(flags, source, stdout)
        case _:
            from kmesh.kmeshctl import secrets  # noqa: PLC0415

            return secrets.run(flags, source, stdin, stdout, stderr)


def entry(program: str = PROGRAM) -> None:
    """Entry point of the console script."""
    streams.keep_memory_private()
    stdin = sys.stdin or io.StringIO()
    sys.exit(streams.run(program, lambda out, errors: main(sys.argv[1:], stdin, out, errors, os.environ, program)))


def plugin() -> None:
    """Entry point of kubectl's plugin, which kubectl runs as ``kubectl kmesh``."""
    entry(PLUGIN)

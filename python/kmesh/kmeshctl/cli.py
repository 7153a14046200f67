# SPDX-License-Identifier: Apache-2.0
"""kmeshctl: the operator's tool. Keys go in and are never shown, unless --show-key asks for it."""

from __future__ import annotations

import argparse
import io
import json
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from kmesh import streams, unexpected
from kmesh.cluster import secret
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.objects import NAMESPACE, SECRET_NAME, ClusterObjects
from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.errors import ClusterError, OutputError
from kmesh.kmeshctl import completion, doctor, explain, health, monitor, status, waiting
from kmesh.kmeshctl.arguments import HIDDEN, parse, parser
from kmesh.kmeshctl.output import span
from kmesh.text import one_line, short
from kmesh_bpf import ConfigError, Key, __version__

EXIT_FAILED, EXIT_REFUSED = 1, 2
KINDS = {
    "monitor": frozenset({"Node", "Pod"}),
    "secret": frozenset({"KmeshNodeInfo", "Secret"}),
    "status": frozenset({"KmeshNodeInfo", "Namespace", "Node", "Pod", "Secret"}),
}
"""What a command needs of a cluster; all others need everything."""
KEY_BYTES = secret.KEY_DIGITS // 2
KEY_FILE_LIMIT = 4096
"""Characters read of a key file: enough to tell what is wrong with it, and an end for /dev/urandom."""
WRITER_SECONDS = 30.0
"""How long whoever writes a key into a pipe may take to begin."""
SILENT_SECONDS = 2.0
"""After so long it is said who is asked."""
LOOK_SECONDS = 1.0
"""How often whoever waits looks."""
DELETE_IT = "delete it first: kmeshctl secret delete"


def main(
    argv: Sequence[str], stdin: TextIO, stdout: TextIO, stderr: TextIO, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command; give the exit status. ``environment`` may name a kubeconfig.

    Raises:
        OutputError: ``stdout`` cannot be written.

    """
    try:
        return _command(argv, stdin, stdout, stderr, environment or {})
    except ConfigError as error:
        print(f"kmeshctl: {unexpected.sentence(error)}", file=stderr)
        return EXIT_REFUSED
    except OutputError:
        raise  # of the streams, which kmesh.streams knows
    except Exception as error:  # noqa: BLE001 # no traceback is what a user sees
        print(f"kmeshctl: {unexpected.sentence(error)}", file=stderr)
        return EXIT_FAILED


def _command(argv: Sequence[str], stdin: TextIO, stdout: TextIO, stderr: TextIO, environment: Mapping[str, str]) -> int:
    try:
        with redirect_stdout(stdout):  # argparse prints its help to sys.stdout
            flags = parse(argv)
    except SystemExit as done:  # argparse, behind --help
        return int(done.code or 0)
    if flags.command == "version":
        as_json = flags.output == "json"
        print(json.dumps({"version": __version__}) if as_json else f"kmeshctl {__version__}", file=stdout)
        return 0
    if flags.command == "completion":
        stdout.write(completion.script(parser(), flags.shell))
        return 0
    if flags.command == "doctor":
        return doctor.run(flags, stdout)
    if flags.command == "monitor":
        return monitor.run(flags, lambda: _source(flags, environment), stdout, stderr)
    with closing(_source(flags, environment)) as source, _telling_whom(flags, source, stderr):
        return _run(flags, source, stdin, stdout, stderr)


@contextmanager
def _telling_whom(flags: argparse.Namespace, source: ClusterSource, stderr: TextIO) -> Iterator[None]:
    """Say who is asked, where that takes a while; what is shown again and again needs nobody to say so."""
    server = getattr(source, "server", "")
    if not server or any(vars(flags).get(one) is not None for one in ("watch", "wait")):
        yield
        return

    def say() -> None:
        with suppress(OSError, ValueError):  # nobody listens
            print(f"kmeshctl: asking {server} …", file=stderr, flush=True)

    waiting = threading.Timer(SILENT_SECONDS, say)
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def _source(flags: argparse.Namespace, environment: Mapping[str, str]) -> ClusterSource:
    given = vars(flags)
    folder, kubeconfig, context = (given.get(name) for name in ("manifests", "kubeconfig", "context"))
    explained = flags.command == "explain"
    if folder is None:
        from kmesh.cluster.kubernetes.connection import connect  # noqa: PLC0415 # slow, and a folder needs none of it
        from kmesh.cluster.kubernetes.resources import OF_OPERATORS  # noqa: PLC0415 # likewise
        from kmesh.cluster.kubernetes.source import EVERYTHING, KubernetesCluster, Pods  # noqa: PLC0415 # likewise

        connection = connect(kubeconfig, context, environment, OF_OPERATORS)
        kinds = KINDS.get(flags.command, EVERYTHING)
        # As in kubectl, -n is where the things are that are asked for: there the pods, else Kmesh's own.
        namespace = NAMESPACE if explained else given.get("namespace", NAMESPACE)
        wanted = {"explain": Pods.EVERY, "monitor": Pods.EVERY, "status": Pods.UNANNOUNCED}
        pods = wanted.get(flags.command, Pods.ENROLLED)
        return KubernetesCluster(connection, namespace=namespace, kinds=kinds, pods=pods, hasty=True)
    if kubeconfig or context or ("namespace" in given and not explained):
        raise ConfigError("--manifests names a cluster of its own; leave out --kubeconfig, --context, --namespace")
    return FolderCluster(folder)


def _run(flags: argparse.Namespace, source: ClusterSource, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    match flags.command:
        case "status":
            return status.run(flags, source, stdout)
        case "explain":
            return explain.run(flags, source, stdout)
        case _:
            return _secret(flags, source, stdin, stdout, stderr)


def _secret(flags: argparse.Namespace, source: ClusterSource, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    if flags.action is not None and flags.direct_key is not None:
        raise ConfigError(
            f"--key does not go before {flags.action}; write: secret --key=HEX, or secret create --key=HEX"
        )
    match flags.action:
        case "get":
            return _get(flags, source, stdout, stderr)
        case "delete":
            return _delete(source, stdout)
        case _:
            return _replace(flags, source, _new_key(flags, stdin), stdout, stderr)


def _new_key(flags: argparse.Namespace, stdin: TextIO) -> Key:
    if flags.action is None:
        return secret.parse_key_text(flags.direct_key)
    if flags.key is not None:
        return secret.parse_key_text(flags.key)
    if flags.key_file is not None:
        return secret.parse_key_text(_read(flags.key_file, stdin))
    return Key(os.urandom(KEY_BYTES))


def _read(name: str, stdin: TextIO) -> str:
    try:
        if name == "-":
            return stdin.read(KEY_FILE_LIMIT)
        with open(name, encoding="utf-8", opener=_without_waiting) as file:  # Path's has no opener
            _await_writer(name, file.fileno())
            return file.read(KEY_FILE_LIMIT)
    except OSError as error:
        raise ConfigError(f"cannot read {short(name)}: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: its text quotes a byte of what may be a key.
        raise ConfigError(f"{name} is no text; give {secret.KEY_DIGITS} hexadecimal digits") from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _await_writer(name: str, descriptor: int) -> None:
    """Wait for whoever writes into a pipe, as <(COMMAND) of a shell does.

    Raises:
        ConfigError: nobody does.

    """
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        if not waiting.poll(WRITER_SECONDS * 1000):
            raise ConfigError(f"cannot read {short(name)}: nobody has written into it for {WRITER_SECONDS:g} s")
    os.set_blocking(descriptor, True)


class _YoungError(ClusterError):
    """The key need not be replaced yet; says how old it is."""


def _replace(flags: argparse.Namespace, source: ClusterSource, key: Key, stdout: TextIO, stderr: TextIO) -> int:
    least_age, patience = (vars(flags).get(name) for name in ("if_older_than", "wait"))
    version, left_out = 0, {}

    def change(before: Mapping[str, Any] | None, objects: ClusterObjects) -> Mapping[str, Any]:
        nonlocal version, left_out
        if least_age is not None and secret.holds_key(before):
            _check_age(before, least_age)
        used, announced = secret.history(before), {info.name: info.spi for info in objects.node_infos}
        held = _held(before)
        secret.check_new(key, held, used)
        left_out = secret.uncounted(held, announced)
        try:
            new = secret.next_keys(held, announced, key, used)
        except ConfigError as error:
            raise ClusterError(f"the key in the cluster cannot be replaced: {error}") from error
        version = new.current
        return secret.render(new)

    try:
        source.change_secret(change)
    except _YoungError as young:
        _tell_done(str(young), stdout)
        return 0
    for name, spi in left_out.items():
        way_out = f"delete its KmeshNodeInfo: kubectl delete kmeshnodeinfo -n {NAMESPACE} {name}"
        print(f"kmeshctl: {name} announces SPI {spi}, far above all others; not counted: {way_out}", file=stderr)
    _tell_done(f"key stored: SPI {version}, {secret.ALGORITHM}", stdout)
    return 0 if patience is None else _wait(source, version, patience, stdout, stderr)


def _wait(source: ClusterSource, version: int, patience: float, stdout: TextIO, stderr: TextIO) -> int:
    """Wait until all nodes use a version, telling how far they are; give the exit status."""
    until, told = time.monotonic() + patience, ""
    while True:
        reports, _ = health.read_reports(source.statuses())
        now = waiting.progress(read_whole(source).node_infos, reports, version, time.time())
        if now.over:
            print(now, file=stdout)
            return 0
        left = until - time.monotonic()
        if left <= 0:
            raise ClusterError(f"after {span(patience)} {now}; kmeshctl status tells more")
        if str(now) != told:
            told = str(now)
            print(f"kmeshctl: {told}", file=stderr, flush=True)
        time.sleep(min(LOOK_SECONDS, left))


def _check_age(before: Mapping[str, Any] | None, least: float) -> None:
    """Let a key be replaced that is old enough.

    Raises:
        _YoungError: it is not.
        ClusterError: nobody knows.

    """
    since = health.changed_at(before) if before is not None else None
    if since is None:
        raise ClusterError("the cluster does not say when the key was stored; leave out --if-older-than")
    age = time.time() - since
    if age < least:
        raise _YoungError(f"nothing done: the key was stored {span(age)} ago, less than {span(least)}")


def _tell_done(sentence: str, stdout: TextIO) -> None:
    """Tell what was done; who cannot be told must not take it for not done.

    Raises:
        OutputError: with the sentence.

    """
    try:
        print(sentence, file=stdout, flush=True)
    except OutputError as error:
        raise OutputError(error.errno, sentence) from error


def _held(before: Mapping[str, Any] | None) -> secret.Keyring | None:
    try:
        return secret.parse_keys(before) if before is not None and secret.holds_key(before) else None
    except ConfigError as error:
        raise ClusterError(f"the key in the cluster cannot be replaced: {error}; {DELETE_IT}") from error


def _delete(source: ClusterSource, stdout: TextIO) -> int:
    def change(before: Mapping[str, Any] | None, _: ClusterObjects) -> Mapping[str, Any] | None:
        if not secret.holds_key(before):
            raise _no_key()
        held = None
        with suppress(ClusterError):  # a key that cannot be read can be deleted, and only its history stays
            held = _held(before)
        return secret.render_deleted(secret.after(held, secret.history(before)))

    source.change_secret(change)
    _tell_done("key deleted; nodes keep using what they hold, the next key gets a higher SPI", stdout)
    return 0


def _get(flags: argparse.Namespace, source: ClusterSource, stdout: TextIO, stderr: TextIO) -> int:
    objects = read_whole(source)
    if objects.secret is None or not secret.holds_key(objects.secret):
        for problem in objects.problems:
            print(f"kmeshctl: {one_line(problem)}", file=stderr)  # it may be in there
        raise _no_key()
    try:
        keyring = secret.parse_keys(objects.secret)
    except ConfigError as error:
        raise ClusterError(f"{error}; {DELETE_IT}") from error
    rows = [
        {
            "spi": version,
            "algorithm": secret.ALGORITHM,
            "icvBits": secret.ICV_BITS,
            "inForce": version == keyring.current,
            "key": keyring.keys[version].reveal().hex() if flags.show_key else HIDDEN,
        }
        for version in sorted(keyring.keys, reverse=True)
    ]
    if flags.output == "json":
        print(json.dumps(rows, indent=2), file=stdout)
        return 0
    print(f"{'SPI':<6}{'ALGORITHM':<20}{'ICV':<6}{'IN FORCE':<10}KEY", file=stdout)
    for row in rows:
        force = "yes" if row["inForce"] else "no"
        print(f"{row['spi']:<6}{row['algorithm']:<20}{row['icvBits']:<6}{force:<10}{row['key']}", file=stdout)
    return 0


def _no_key() -> ClusterError:
    return ClusterError(
        f"the cluster holds no key (Secret {NAMESPACE}/{SECRET_NAME}); make one: kmeshctl secret create"
    )


def entry() -> None:
    """Entry point of the console script."""
    streams.keep_memory_private()
    sys.exit(
        streams.run(
            "kmeshctl", lambda out, errors: main(sys.argv[1:], sys.stdin or io.StringIO(), out, errors, os.environ)
        )
    )

# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl secret``: keys go in and are never shown, unless --show-key asks for it."""

from __future__ import annotations

import argparse
import os
import select
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from kmesh.cluster import secret
from kmesh.cluster.objects import NAMESPACE, SECRET_NAME, ClusterObjects
from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.errors import ClusterError, OutputError
from kmesh.kmeshctl import health, waiting
from kmesh.kmeshctl.output import HIDDEN, STRUCTURED, span, structured, table
from kmesh.text import one_line, short
from kmesh_bpf import ConfigError, Key

KEY_BYTES = secret.KEY_DIGITS // 2
KEY_FILE_LIMIT = 4096
"""Characters read of a key file: enough to tell what is wrong with it, and an end for /dev/urandom."""
WRITER_SECONDS = 30.0
"""How long whoever writes a key into a pipe may take to begin."""
LOOK_SECONDS = 1.0
"""How often whoever waits looks."""
DELETE_IT = "delete it first: kmeshctl secret delete"


def run(flags: argparse.Namespace, source: ClusterSource, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """Do what the command line says; give the exit status.

    Raises:
        ConfigError: it, or the key, cannot be used.
        ClusterError: the cluster cannot do it.

    """
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
    if flags.output in STRUCTURED:
        stdout.write(structured(rows, flags.output))
        return 0
    head = ["SPI", "ALGORITHM", "ICV", "IN FORCE", "KEY"]
    shown = [[str(row[one]) for one in ("spi", "algorithm", "icvBits")] for row in rows]
    for line, row in zip(shown, rows, strict=True):
        line.extend(("yes" if row["inForce"] else "no", str(row["key"])))
    if flags.output == "wide":
        at = health.changed_at(objects.secret)
        head.append("SECRET CHANGED")
        for line in shown:
            line.append(f"{span(time.time() - at)} ago" if at is not None else "")
    stdout.write(table(head, shown))
    return 0


def _no_key() -> ClusterError:
    return ClusterError(
        f"the cluster holds no key (Secret {NAMESPACE}/{SECRET_NAME}); make one: kmeshctl secret create"
    )

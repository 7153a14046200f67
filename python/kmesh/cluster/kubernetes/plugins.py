# SPDX-License-Identifier: Apache-2.0
"""The programs that make credentials for a kubeconfig (KEP 541): run, bounded, and what they give checked."""

from __future__ import annotations

import binascii
import json
import math
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kmesh.cluster.kubernetes.kubeconfig import CERTIFICATE, KEY, Plugin, bearer
from kmesh_bpf import ConfigError

PLUGIN_SECONDS, PROMPT_SECONDS = 30.0, 300.0
"""How long a plugin may take: by itself, and where it may ask somebody at a terminal."""
MOST_OUTPUT = 1 << 20
"""Bytes of what one prints, and of its errors."""
GLANCE_SECONDS = 0.05
"""How often it is looked whether one has ended that leaves its pipes to others."""
TOKEN_LIKE = re.compile(r"[A-Za-z0-9+/=_.~-]{32,}")
"""In a plugin's words, what could be a token or a key."""
MESSAGE_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Made:
    """What a plugin made."""

    token: str = field(repr=False)
    material: Mapping[str, str] = field(repr=False)
    expires: float


def run(plugin: Plugin, source: str) -> Made:
    """Have a plugin make credentials; ``source`` names the configuration in errors.

    Raises:
        ConfigError: it cannot be run, has failed, or gives something else than it should, or too much, or too late.

    """
    where = f"{source}: the plugin {plugin.command}"
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if plugin.mode == "Always" and not terminal:
        raise ConfigError(f"{where} wants to ask somebody (interactiveMode: Always), and there is no terminal")
    interactive = terminal and plugin.mode != "Never"
    spec: dict[str, Any] = {"interactive": interactive}
    if plugin.cluster is not None:
        spec["cluster"] = plugin.cluster
    told = json.dumps({"apiVersion": plugin.api, "kind": "ExecCredential", "spec": spec})
    limit = PROMPT_SECONDS if interactive else PLUGIN_SECONDS
    try:
        status, printed, said = _finish(plugin, {**os.environ, "KUBERNETES_EXEC_INFO": told}, limit, interactive)
    except TimeoutError:
        raise ConfigError(f"{where} has not answered in {limit:g} s") from None
    except OSError as error:
        hint = f"; {plugin.hint}" if plugin.hint else ""
        raise ConfigError(f"{where} cannot be run: {error.strerror}{hint}") from error
    except _EndlessError:
        raise ConfigError(f"{where} gives more than {MOST_OUTPUT >> 20} MiB") from None
    if status != 0:
        lines = said.decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "it says nothing")
        last = TOKEN_LIKE.sub("(hidden)", last)[:MESSAGE_LIMIT]
        raise ConfigError(f"{where} has failed (status {status}): {last}")
    return _made(printed, plugin.api, where)


class _EndlessError(Exception):
    """It prints more than anybody has asked for."""


def _finish(
    plugin: Plugin, environment: Mapping[str, str], limit: float, interactive: bool
) -> tuple[int, bytes, bytes]:
    """Run it to its end, or to that of its patience; give its status and what it printed, to its errors as well.

    A process of its own that it leaves behind may keep the pipes open: once it has ended itself, its answer is there.

    Raises:
        OSError: it cannot be run.
        TimeoutError, _EndlessError: it was ended, for it took too long, or printed too much.

    """
    child = subprocess.Popen(
        [plugin.command, *plugin.args],
        env={**environment, **plugin.environment},
        stdin=None if interactive else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if interactive else subprocess.PIPE,
    )
    streams = [one for one in (child.stdout, child.stderr) if one is not None]
    found = {one: bytearray() for one in streams}
    until = time.monotonic() + limit
    try:
        with selectors.DefaultSelector() as selector:
            for one in streams:
                selector.register(one, selectors.EVENT_READ)
            while selector.get_map():
                over = child.poll() is not None
                ready = selector.select(0 if over else GLANCE_SECONDS)
                if over and not ready:
                    break
                for key, _ in ready:
                    if not _read(key.fd, found[key.fileobj]):  # type: ignore[index] # it is one of the streams
                        selector.unregister(key.fileobj)
                if time.monotonic() > until:
                    raise TimeoutError
        status = child.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        # Not chained: it shows the arguments.
        raise TimeoutError from None
    finally:
        child.kill()  # once it has ended nobody is
        child.wait()
        for one in streams:
            one.close()
    errors = found[child.stderr] if child.stderr is not None else b""
    return status, bytes(found[streams[0]]), bytes(errors)


def _read(descriptor: int, into: bytearray) -> bool:
    """Take what has come; False: that was all."""
    piece = os.read(descriptor, 1 << 16)
    into += piece
    if len(into) > MOST_OUTPUT:
        raise _EndlessError
    return bool(piece)


def _made(output: bytes, api: str, where: str) -> Made:
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} gives no JSON") from None
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, dict) or answer.get("kind") != "ExecCredential" or answer.get("apiVersion") != api:
        raise ConfigError(f"{where} gives no ExecCredential of {api} with a status")
    names = ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    token, certificate, key, expires = (status.get(name) or "" for name in names)
    if not all(isinstance(one, str) for one in (token, certificate, key, expires)):
        raise ConfigError(f"{where} gives what is no text as one of {', '.join(names)}")
    if bool(certificate) != bool(key) or not (token or certificate):
        raise ConfigError(f"{where} gives neither a token nor a certificate with its key")
    coded = {f"{CERTIFICATE}-data": certificate, f"{KEY}-data": key} if certificate else {}
    return Made(
        bearer(token, f"what {where} gives as token") if token else "",
        {name: binascii.b2a_base64(text.encode(), newline=False).decode() for name, text in coded.items()},
        _time(expires, where) if expires else math.inf,
    )


def _time(text: str, where: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{where} gives an expirationTimestamp that is no time") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()

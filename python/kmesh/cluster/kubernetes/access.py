# SPDX-License-Identifier: Apache-2.0
"""The files and programs behind a server and who we are to it: kubeconfigs, certificates, tokens, plugins.

What cannot be had is refused by name, never left out: a request that goes out as nobody is answered by nobody's view.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
import ssl
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from kmesh.cluster.kubernetes import plugins
from kmesh.cluster.kubernetes.kubeconfig import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    File,
    Target,
    bearer,
    choose,
    names,
    proxy_of,
)
from kmesh_bpf import ConfigError

log = logging.getLogger("kmesh")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its account."""
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
"""Where it finds the server, in its environment."""
DEFAULT_KUBECONFIG = "~/.kube/config"
MOST_CONFIG, MOST_FILE = 16 << 20, 1 << 20
"""Bytes read at most of a kubeconfig, and of a token or a certificate."""
TOKEN_SECONDS = 60.0
"""A token's file is read anew after so long, as client-go does: it is replaced long before the token expires."""
EARLY_SECONDS = 10.0
"""Credentials of a plugin are renewed so long before they expire."""
LAST_TIME = 253402300800
"""Seconds since the epoch, the year 10000: what is later is no time."""


@dataclass(frozen=True, slots=True)
class Access:
    """A way to the server. ``token`` gives the one to send now, empty: none.

    ``expires``: seconds since the epoch from which on credentials must be made anew; a token's file looks after itself.
    """

    target: Target
    tls: ssl.SSLContext | None = field(repr=False)
    token: Callable[[], str] = field(repr=False)
    expires: float = math.inf


def read_file(path: str, most: int, what: str) -> bytes:
    """Read a regular file whole.

    Raises:
        ConfigError: it cannot be read, is longer than ``most`` bytes, or no regular file.

    """
    try:
        # Not blocking: to open a FIFO would wait for whoever writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{what} {path} is no regular file")
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name cannot be one"
        raise ConfigError(f"{what} {path} cannot be read: {why}") from error
    if len(content) > most:
        raise ConfigError(f"{what} {path} is longer than {most} bytes")
    return content


def kubeconfigs(given: str | None, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """Give what names kubeconfigs, as it stands somewhere, and their paths: those ``given``, else as kubectl."""
    files = given or environment.get("KUBECONFIG") or DEFAULT_KUBECONFIG
    return files, [os.path.expanduser(one) for one in files.split(os.pathsep) if one]  # noqa: PTH111 # Path's may raise


def contexts(given: str | None, environment: Mapping[str, str]) -> list[str]:
    """Give the names of the contexts that there are.

    Raises:
        ConfigError: see :func:`read_file`.

    """
    paths = kubeconfigs(given, environment)[1]
    return names([_kubeconfig(path) for path in paths if os.path.exists(path)], "contexts")  # noqa: PTH110 # likewise


def of_kubeconfig(paths: list[str], context: str | None, environment: Mapping[str, str]) -> Target:
    """Give what a context of these kubeconfigs names; where it names no proxy, the environment's counts.

    Raises:
        ConfigError: see :func:`read_file`, and :func:`kmesh.cluster.kubernetes.kubeconfig.choose`.

    """
    target = choose([_kubeconfig(path) for path in paths], context)
    return target if target.proxy else replace(target, proxy=proxy_of(target.server, environment))


def of_pod(environment: Mapping[str, str]) -> Target:
    """Give what the pod that we are in was given.

    Raises:
        ConfigError: its environment does not name the server.

    """
    host, port = environment.get(HOST, ""), environment.get(PORT, "")
    if not host or not port.isdecimal():
        raise ConfigError(f"{HOST} and {PORT} of the environment do not say where the API server is")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    material = {AUTHORITY: str(ACCOUNT / "ca.crt")}
    proxy, token = proxy_of(server, environment), str(ACCOUNT / "token")
    return Target("the pod's account", server, proxy=proxy, material=material, token_file=token)


def enter(target: Target) -> Access:
    """Fetch the credentials, and check all that can be checked without the server.

    Raises:
        ConfigError: a file cannot be read or is not what it should be, or the plugin does not do its work.

    """
    token: Callable[[], str] = lambda: target.token  # noqa: E731 # one of three
    material, expires = dict(target.material), math.inf
    if target.token_file:
        token = TokenFile(target.token_file, time.monotonic)
    elif target.plugin is not None:
        made = plugins.run(target.plugin, target.source)
        found, expires = made.token, made.expires - EARLY_SECONDS
        material |= made.material
        token = lambda: found  # noqa: E731 # likewise
    elif target.login:
        expires = _expiry(target.token)
        if expires <= time.time():
            when = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            raise ConfigError(
                f"{target.login}: its id-token expired at {when}, and is not renewed here; "
                "kubectl renews it (kubectl get ns), or use exec with a plugin that logs in"
            )
    return Access(target, _tls(target, material) if target.server.startswith("https:") else None, token, expires)


class TokenFile:
    """A token that stands in a file, read anew from time to time; calling it gives the token as it is now.

    While the file cannot be read, the last good one counts. ``clock`` gives seconds that only grow.
    """

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._token, self._read_at = self._read(), clock()

    def __call__(self) -> str:
        """Give the token."""
        with self._lock:
            if self._clock() - self._read_at >= TOKEN_SECONDS:
                self._read_at = self._clock()
                try:
                    self._token = self._read()
                except ConfigError as error:
                    log.warning("%s; the last token goes on being used", error)
            return self._token

    def _read(self) -> str:
        content = read_file(self._path, MOST_FILE, "the token file")
        return bearer(content.decode("latin-1"), f"the token file {self._path}")


def _expiry(token: str) -> float:
    """Give when a token ends, in seconds since the epoch, by what it says itself (RFC 7519 section 4.1.4)."""
    part = [*token.split("."), ""][1]
    with suppress(ValueError, RecursionError):
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        ends = claims.get("exp") if isinstance(claims, dict) else None
        if isinstance(ends, int | float) and not isinstance(ends, bool) and abs(ends) < LAST_TIME:
            return float(ends)
    return math.inf


def _kubeconfig(path: str) -> File:
    from kmesh.cluster import documents  # noqa: PLC0415 # brings PyYAML, which a pod's account needs not

    content = read_file(path, MOST_CONFIG, "the kubeconfig")
    try:
        found = documents.manifests(content, ".yaml")
    except ConfigError as error:
        # Of its text the line alone: the rest may quote the file, and so a token.
        line = re.match(r"line \d+", str(error))
        what = f"is no YAML ({line[0]})" if line else "holds no YAML mapping"
        raise ConfigError(f"the kubeconfig {path} {what}") from None
    if not found:
        raise ConfigError(f"the kubeconfig {path}: the file is empty")
    if len(found) > 1:
        raise ConfigError(f"the kubeconfig {path} holds {len(found)} documents, not one")
    return File(path, str(Path(path).absolute().parent), found[0])


# --- trust, and certificates


def _tls(target: Target, material: Mapping[str, str]) -> ssl.SSLContext:
    if target.insecure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        log.warning("%s: insecure-skip-tls-verify: whoever answers is taken for the API server", target.source)
    else:
        context = _trusting(target.source, material)
    # What Go does not ask of a certificate either; from Python 3.13 on it would be, and many clusters' own have it not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if any(name.startswith(CERTIFICATE) for name in material):
        _show_certificate(context, target.source, material)
    return context


def _trusting(source: str, material: Mapping[str, str]) -> ssl.SSLContext:
    name = next((one for one in material if one.startswith(AUTHORITY)), "")
    if not name:
        return ssl.create_default_context()
    path = material[name]
    content = base64.b64decode(path) if name.endswith("-data") else read_file(path, MOST_FILE, f"{source}: {name}")
    try:
        return ssl.create_default_context(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        where = name if name.endswith("-data") else f"{name} {path}"
        raise ConfigError(f"{source}: {where} holds no certificate in PEM") from error


def _show_certificate(context: ssl.SSLContext, source: str, material: Mapping[str, str]) -> None:
    def refuse() -> str:
        raise ConfigError(f"{source}: {KEY} is encrypted; give one that is not, or a plugin (exec)")

    for name in (CERTIFICATE, KEY):
        if name in material:
            read_file(material[name], MOST_FILE, f"{source}: {name}")
    certificate, key = _as_files(material)
    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except (ssl.SSLError, OSError, ValueError):
        # Not chained: nothing of a key's file may be shown.
        raise ConfigError(f"{source}: {CERTIFICATE} and {KEY} are no certificate in PEM and its key") from None


def _as_files(material: Mapping[str, str]) -> tuple[str, str]:
    """Give the files of certificate and key, as Python's TLS takes nothing else; ``kubernetes`` removes its own."""
    names = [name for name in material if name.startswith((CERTIFICATE, KEY))]
    if not any(name.endswith("-data") for name in names):
        return material[CERTIFICATE], material[KEY]
    try:
        from kubernetes.client import Configuration  # noqa: PLC0415 # large, and most need none of it: a token will do
        from kubernetes.config import load_kube_config_from_dict  # noqa: PLC0415 # likewise
    except ModuleNotFoundError:
        raise ConfigError(
            f"{CERTIFICATE} and {KEY} stand in the kubeconfig itself, which takes the Python package kubernetes: "
            "pip install 'kmesh-ipsec[kubeconfig]', or name files in their place"
        ) from None
    configuration, name = Configuration(), "x"
    one = {
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": "https://x"}}],
        "users": [{"name": name, "user": {which: material[which] for which in names}}],
    }
    load_kube_config_from_dict(one, name, configuration, persist_config=False)  # type: ignore[no-untyped-call] # it ships none
    return str(configuration.cert_file), str(configuration.key_file)

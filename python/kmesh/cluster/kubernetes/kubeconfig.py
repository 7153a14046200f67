# SPDX-License-Identifier: Apache-2.0
"""What a kubeconfig says of one context: where the server is, whom to trust, who we are. Pure.

Every field that changes any of this is honoured, or refused by name: whoever reads it otherwise than kubectl does acts
as somebody else, or as nobody. The rules are those of client-go (tools/clientcmd: validation.go, client_config.go).
No value of a user's fields is ever part of an error.
"""

from __future__ import annotations

import base64
import posixpath
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import quote, urlsplit

from kmesh.cluster.fields import Fields
from kmesh_bpf import ConfigError, Network

AUTHORITY, CERTIFICATE, KEY = "certificate-authority", "client-certificate", "client-key"
AUTHORIZATION = "Authorization"
KNOWN_OF_USER = {
    *("token", "tokenFile", "username", "password", "exec", "auth-provider", "extensions"),
    *(CERTIFICATE, f"{CERTIFICATE}-data", KEY, f"{KEY}-data"),
    *("as", "as-uid", "as-groups", "as-user-extra"),
}
EXEC_APIS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
EXEC_EXTENSION = "client.authentication.k8s.io/exec"
"""The extension of a cluster that a plugin is given as its configuration."""
MODES = ("Never", "IfAvailable", "Always")
SHOWN, MOST_NAMES = 60, 8
"""Characters of a name in an error, and names."""
UNESCAPED = "!#$&'*+-.^`|"
"""What may stand in a header's name, beside letters, digits, _ and ~ (client-go: transport, headerKeyEscape)."""
HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
SCHEMES = ("http", "https", "socks5", "socks5h")
"""Of a proxy."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A program that makes credentials (KEP 541). ``cluster``: what it is told of the server, None: nothing."""

    command: str
    args: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    api: str
    mode: str
    hint: str
    cluster: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and who we are to it; paths are absolute.

    ``material`` has certificates and the key, by the names of the kubeconfig's fields, as paths and as base64.
    ``token`` counts where there is no ``token_file``, which is read anew; ``headers`` are sent with every request.
    ``source`` names the configuration in errors; ``login`` names where
    the token was left by somebody's logging in, which is not done anew here.
    """

    source: str
    server: str
    insecure: bool = False
    server_name: str = ""
    proxy: str = field(default="", repr=False)
    material: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Headers = field(default=(), repr=False)
    token: str = field(default="", repr=False)
    token_file: str = ""
    plugin: Plugin | None = None
    login: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """One kubeconfig: ``path`` is how it is named in errors, ``folder`` what paths in it are relative to."""

    path: str
    folder: str
    content: Mapping[str, Any] = field(repr=False)


def choose(files: Sequence[File], context: str | None) -> Target:
    """Give what a context, else the current one, names; of several files the first that says something counts.

    Raises:
        ConfigError: one sentence: what is missing, of another shape than a kubeconfig's, or cannot be honoured.

    """
    for file in files:
        if file.content.get("kind", "Config") != "Config":
            raise ConfigError(f"{file.path} is no kubeconfig: its kind is not Config")
    name = context or next((one for one in map(_current, files) if one), "")
    if not name:
        raise ConfigError(f"{files[0].path} has no current-context; give --context NAME{_known(files, 'contexts')}")
    found = _entry(files, "contexts", "context", name).fields
    cluster = _entry(files, "clusters", "cluster", found.text("cluster"))
    user_name = found.text("user", "")
    nobody = _Part(cluster.file, cluster.where, Fields({}, cluster.where))
    user = _entry(files, "users", "user", user_name) if user_name else nobody
    return _target(cluster, user)


def header(value: str, what: str) -> str:
    """Give a text that may stand in a request's header.

    Raises:
        ConfigError: it may not; says ``what`` it is, and nothing of it.

    """
    if not HEADER_VALUE.fullmatch(value):
        raise ConfigError(f"{what} holds line ends, or other characters that no request can carry")
    return value


def bearer(text: str, what: str) -> str:
    """Give a token without the blanks and line ends around it.

    Raises:
        ConfigError: there is none, or what stands there is none.

    """
    found = text.strip()
    if not found:
        raise ConfigError(f"{what} is empty")
    if " " in found:
        raise ConfigError(f"{what} holds blanks, as no token does")
    return header(found, what)


def server_url(server: str, what: str) -> str:
    """Give a server's URL without the slash at its end.

    Raises:
        ConfigError: it is none that requests can be sent to; shows nothing of it that could be a password.

    """
    try:
        parts = urlsplit(header(server, what))
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if "@" in server:
        raise ConfigError(f"{what} holds a user or a password; name them as the user's username and password")
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{what} {short(server)!r} is no URL; write https://HOST:PORT")
    if parts.query or parts.fragment or " " in server:
        raise ConfigError(f"{what} is more than https://HOST:PORT/PATH")
    return server.rstrip("/")


def proxy_of(server: str, environment: Mapping[str, str]) -> str:
    """Give the proxy that an environment has for a server, as Go reads it (net/http, ProxyFromEnvironment): or none.

    Raises:
        ConfigError: what stands there names no proxy.

    """

    def variable(name: str) -> str:
        return environment.get(name) or environment.get(name.lower()) or ""

    parts = urlsplit(server)
    name, host = f"{parts.scheme.upper()}_PROXY", parts.hostname or ""
    proxy = variable(name)
    if not proxy or host == "localhost" or _bypassed(host, str(parts.port or ""), variable("NO_PROXY")):
        return ""
    return _proxy(proxy if "://" in proxy else f"http://{proxy}", f"{name} of the environment")


def _bypassed(host: str, port: str, rules: str) -> bool:
    with suppress(ValueError):
        address = ip_address(host)
        if address.is_loopback:
            return True
        networks = (one for rule in rules.split(",") if (one := _network(rule.strip())) is not None)
        if any(address in one for one in networks):
            return True
    for rule in (one.strip().lower() for one in rules.split(",")):
        name, _, of_port = rule.rpartition(":") if rule.rpartition(":")[2].isdecimal() else (rule, "", "")
        if rule == "*":
            return True
        if name and of_port in ("", port) and (host == name.lstrip(".*") or host.endswith(f".{name.lstrip('.*')}")):
            return True
    return False


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def short(name: str) -> str:
    """Give a name as it may stand in an error."""
    return name if len(name) <= SHOWN and name.isprintable() else f"{ascii(name)[1:SHOWN]}…"


@dataclass(frozen=True, slots=True)
class _Part:
    """A cluster, user or context of a file; ``where`` names it in errors."""

    file: File
    where: str
    fields: Fields

    def path(self, name: str) -> str:
        """Give the path in a field; empty where there is none."""
        path = self.fields.text(name, "")
        if "\0" in path:
            raise ConfigError(f"{self.where}.{name} holds a NUL")
        return posixpath.normpath(posixpath.join(self.file.folder, path)) if path else ""

    def material(self, name: str) -> dict[str, str]:
        """Give a certificate or key: as base64, or as the path of its file; nothing, where there is none."""
        path, data = self.path(name), "".join(self.fields.text(f"{name}-data", "").split())
        if path and data:
            raise ConfigError(f"{self.where}.{name} and {name}-data are both given; remove one")
        try:
            base64.b64decode(data, validate=True)
        except ValueError:
            raise ConfigError(f"{self.where}.{name}-data is no base64") from None
        return {f"{name}-data": data} if data else {name: path} if path else {}


def _current(file: File) -> str:
    return Fields(file.content, file.path).text("current-context", "")


def names(files: Sequence[File], many: str) -> list[str]:
    """Give the names of the entries of a list: ``contexts``, ``clusters``, ``users``.

    Raises:
        ConfigError: it is no list.

    """
    return [short(one["name"]) for file in files for one in _entries(file, many) if isinstance(one.get("name"), str)]


def _known(files: Sequence[File], many: str) -> str:
    found = names(files, many)
    return f" (there are: {', '.join(found[:MOST_NAMES])})" if found else ""


def _entries(file: File, many: str) -> list[Mapping[str, Any]]:
    values = file.content.get(many) or []
    if not isinstance(values, list):
        raise ConfigError(f"{file.path}: {many} is no list")
    return [one for one in values if isinstance(one, Mapping)]


def _entry(files: Sequence[File], many: str, part: str, name: str) -> _Part:
    for file in files:
        found = [one for one in _entries(file, many) if one.get("name") == name]
        where = f"{file.path}: {part} {short(name)}"
        if len(found) > 1:
            raise ConfigError(f"{where} is there {len(found)} times")
        if found:
            content = found[0].get(part)
            if not isinstance(content, Mapping):
                raise ConfigError(f"{where} is no mapping")
            return _Part(file, where, Fields(content, where))
    raise ConfigError(f"{files[0].path} has no {part} {short(name)}{_known(files, many)}")


def _target(cluster: _Part, user: _Part) -> Target:
    where, given = cluster.where, cluster.fields
    server = server_url(given.text("server"), f"{where}.server")
    insecure, name = given.flag("insecure-skip-tls-verify"), given.text("tls-server-name", "")
    given.flag("disable-compression")  # nothing is ever asked for compressed
    authority = cluster.material(AUTHORITY)
    if insecure and authority:
        raise ConfigError(f"{where}: insecure-skip-tls-verify and {AUTHORITY} contradict each other; remove one")
    proxy = _proxy(given.text("proxy-url", ""), f"{where}.proxy-url")
    headers = (*_basic(user), *_impersonation(user))
    if proxy and server.startswith("http://") and len({one for one, _ in headers}) < len(headers):
        raise ConfigError(f"{user.where}: through a proxy, a server without TLS cannot be told several as-groups")
    certificate, key = user.material(CERTIFICATE), user.material(KEY)
    if bool(certificate) != bool(key):
        raise ConfigError(f"{user.where}: {CERTIFICATE} and {KEY} belong together, and one is missing")
    told = _told(given, server, proxy)
    found, file, plugin, login = _who(user, told, basic=any(name == AUTHORIZATION for name, _ in headers))
    if not (certificate or headers or found or file or plugin) and user.fields.names():
        strange = sorted(set(user.fields.names()) - KNOWN_OF_USER)
        if strange:
            raise ConfigError(f"{user.where}: nothing is known of {short(strange[0])}, and no credentials are there")
    material = {**authority, **certificate, **key}
    name = header(name, f"{where}.tls-server-name")
    return Target(where, server, insecure, name, proxy, material, headers, found, file, plugin, login)


def _who(user: _Part, told: Mapping[str, Any], *, basic: bool) -> tuple[str, str, Plugin | None, str]:
    """Give the token, the file that it is in, and the program that makes one: one of them, or none; and the login."""
    given, where = user.fields, user.where
    text, file = given.text("token", ""), user.path("tokenFile")
    if basic and (text or file):
        raise ConfigError(f"{where}: token and username are two identities; remove one")
    if given.has("exec") and given.has("auth-provider"):
        raise ConfigError(f"{where}: exec and auth-provider are two identities; remove one")
    if file:  # it wins, as with kubectl
        return "", file, None, ""
    if text:
        return bearer(text, f"{where}.token"), "", None, ""
    if basic:
        return "", "", None, ""
    if given.has("auth-provider"):
        return _provided(where, given.part("auth-provider")), "", None, f"{where}.auth-provider"
    return "", "", _plugin(user, given.part("exec"), told) if given.has("exec") else None, ""


def _basic(user: _Part) -> Headers:
    name, password = user.fields.text("username", ""), user.fields.text("password", "")
    if bool(name) != bool(password):
        raise ConfigError(f"{user.where}: username and password belong together, and one is missing")
    coded = base64.b64encode(f"{name}:{password}".encode(errors="replace")).decode()
    return ((AUTHORIZATION, f"Basic {coded}"),) if name else ()


def _provided(where: str, provider: Fields) -> str:
    """Give the token that kubectl left where it logged in."""
    name = provider.text("name")
    if name != "oidc":
        raise ConfigError(
            f"{where}: auth-provider {short(name)} is not provided by this project, nor by kubectl since 1.26; "
            "use exec, with the plugin of whoever runs the cluster"
        )
    return bearer(provider.part("config").text("id-token"), f"{where}.auth-provider.config.id-token")


def _impersonation(user: _Part) -> Headers:
    """Give the headers by which the server is told to take us for somebody else."""
    given, where = user.fields, user.where
    name, uid = given.text("as", ""), given.text("as-uid", "")
    groups, extra = given.texts("as-groups"), given.part("as-user-extra")
    if not name:
        if uid or groups or extra.names():
            raise ConfigError(f"{where}: as-uid, as-groups and as-user-extra need as, which is missing")
        return ()
    found = [("Impersonate-User", name, "as"), *([("Impersonate-Uid", uid, "as-uid")] if uid else ())]
    found += [("Impersonate-Group", one, "as-groups") for one in groups]
    for key in extra.names():
        escaped = f"Impersonate-Extra-{quote(key, safe=UNESCAPED)}"
        found += [(escaped, one, "as-user-extra") for one in extra.texts(key)]
    return tuple((which, header(value, f"{where}.{what}")) for which, value, what in found)


def _plugin(user: _Part, given: Fields, told: Mapping[str, Any]) -> Plugin:
    where = f"{user.where}.exec"
    command, api = given.text("command"), given.text("apiVersion")
    if api not in EXEC_APIS:
        raise ConfigError(f"{where}.apiVersion {short(api)} is not provided; provided are {', '.join(EXEC_APIS)}")
    mode = given.text("interactiveMode", "IfAvailable")
    if mode not in MODES:
        raise ConfigError(f"{where}.interactiveMode is none of {', '.join(MODES)}")
    if "/" in command:
        command = posixpath.normpath(posixpath.join(user.file.folder, command))
    args = given.texts("args")
    environment = {one.text("name"): one.text("value", "") for one in given.parts("env")}
    if any("\0" in one for one in (command, *args, *environment, *environment.values())) or "=" in "".join(environment):
        raise ConfigError(f"{where} holds a NUL, or a name with = in env")
    hint = " ".join(given.text("installHint", "").split())[: 4 * SHOWN]
    return Plugin(command, args, environment, api, mode, hint, told if given.flag("provideClusterInfo") else None)


def _told(cluster: Fields, server: str, proxy: str) -> dict[str, Any]:
    """Give what a plugin is told of the cluster, if it asks for it."""
    told: dict[str, Any] = {"server": server, "insecure-skip-tls-verify": cluster.flag("insecure-skip-tls-verify")}
    named = {"tls-server-name": cluster.text("tls-server-name", ""), "proxy-url": proxy}
    named[f"{AUTHORITY}-data"] = cluster.text(f"{AUTHORITY}-data", "")
    told |= {name: value for name, value in named.items() if value}
    for one in cluster.parts("extensions"):
        if one.text("name", "") == EXEC_EXTENSION:
            told["config"] = one.value("extension")
    return told


def _proxy(proxy: str, what: str) -> str:
    try:
        parts = urlsplit(header(proxy, what))
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if proxy and not usable:
        raise ConfigError(f"{what} is no URL of a proxy; write http://HOST:PORT ({', '.join(SCHEMES)})")
    return proxy

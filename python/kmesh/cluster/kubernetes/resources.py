# SPDX-License-Identifier: Apache-2.0
"""What is asked of an API server, as paths and parameters, and what its answers mean. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from kmesh.cluster.objects import APIS, CLUSTER_WIDE, NODE_INFO_API
from kmesh.errors import ApiError

PLURALS = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "Pod": "pods",
    "KmeshNodeInfo": "kmeshnodeinfos",
    "Secret": "secrets",
    "ServiceCIDR": "servicecidrs",
    "Service": "services",
    "Lease": "leases",
    "Event": "events",
    "DaemonSet": "daemonsets",
    "EndpointSlice": "endpointslices",
}
FOREIGN_APIS = {
    "Lease": "coordination.k8s.io/v1",
    "Event": "v1",
    "DaemonSet": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
}
"""Of kinds that are written and given as they are, never read into objects."""
MESSAGE_LIMIT = 300
"""Characters of the server's own words in an error."""
KIND_LIKE = re.compile(r"[A-Za-z]{1,60}")
LINE_LIMIT = 64 << 20
"""Bytes of an event: etcd takes objects of 1.5 MB, and JSON makes six bytes of one at worst."""
KEY_LIKE = re.compile(r"[A-Za-z0-9+/=]{40,}")
"""In the server's words, what could be key material."""
UNKNOWN_PATH = ("not find the requested resource", "page not found")
"""The server's words where it knows nothing of a kind, and where it knows the group in other versions."""
OF_DAEMONS = "give its role this permission (the one in deploy/ has all that are needed)"
OF_OPERATORS = (
    "bind the role kmesh-ipsec-operator: "
    "kubectl create clusterrolebinding kmesh-ops --clusterrole=kmesh-ipsec-operator {who} && "
    "kubectl -n kmesh-system create rolebinding kmesh-ops --role=kmesh-ipsec-operator {who}"
)
"""How to get rights that are missing; ``{who}``: to whom they are bound, as kubectl takes it."""
FORBIDDEN = re.compile(r'.+ is forbidden: User "([^"]+)" cannot (\w+) resource "[^"]+" in API group "[^"]*".*')
"""What RBAC says, and whom it takes us for (k8s.io/apiserver, handlers/responsewriters/errors.go)."""
ACCOUNT = "system:serviceaccount:"
"""How the user name of a service account begins."""
BAD_REQUEST, UNAUTHORIZED, REFUSED, NOT_FOUND, CONFLICT, GONE = 400, 401, 403, 404, 409, 410


@dataclass(frozen=True, slots=True)
class Collection:
    """Objects of one kind: of a namespace (empty: all of them), and of these the ones that selectors let through."""

    kind: str
    namespace: str = ""
    labels: str = ""
    fields: str = ""

    @property
    def api(self) -> str:
        """The apiVersion of the objects."""
        return APIS.get(self.kind) or FOREIGN_APIS[self.kind]

    @property
    def plural(self) -> str:
        """The name in paths, and in roles."""
        return PLURALS[self.kind]

    @property
    def path(self) -> str:
        """The path of the collection."""
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        below = f"/namespaces/{quote(self.namespace, safe='')}" if self.namespace else ""
        return f"{root}{below}/{self.plural}"

    def item(self, name: str) -> str:
        """Give the path of one object."""
        return f"{self.path}/{quote(name, safe='')}"

    def query(self, **parameters: str) -> str:
        """Give the path with the selectors and further parameters."""
        chosen = {"labelSelector": self.labels, "fieldSelector": self.fields, **parameters}
        return f"{self.path}?{urlencode({name: value for name, value in chosen.items() if value})}"

    def __str__(self) -> str:
        """For people: ``pods of namespace default``."""
        if self.kind in CLUSTER_WIDE:
            return self.plural
        return f"{self.plural} of namespace {self.namespace}" if self.namespace else f"{self.plural} of all namespaces"


def whole(manifest: dict[str, Any], collection: Collection) -> dict[str, Any]:
    """Add to an item of a typed list what the list's name says."""
    manifest.setdefault("kind", collection.kind)
    manifest.setdefault("apiVersion", collection.api)
    return manifest


def refusal(verb: str, what: str, status: int, body: bytes, rights: str = OF_DAEMONS) -> ApiError:
    """Make the sentence for an answer that is none of 200 to 299: verb, object, reason, way out.

    ``rights`` is the way out where it is rights that are missing.
    """
    said = said_by_server(body)
    words = said or "no reason given"
    if status == REFUSED:
        ours = FORBIDDEN.fullmatch(words)
        # A command line follows, which a person reads to its end; and a right of another name must be named.
        short = ours is not None and rights is OF_OPERATORS and ours[2] == verb
        why = f"no role of user {ours[1]} permits it" if ours and short else words
        return ApiError(f"may not {verb} {what}: {why}; {rights.format(who=_who(ours[1] if ours else 'USER'))}", status)
    if status == UNAUTHORIZED:
        why = "the API server does not accept the credentials: they are of another cluster, or have expired"
        return ApiError(f"cannot {verb} {what}: {why}", status)
    if status == NOT_FOUND and "kmeshnodeinfos" in what and any(one in words for one in UNKNOWN_PATH):
        why = f"the cluster does not know KmeshNodeInfo, or serves it in other versions than {NODE_INFO_API}"
        return ApiError(f"cannot {verb} {what}: {why}; apply deploy/base/crd.yaml", status)
    if status == NOT_FOUND and words.startswith("namespaces "):
        return ApiError(f"cannot {verb} {what}: {words}; apply deploy/, or: kubectl create namespace", status)
    code = f"HTTP status {status}" if status else "no HTTP status"
    return ApiError(f"cannot {verb} {what}: {words} ({code})", status)


def _who(user: str) -> str:
    """Give a flag of ``kubectl create rolebinding`` for a user."""
    if user.startswith(ACCOUNT):
        return f"--serviceaccount={shlex.quote(user.removeprefix(ACCOUNT))}"
    return f"--user={shlex.quote(user) if user != 'USER' else user}"


def said_by_server(body: bytes) -> str:
    """Give the message of a Status object, in one line, shortened, and without anything that could be a key."""
    try:
        message = json.loads(body).get("message")
    except (ValueError, AttributeError, RecursionError):
        message = body.decode(errors="replace")
    if not isinstance(message, str):
        message = ""
    text = KEY_LIKE.sub("(hidden)", " ".join("".join(one if one.isprintable() else " " for one in message).split()))
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:MESSAGE_LIMIT]}…"


def described(body: bytes) -> str:
    """Say in a few words what an answer is that is not the one asked for."""
    text = body.strip()
    if not text:
        return "nothing"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "HTML" if text[:1] == b"<" else "what is no JSON"
    if not isinstance(value, dict):
        return "what is no object"
    kind = value.get("kind")
    if kind == "Status":
        return f"a Status ({said_by_server(text) or 'no reason given'})"
    return f"a {kind}" if isinstance(kind, str) and KIND_LIKE.fullmatch(kind) else "an object without kind"


def lines(chunks: Iterable[bytes], *, whole: bool = False) -> Iterator[bytes]:
    """Give the lines of a stream; what stands behind the last newline is half of one, and is dropped.

    Raises:
        ValueError: a line has no end; or, where they have to be ``whole``, the last one is half of one.

    """
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        size += len(first)
        for other in others:
            yield b"".join(rest)
            rest, size = [other], len(other)
        if size > LINE_LIMIT:
            raise ValueError("a line without end")
    if whole and size:
        raise ValueError("half a line")


def version_of(manifest: Mapping[str, Any]) -> str:
    """Give metadata.resourceVersion of an object or a list; empty where there is none."""
    return _text(manifest, "resourceVersion")


def uid_of(manifest: Mapping[str, Any]) -> str:
    """Give metadata.uid; empty where there is none."""
    return _text(manifest, "uid")


def name_of(manifest: Mapping[str, Any]) -> str:
    """Give metadata.name; empty where there is none."""
    return _text(manifest, "name")


def is_named(manifest: Mapping[str, Any], collection: Collection) -> bool:
    """Tell whether it can be said of an object of a watch which one it is."""
    return name_of(manifest) != "" and manifest.get("kind", collection.kind) == collection.kind


def _text(manifest: Mapping[str, Any], field: str) -> str:
    metadata = manifest.get("metadata")
    value = metadata.get(field) if isinstance(metadata, Mapping) else None
    return value if isinstance(value, str) else ""


def common(status: int) -> bool:
    """Tell whether what a status (0: no answer) says is likely to begin and to end for all requests at once."""
    return status in (0, UNAUTHORIZED, REFUSED) or status >= 500


def older(one: str, other: str) -> bool:
    """Tell whether a resourceVersion is older than another; of versions that are no numbers nothing is known."""
    known = all(version.isascii() and version.isdecimal() for version in (one, other))
    # As numbers, but of any length: int() takes no more than 4300 digits.
    return known and _magnitude(one) < _magnitude(other)


def _magnitude(digits: str) -> tuple[int, str]:
    shorter = digits.lstrip("0")
    return len(shorter), shorter

"""What is asked of an API server, as paths and parameters, and what its answers mean. Pure."""

from __future__ import annotations

import json
import re
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
}
FOREIGN_APIS = {"Lease": "coordination.k8s.io/v1", "Event": "v1"}
"""Of kinds that are written and given as they are, never read into objects."""
MESSAGE_LIMIT = 300
"""Characters of the server's own words in an error."""
KEY_LIKE = re.compile(r"[A-Za-z0-9+/=]{40,}")
"""In the server's words, what could be key material."""
UNKNOWN_PATH = ("not find the requested resource", "page not found")
"""The server's words where it knows nothing of a kind, and where it knows the group in other versions."""
REFUSED, NOT_FOUND, CONFLICT, GONE, UNAUTHORIZED = 403, 404, 409, 410, 401


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


def refusal(verb: str, what: str, status: int, body: bytes) -> ApiError:
    """Make the sentence for an answer that is none of 200 to 299: verb, object, reason, way out."""
    said = said_by_server(body)
    words = said or "no reason given"
    if status == REFUSED:
        way_out = "; give its role this permission (the one in deploy/ has all that are needed)"
        return ApiError(f"may not {verb} {what}: {words}{way_out}", status)
    if status == UNAUTHORIZED:
        why = "the API server does not accept the credentials: they are of another cluster, or have expired"
        return ApiError(f"cannot {verb} {what}: {why}", status)
    if status == NOT_FOUND and "kmeshnodeinfos" in what and any(one in words for one in UNKNOWN_PATH):
        why = f"the cluster does not know KmeshNodeInfo, or serves it in other versions than {NODE_INFO_API}"
        return ApiError(f"cannot {verb} {what}: {why}; apply deploy/base/crd.yaml", status)
    if status == NOT_FOUND and words.startswith("namespaces "):
        return ApiError(f"cannot {verb} {what}: {words}; apply deploy/, or: kubectl create namespace", status)
    return ApiError(f"cannot {verb} {what}: {words} (HTTP status {status})", status)


def said_by_server(body: bytes) -> str:
    """Give the message of a Status object, in one line, shortened, and without anything that could be a key."""
    try:
        message = json.loads(body).get("message")
    except (ValueError, AttributeError, RecursionError):
        message = body.decode(errors="replace")
    text = KEY_LIKE.sub("(hidden)", " ".join(str(message or "").split()))
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:MESSAGE_LIMIT]}…"


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the lines of a stream; what stands behind the last newline is half of one, and is dropped."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            yield b"".join(rest)
            rest = [other]


def version_of(manifest: Mapping[str, Any]) -> str:
    """Give metadata.resourceVersion of an object or a list; empty where there is none."""
    metadata = manifest.get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, Mapping) else ""


def common(status: int) -> bool:
    """Tell whether what a status (0: no answer) says is likely to begin and to end for all requests at once."""
    return status in (0, UNAUTHORIZED, REFUSED) or status >= 500


def older(one: str, other: str) -> bool:
    """Tell whether a resourceVersion is older than another; of versions that are no numbers nothing is known."""
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)

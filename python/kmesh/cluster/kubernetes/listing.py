"""A whole collection, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kmesh.cluster.kubernetes.connection import Connection
from kmesh.cluster.kubernetes.decoding import decode_list
from kmesh.cluster.kubernetes.resources import GONE, Collection
from kmesh.errors import ApiError

PAGE = 500
"""Objects."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the objects. ``first``: whatever pages came before no longer count."""

    first: bool
    items: list[dict[str, Any]]
    version: str


def pages(connection: Connection, collection: Collection) -> Iterator[Page]:
    """Read a collection as it is now; all pages are of one version.

    Raises:
        ApiError: it cannot be read to its end.

    """
    limit, token = str(PAGE), ""
    while True:
        try:
            text = connection.fetch(
                "list", str(collection), "GET", collection.query(limit=limit, **{"continue": token})
            )
        except ApiError as error:
            if error.status != GONE or not token:
                raise
            limit, token = "", ""  # the server has forgotten the pages to come: all at once, then
            continue
        try:
            items, metadata = decode_list(collection.kind, text)
        except ValueError as error:
            raise ApiError(f"the API server {connection.server} gives no list of {collection}") from error
        yield Page(not token, items, str(metadata.get("resourceVersion") or ""))
        token = str(metadata.get("continue") or "")
        if not token:
            return

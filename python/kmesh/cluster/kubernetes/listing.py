"""A whole collection, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kmesh.cluster.kubernetes.connection import Connection
from kmesh.cluster.kubernetes.resources import GONE, Collection, version_of
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
            answer = connection.call(
                "list", str(collection), "GET", collection.query(limit=limit, **{"continue": token})
            )
        except ApiError as error:
            if error.status != GONE or not token:
                raise
            limit, token = "", ""  # the server has forgotten the pages to come: all at once, then
            continue
        items = answer.get("items") or []
        if not isinstance(items, list) or not all(isinstance(one, dict) and "metadata" in one for one in items):
            raise ApiError(f"the API server {connection.server} gives no list of {collection}")
        yield Page(not token, items, version_of(answer))
        token = str((answer.get("metadata") or {}).get("continue") or "")
        if not token:
            return

# SPDX-License-Identifier: Apache-2.0
"""A whole collection, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kmesh.cluster.kubernetes.connection import Connection
from kmesh.cluster.kubernetes.decoding import decode_list
from kmesh.cluster.kubernetes.resources import BAD_REQUEST, GONE, Collection
from kmesh.errors import ApiError

PAGE = 500
"""Objects."""
MOST_PAGES = 4000
"""Of one list: 2 million objects, more than etcd holds. A server that always has another page is none."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the objects. ``first``: whatever pages came before no longer count."""

    first: bool
    items: list[dict[str, Any]]
    version: str


class Listing:
    """A collection being read as it is at one moment: all pages are of one ``version``.

    When a page fails, those that have arrived still count: :meth:`pages` again gives the ones that are missing. A list
    that takes longer than connections live would never be whole otherwise.
    """

    def __init__(self, connection: Connection, collection: Collection, *, whole: bool = False) -> None:
        self._connection, self._collection, self._whole = connection, collection, whole
        self._limit, self._token = str(PAGE), ""
        self._count = 0
        self.version = ""

    @property
    def begun(self) -> bool:
        """Whether there are pages that count, and others to come."""
        return bool(self._token)

    def pages(self) -> Iterator[Page]:
        """Give the pages that are missing.

        Raises:
            ApiError: one cannot be had.

        """
        collection, connection = self._collection, self._connection
        while True:
            if not self._token:
                self._count = 0
            try:
                path = collection.query(limit=self._limit, **{"continue": self._token})
                text = connection.fetch("list", str(collection), "GET", path)
            except ApiError as error:
                if error.status not in (GONE, BAD_REQUEST) or not self._token:
                    raise
                self._limit, self._token = "", ""  # the pages to come are forgotten: all at once, then
                continue
            try:
                items, metadata = decode_list(collection.kind, text, whole=self._whole)
                token = metadata.get("continue") or ""
                if not isinstance(token, str):
                    raise ValueError("no token")
            except ValueError as error:
                self._token = ""  # nor do the pages before it count
                raise connection.odd(f"a list of {collection}", text) from error
            self._count += 1
            if token and self._count >= MOST_PAGES:
                self._token = ""
                raise connection.odd(f"a list of {collection} that has an end", text)
            first, self._token, self.version = not self._token, token, metadata["resourceVersion"]
            yield Page(first, items, self.version)
            if not token:
                return


def pages(connection: Connection, collection: Collection, *, whole: bool = False) -> Iterator[Page]:
    """Read a collection as it is now: of its objects the fields that are used elsewhere, or all of them.

    Raises:
        ApiError: it cannot be read to its end.

    """
    return Listing(connection, collection, whole=whole).pages()

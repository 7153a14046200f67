# SPDX-License-Identifier: Apache-2.0
"""Everything that is written to an API server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from kmesh.cluster.kubernetes.connection import APPLY, Connection
from kmesh.cluster.kubernetes.resources import CONFLICT, NOT_FOUND, Collection, uid_of, version_of
from kmesh.cluster.kubernetes.store import bare_secret, ours
from kmesh.cluster.objects import SECRET_NAME
from kmesh.cluster.secret import CURRENT, PREVIOUS, USED
from kmesh.errors import ApiError, ClusterError, ConcurrentChangeError

FIELD_MANAGER = "kmesh-daemon"
MINE = {CURRENT, PREVIOUS, USED}
"""Keys of the Secret's data that are ours; others are left as they are."""

Decision = Callable[[Mapping[str, Any] | None], Mapping[str, Any] | None]


class Writer:
    """Writes; ``namespace`` is that of the Secret, whatever the manifests say.

    All methods raise ApiError where the server cannot be reached or refuses.
    """

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._secrets = Collection("Secret", namespace)

    def apply(self, collection: Collection, manifest: Mapping[str, Any], subresource: str = "") -> dict[str, Any]:
        """Create or replace, as the owner of every field that is given; give the object as stored.

        ``subresource``: of an object that is there, as it stands in paths ("/status").
        """
        name = str(manifest["metadata"]["name"])
        query = urlencode({"fieldManager": FIELD_MANAGER, "force": "true"})
        return self._connection.call(
            "patch",
            _what(collection, name, subresource),
            "PATCH",
            f"{collection.item(name)}{subresource}?{query}",
            _placed(manifest, collection),
            APPLY,
            kinds=(collection.kind,),
        )

    def create(self, collection: Collection, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create; give the object as stored."""
        metadata = manifest["metadata"]
        what = _what(collection, str(metadata.get("name") or metadata.get("generateName")))
        path = f"{collection.path}?{urlencode({'fieldManager': FIELD_MANAGER})}"
        kinds = (collection.kind,)
        return self._connection.call("create", what, "POST", path, _placed(manifest, collection), kinds=kinds)

    def delete(self, collection: Collection, name: str, expected: Mapping[str, Any] | None = None) -> None:
        """Delete, if there; ``expected``: only if it is still this object, in this version.

        Raises:
            ApiError: see the class; of status 409 or 404: it is not the expected one, or gone.

        """
        body = None
        if expected is not None:
            metadata = expected["metadata"]
            body = {"preconditions": {field: metadata[field] for field in ("uid", "resourceVersion")}}
        try:
            what, kinds = _what(collection, name), (collection.kind, "Status")
            self._connection.call("delete", what, "DELETE", collection.item(name), body, kinds=kinds)
        except ApiError as error:
            if error.status != NOT_FOUND or expected is not None:
                raise

    def change_secret(self, decide: Decision) -> dict[str, Any] | None:
        """Let ``decide`` turn the Secret as it is into the one to be; give it as stored, None: there is none.

        Raises:
            ConcurrentChangeError: somebody else changed it in between; nothing was written.

        """
        what = _what(self._secrets, SECRET_NAME)
        path, kinds = self._secrets.item(SECRET_NAME), (self._secrets.kind,)
        try:
            before: dict[str, Any] | None = self._connection.call("get", what, "GET", path, kinds=kinds)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            before = None
        if before is not None and not (uid_of(before) and version_of(before)):
            # Nobody could say then that it is still the same that is written over.
            raise ClusterError(f"{what} comes without metadata.uid and metadata.resourceVersion; nothing was written")
        wanted = decide(bare_secret(ours(before, self._secrets)) if before is not None else None)
        try:
            if wanted is None:
                if before is not None:
                    self.delete(self._secrets, SECRET_NAME, before)
                return None
            if before is None:
                return self.create(self._secrets, wanted)
            data = before.get("data")
            others = {key: data[key] for key in data if key not in MINE} if isinstance(data, dict) else {}
            # With the resourceVersion that was read: the server refuses if there is a newer one.
            after = {**before, "data": {**others, **wanted["data"]}}
            return self._connection.call("update", what, "PUT", path, after, kinds=kinds)
        except ApiError as error:
            if error.status == CONFLICT or (error.status == NOT_FOUND and before is not None):
                raise ConcurrentChangeError(
                    f"{what} was changed by somebody else at the same time; nothing was written, try again"
                ) from error
            raise


def _what(collection: Collection, name: str, subresource: str = "") -> str:
    return f"{collection.plural}{subresource} {collection.namespace}/{name}"


def _placed(manifest: Mapping[str, Any], collection: Collection) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": collection.namespace}}

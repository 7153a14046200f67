# SPDX-License-Identifier: Apache-2.0
"""The key from a mounted file instead of the Secret: a source around another one.

The file holds what the Secret's data key ``ipSec`` does; ``ipSecPrevious`` and ``ipSecUsed`` beside it, which a mounted
Secret has as files too, what those do, if they are there. Watched by polling: kubelet replaces a mounted Secret by
moving a symbolic link, a minute or so after the change.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kmesh.cluster.deployment import Deployment
from kmesh.cluster.files import read_file
from kmesh.cluster.objects import CORE_API, NAMESPACE, SECRET_NAME, ClusterObjects
from kmesh.cluster.secret import CURRENT, PREVIOUS, USED
from kmesh.cluster.source import ClusterSource, SecretChange
from kmesh_bpf import ConfigError

LIMIT = 128 * 1024
"""Bytes; a key file has about 150, the longest history 67,000."""
NEIGHBOURS = (PREVIOUS, USED)

Signature = tuple[tuple[int, int, int] | None, ...]
"""Of the file and its neighbours: time of the last write in ns, size, inode; None: it cannot be looked at."""


class KeyFile:
    """``source``, except that the Secret it gives is made of a file.

    While the file cannot be read, its last content stays; without a last one the cluster counts as not complete.
    """

    def __init__(self, source: ClusterSource, path: Path) -> None:
        self.poll_interval = source.poll_interval
        self.wake = source.wake
        self._source, self._path = source, path
        self._seen: Signature = ()
        self._secret: Mapping[str, Any] | None = None

    def read(self) -> ClusterObjects:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        objects = self._source.read()
        signature = self._signature()
        problems = objects.problems
        try:
            content, *_ = read_file(self._path, LIMIT)
            secret = _secret({CURRENT: content, **self._neighbours()})
            if secret != self._secret:
                self._secret = secret
        except ConfigError as error:
            problems = (*problems, f"the key file {self._path} {error}; the last key stays")
        self._seen = signature
        known = objects.complete and self._secret is not None
        return replace(objects, secret=self._secret, problems=problems, complete=known)

    def changed(self) -> bool:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._source.changed() or self._signature() != self._seen

    def age(self) -> float:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._source.age()

    def publish(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._source.publish(node_info)

    def publish_status(self, lease: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._source.publish_status(lease)

    def publish_conditions(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._source.publish_conditions(node_info)

    def statuses(self) -> tuple[Mapping[str, Any], ...]:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._source.statuses()

    def daemons(self) -> Deployment | None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._source.daemons()

    def endpoint_slices(self, namespace: str, service: str) -> tuple[Mapping[str, Any], ...]:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._source.endpoint_slices(namespace, service)

    def tell(self, event: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._source.tell(event)

    def withdraw(self, node: str, *, status: bool = True) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._source.withdraw(node, status=status)

    def change_secret(self, change: SecretChange) -> None:
        """Change the cluster's Secret, of which the file is a copy."""
        self._source.change_secret(change)

    def close(self) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._source.close()

    def _neighbours(self) -> dict[str, bytes]:
        """Give the content of those that are there.

        Raises:
            ConfigError: one is, and cannot be read: without it the key could be taken for one never used.

        """
        found = {}
        for path in map(self._path.with_name, NEIGHBOURS):
            if _stamp(path) is not None:
                try:
                    found[path.name], *_ = read_file(path, LIMIT)
                except ConfigError as error:
                    raise ConfigError(f"has a neighbour, {path.name}, that {error}") from error
        return found

    def _signature(self) -> Signature:
        return tuple(map(_stamp, (self._path, *(self._path.with_name(name) for name in NEIGHBOURS))))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _secret(parts: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "apiVersion": CORE_API,
        "kind": "Secret",
        "metadata": {"name": SECRET_NAME, "namespace": NAMESPACE},
        "data": {name: base64.b64encode(content).decode() for name, content in parts.items()},
    }

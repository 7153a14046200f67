"""What a cluster is to the programs: a folder of manifests now, a Kubernetes API behind the same verbs later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kmesh.cluster.objects import ClusterObjects

SecretChange = Callable[[Mapping[str, Any] | None, ClusterObjects], Mapping[str, Any] | None]
"""From the Secret as it is (None: absent) to the Secret as it should be (None: absent); pure, may run again."""


class ClusterSource(Protocol):
    """Reads are of the newest content that was good; writes are whole or not at all.

    A write that the cluster refuses raises :class:`kmesh.errors.ClusterError`.
    """

    poll_interval: float
    """Seconds after which :meth:`changed` is worth asking again."""

    def read(self) -> ClusterObjects:
        """Give all objects; what cannot be read now is as it was, and told in ``problems``. Raises nothing."""

    def changed(self) -> bool:
        """Tell, cheaply, whether :meth:`read` would give something new. Raises nothing."""

    def publish(self, node_info: Mapping[str, Any]) -> None:
        """Create or replace a KmeshNodeInfo."""

    def withdraw(self, node: str) -> None:
        """Delete a node's KmeshNodeInfo, if there."""

    def change_secret(self, change: SecretChange) -> None:
        """Change the Secret on the ground of all objects as they are now.

        Raises:
            ConcurrentChangeError: somebody else changed the Secret in between; nothing was written.
            ClusterError: the Secret or what is announced cannot be read, or the write was refused.

        """

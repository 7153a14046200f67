# SPDX-License-Identifier: Apache-2.0
"""What a cluster is to the programs: a Kubernetes API server, or a folder of manifests, behind the same verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kmesh.cluster.deployment import Deployment
from kmesh.cluster.objects import ClusterObjects
from kmesh.errors import ClusterError

SecretChange = Callable[[Mapping[str, Any] | None, ClusterObjects], Mapping[str, Any] | None]
"""From the Secret as it is (None: absent) to the Secret as it should be (None: absent); pure, may run again."""


class ClusterSource(Protocol):
    """Reads are of the newest content that was good; writes are whole or not at all.

    A write that the cluster refuses raises :class:`kmesh.errors.ClusterError`.
    """

    poll_interval: float
    """Seconds after which :meth:`changed` is worth asking again."""
    wake: int | None
    """A file descriptor that is readable whenever :meth:`changed` is true; None: there is only asking."""

    def read(self) -> ClusterObjects:
        """Give all objects; what cannot be read now is as it was, and told in ``problems``. Raises nothing.

        The Secret's manifest is the very same object until it says something else.
        """

    def changed(self) -> bool:
        """Tell, cheaply, whether :meth:`read` would give something new. Raises nothing."""

    def age(self) -> float:
        """Give the seconds since what :meth:`read` gives was last known to be current; 0.0: it is.

        Raises nothing; any thread may ask.
        """

    def publish(self, node_info: Mapping[str, Any]) -> None:
        """Create or replace a KmeshNodeInfo."""

    def publish_status(self, lease: Mapping[str, Any]) -> None:
        """Create or replace a node's status: a Lease, see :mod:`kmesh.cluster.status`."""

    def publish_conditions(self, node_info: Mapping[str, Any]) -> None:
        """Write the status of a KmeshNodeInfo, where the cluster is one that keeps it."""

    def statuses(self) -> tuple[Mapping[str, Any], ...]:
        """Give the Leases of all nodes, as they are now.

        Raises:
            ClusterError: they cannot be read.

        """

    def daemons(self) -> Deployment | None:
        """Give where daemons should run, as it is now; None: the cluster is one that does not run them.

        Raises:
            ClusterError: it cannot be read.

        """

    def endpoint_slices(self, namespace: str, service: str) -> tuple[Mapping[str, Any], ...]:
        """Give the EndpointSlices of a Service, as they are now.

        Raises:
            ClusterError: they cannot be read.

        """

    def tell(self, event: Mapping[str, Any]) -> None:
        """Create an Event (core/v1), where the cluster is one that has events; one that is there already is done."""

    def withdraw(self, node: str, *, status: bool = True) -> None:
        """Delete a node's KmeshNodeInfo, if there; and its status, unless it is to stay."""

    def change_secret(self, change: SecretChange) -> None:
        """Change the Secret on the ground of all objects as they are now.

        Raises:
            ConcurrentChangeError: somebody else changed the Secret in between; nothing was written.
            ClusterError: the Secret or what is announced cannot be read, or the write was refused.

        """

    def close(self) -> None:
        """End what runs in the background; the source must not be used any more."""


def read_whole(source: ClusterSource) -> ClusterObjects:
    """Give all objects, for whoever asks once and has no time to wait for more.

    Raises:
        ClusterError: the cluster is not known as a whole.

    """
    objects = source.read()
    if not objects.complete:
        # The first is as good as all: whoever may not read one thing may often not read the others either.
        raise ClusterError(next(iter(objects.problems), "the API server does not answer in time; try again"))
    return objects

# SPDX-License-Identifier: Apache-2.0
"""The cluster behind an API server, as a :class:`kmesh.cluster.source.ClusterSource`.

Watched is only what is needed: namespaces; pods that carry the label, and those of enrolled namespaces; Nodes; what
nodes announce; the one Secret; Services and their CIDRs. The watches start with the first read.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import chain
from typing import Any, cast

from kmesh.cluster.deployment import SELECTOR, Deployment, deployment
from kmesh.cluster.endpoints import OF_SERVICE
from kmesh.cluster.kubernetes.connection import Connection
from kmesh.cluster.kubernetes.listing import pages
from kmesh.cluster.kubernetes.resources import CONFLICT, NOT_FOUND, Collection, name_of
from kmesh.cluster.kubernetes.store import Draft, Shelf, Store
from kmesh.cluster.kubernetes.watch import Watch
from kmesh.cluster.kubernetes.writes import Writer
from kmesh.cluster.objects import (
    NAMESPACE,
    SECRET_NAME,
    ClusterObjects,
    NodeInfo,
    NodeObject,
    PodObject,
    oddities,
)
from kmesh.cluster.shared import Objects, stacked
from kmesh.cluster.snapshot import MODE_LABEL, enrols
from kmesh.cluster.source import SecretChange
from kmesh.cluster.status import LEASE_PREFIX
from kmesh.errors import ApiError, ClusterError

EVERYTHING = frozenset({"Namespace", "Node", "Pod", "KmeshNodeInfo", "Secret", "ServiceCIDR", "Service"})
FIRST_SECONDS = 10.0
"""How long the first read waits for the cluster to be known as a whole, where nothing else is said."""
SETTLE_SECONDS = 1.0
"""After the first trouble the hasty wait so long for others: of several the same one is told each time."""
CLOSE_SECONDS = 2.0
MOST_NAMESPACES = 32
"""So many enrolled namespaces are watched one by one; beyond, one watch over all pods is less work for everybody."""
MOST_NODES = 32
"""So many Nodes' pods are watched one by one; beyond, those that may be managed are, wherever they run."""
LABELLED = Collection("Pod", labels=MODE_LABEL)
ALL_PODS = Collection("Pod")


class Pods(Enum):
    """Which pods somebody needs to know."""

    ENROLLED = "those that may be managed: they carry the label, or their namespace does"
    EVERY = "those that are not enrolled too, for whoever explains why they are not managed"
    UNANNOUNCED = "those on Nodes without KmeshNodeInfo: of a cluster's many pods none, as long as all is well"


class KubernetesCluster:
    """A cluster, or of it the ``kinds`` that somebody needs, and of its ``pods``.

    ``namespace`` is where the Secret, the KmeshNodeInfos and the Leases are. ``patience``: how many seconds the first
    read waits for the cluster to be known as a whole; who is ``hasty`` is told of the first trouble at once, and need
    not wait for what it may become. ``once``: all is read by the first read, nothing is watched, and the first trouble
    ends it. ``clock`` gives seconds that only grow.
    """

    poll_interval = 1.0

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = NAMESPACE,
        kinds: frozenset[str] = EVERYTHING,
        pods: Pods = Pods.ENROLLED,
        patience: float | None = None,
        hasty: bool = False,
        once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience, self._hasty, self._once = FIRST_SECONDS if patience is None else patience, hasty, once
        self._connection, self._clock = connection, clock
        self._store = Store()
        self.wake: int | None = self._store.wake
        self._writer = Writer(connection, namespace)
        self._infos = Collection("KmeshNodeInfo", namespace)
        self._leases = Collection("Lease", namespace)
        wanted = {
            "Namespace": Collection("Namespace"),
            "Node": Collection("Node"),
            "KmeshNodeInfo": self._infos,
            "Secret": Collection("Secret", namespace, fields=f"metadata.name={SECRET_NAME}"),
            "ServiceCIDR": Collection("ServiceCIDR"),
            "Service": Collection("Service"),
        }
        self._scope = pods if "Pod" in kinds else None
        self._watches = {kind: self._watch(one) for kind, one in wanted.items() if kind in kinds}
        self._wanted_pods: frozenset[Collection] = frozenset()
        self._pods: dict[Collection, Watch] = {}
        self._ended: list[Watch] = []
        self._started_at: float | None = None
        self._complete = False
        self._read: ClusterObjects | None = None
        self._layers: dict[Collection, Objects[PodObject]] = {}
        self._merged: Objects[PodObject] = Objects()
        self._judged: dict[str, Objects[Any]] = {}
        self._odd: dict[tuple[str, str], tuple[str, ...]] = {}
        self._read_revision = -1
        self._closed = False

    @property
    def server(self) -> str:
        """The server's URL."""
        return self._connection.server

    def read(self) -> ClusterObjects:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        with self._store.condition:
            if self._started_at is None:
                self._start()
                if not self._once:
                    self._store.condition.wait_for(self._enough, self._patience)
                if self._hasty and not self._once and not self._whole():
                    self._store.condition.wait_for(self._settled, SETTLE_SECONDS)
            for watch in () if self._once else (*self._watches.values(), *self._pods.values()):
                watch.start()  # those for which there was no room
            self._complete = self._complete or self._whole()
            if self._read is None or self._read_revision != self._store.revision:
                self._read_revision = self._store.revision
                self._store.taken()
                self._read = self._collect()
            return self._read

    def changed(self) -> bool:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._store.revision != self._read_revision

    def age(self) -> float:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        with self._store.condition:
            lost = [shelf.lost_at for shelf in self._shelves() if shelf.lost_at is not None]
            return max(0.0, self._clock() - min(lost)) if lost else 0.0

    def publish(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        stored = self._writer.apply(self._infos, node_info)
        if "KmeshNodeInfo" in self._watches:
            self._watches["KmeshNodeInfo"].shelf.written(stored)

    def publish_status(self, lease: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._writer.apply(self._leases, lease)

    def publish_conditions(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        try:
            self._writer.apply(self._infos, node_info, "/status")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            # Another project's CRD, without this subresource, or uninstalled in between: nothing is lost.

    def statuses(self) -> tuple[Mapping[str, Any], ...]:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        found = [one for page in pages(self._connection, self._leases) for one in page.items]
        return tuple(one for one in found if name_of(one).startswith(LEASE_PREFIX))

    def daemons(self) -> Deployment | None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        kinds = (Collection(kind, self._leases.namespace, labels=SELECTOR) for kind in ("DaemonSet", "Pod"))
        sets, pods = (
            [one for page in pages(self._connection, kind, whole=True) for one in page.items] for kind in kinds
        )
        return deployment(sets, pods)

    def endpoint_slices(self, namespace: str, service: str) -> tuple[Mapping[str, Any], ...]:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        slices = Collection("EndpointSlice", namespace, labels=f"{OF_SERVICE}={service}")
        return tuple(one for page in pages(self._connection, slices) for one in page.items)

    def raw(self, kind: str) -> list[dict[str, Any]]:
        """Give the objects of a kind in the namespace of Kmesh as the server has them, for whoever looks for a fault.

        Raises:
            ClusterError: they cannot be read.

        """
        wanted = Collection(kind, self._leases.namespace)
        return [one for page in pages(self._connection, wanted, whole=True) for one in page.items]

    def daemon_pods(self) -> list[dict[str, Any]]:
        """Give the pods of daemons, likewise."""
        wanted = Collection("Pod", self._leases.namespace, labels=SELECTOR)
        return [one for page in pages(self._connection, wanted, whole=True) for one in page.items]

    def log(self, pod: str, lines: int, previous: bool) -> bytes:
        """Give the last lines of a daemon's log; ``previous``: of the container that ran before.

        Raises:
            ClusterError: it cannot be read.

        """
        pods = Collection("Pod", self._leases.namespace)
        query = f"tailLines={lines}&previous={str(previous).lower()}"
        return self._connection.fetch("get", f"pods/log of {pod}", "GET", f"{pods.item(pod)}/log?{query}")

    def tell(self, event: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        try:
            self._writer.create(Collection("Event", str(event["metadata"]["namespace"])), event)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            # It is there: told before, and the answer was lost.

    def withdraw(self, node: str, *, status: bool = True) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._writer.delete(self._infos, node)
        if "KmeshNodeInfo" in self._watches:
            self._watches["KmeshNodeInfo"].shelf.take_out(("KmeshNodeInfo", NAMESPACE, node))
        if status:
            self._writer.delete(self._leases, f"{LEASE_PREFIX}{node}")

    def change_secret(self, change: SecretChange) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`.

        Decided on what the server has now, and written on condition that the Secret is still the one that was read.
        """
        infos = Draft(self._infos, Objects())
        try:
            for page in pages(self._connection, self._infos):
                for manifest in page.items:
                    infos.add(manifest)
        except ApiError as error:
            if error.status != NOT_FOUND or self._group_known():
                raise
            # A cluster that does not know KmeshNodeInfo yet: nobody has announced anything.
        for problem in infos.problems.values():
            # Whoever does not know the SPIs in use must not choose one.
            raise ClusterError(f"{problem}; repair or delete it first")
        announced = tuple(one for one in infos.objects.values() if isinstance(one, NodeInfo))
        stored = self._writer.change_secret(
            lambda before: change(before, ClusterObjects(node_infos=announced, secret=before))
        )
        if "Secret" not in self._watches:
            return
        if stored is not None:
            self._watches["Secret"].shelf.written(stored)
        else:
            self._watches["Secret"].shelf.take_out(("Secret", NAMESPACE, SECRET_NAME))

    def close(self) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        with self._store.condition:
            self._closed = True
            running = [*self._watches.values(), *self._pods.values()] if self._started_at is not None else []
        for watch in running:
            watch.stop()
        until = self._clock() + CLOSE_SECONDS
        for watch in (*running, *self._ended):
            watch.join(max(0.0, until - self._clock()))
        self._connection.close()
        self._store.close()

    def _group_known(self) -> bool:
        """Tell whether the server has KmeshNodeInfo in any version at all."""
        group = self._infos.api.partition("/")[0]
        try:
            self._connection.call("get", f"API group {group}", "GET", f"/apis/{group}", kinds=("APIGroup",))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return False
        return True

    def _watch(self, collection: Collection) -> Watch:
        on_change = {"Namespace": self._choose_pods, "Pod": self._adjust_pods}
        if self._scope is Pods.UNANNOUNCED:
            on_change |= {"Node": self._choose_pods, "KmeshNodeInfo": self._choose_pods}
        shelf = Shelf(self._store, collection, self._clock, on_change.get(collection.kind, lambda: None))
        optional = collection.kind == "ServiceCIDR"  # servers before 1.33 have none
        return Watch(self._connection, shelf, self._clock, random.random, optional=optional)

    def _start(self) -> None:
        self._started_at = self._clock()
        for watch in self._watches.values():
            watch.shelf.lost_at = self._started_at
            self._begin(watch)
        self._choose_pods()

    def _begin(self, watch: Watch) -> None:
        """Have a collection become known; after the first trouble, who reads once need not read more."""
        if not self._once:
            watch.start()
        elif not any(shelf.trouble for shelf in self._shelves()):
            watch.read_once()

    def _shelves(self) -> list[Shelf]:
        return [watch.shelf for watch in (*self._watches.values(), *self._pods.values())]

    def _whole(self) -> bool:
        """Tell whether all that is needed has been seen."""
        return all(shelf.synced for shelf in self._shelves())

    def _enough(self) -> bool:
        """Tell whether the first read has waited for long enough."""
        return self._whole() or (self._hasty and any(shelf.trouble for shelf in self._shelves()))

    def _settled(self) -> bool:
        """Tell whether of each kind it is known what there is, or why that is not known."""
        return all(shelf.synced or shelf.trouble for shelf in self._shelves())

    def _choose_pods(self) -> None:
        """Decide anew which pods to watch; the lock is held."""
        match self._scope:
            case Pods.ENROLLED:
                self._wanted_pods = self._enrolled_pods()
            case Pods.EVERY:
                self._wanted_pods = frozenset({ALL_PODS})
            case Pods.UNANNOUNCED:
                self._wanted_pods = self._unannounced_pods()
        self._adjust_pods()

    def _enrolled_pods(self) -> frozenset[Collection]:
        enrolled = [one.name for one in self._of("Namespace") if enrols(one)]
        each = (Collection("Pod", name) for name in enrolled)
        return frozenset({LABELLED, ALL_PODS} if len(enrolled) > MOST_NAMESPACES else {LABELLED, *each})

    def _unannounced_pods(self) -> frozenset[Collection]:
        if not all(self._watches[kind].shelf.synced for kind in ("Node", "KmeshNodeInfo")):
            return frozenset()
        announced = {info.name for info in self._of("KmeshNodeInfo")}
        silent = [node.name for node in self._of("Node") if node.name not in announced]
        if len(silent) > MOST_NODES:
            return self._enrolled_pods()
        return frozenset(Collection("Pod", fields=f"spec.nodeName={name}") for name in silent)

    def _adjust_pods(self) -> None:
        """Watch the pods wanted, and no others as soon as the wanted ones are known; the lock is held."""
        if self._closed:
            return
        for collection in self._wanted_pods - self._pods.keys():
            self._pods[collection] = self._watch(collection)
            self._begin(self._pods[collection])
        obsolete = self._pods.keys() - self._wanted_pods
        if obsolete and all(self._pods[collection].shelf.synced for collection in self._wanted_pods):
            for collection in obsolete:
                watch = self._pods.pop(collection)
                watch.stop()
                self._ended = [*(one for one in self._ended if one.running()), watch]

    def _collect(self) -> ClusterObjects:
        """Put together what all watches have brought; the lock is held."""
        nodes: Objects[NodeObject] = self._of("Node")
        infos: Objects[NodeInfo] = self._of("KmeshNodeInfo")
        judged: tuple[tuple[str, Objects[Any]], ...] = (("Node", nodes), ("KmeshNodeInfo", infos))
        for kind, objects in judged:
            for _, name, _, one in objects.changes(self._judged.get(kind, Objects())):
                self._odd.pop((kind, name), None)
                if one is not None and (sentences := tuple(oddities(one))):
                    self._odd[kind, name] = sentences
            self._judged[kind] = objects
        problems = (problem for shelf in self._shelves() for problem in shelf.problems)
        cidrs = (cidr for one in self._of("ServiceCIDR") for cidr in one.cidrs)
        secret = next((one.manifest for one in self._of("Secret")), None)
        return ClusterObjects(
            namespaces=self._of("Namespace"),
            nodes=nodes,
            pods=self._merged_pods(),
            node_infos=infos,
            secret=secret,
            services=tuple(dict.fromkeys(cidrs)),
            service_objects=self._of("Service"),
            problems=(*dict.fromkeys(problems), *chain.from_iterable(self._odd[name] for name in sorted(self._odd))),
            complete=self._complete,
        )

    def _merged_pods(self) -> Objects[PodObject]:
        """Give the pods of all watches, of one that several have brought the last one's; the lock is held."""
        # Those that are watched for their label come first: what the others say of a pod is what counts.
        ordered = sorted(self._pods, key=lambda one: (not one.labels, one.namespace, one.fields))
        layers = {
            collection: cast("Objects[PodObject]", self._pods[collection].shelf.objects) for collection in ordered
        }
        self._merged = stacked(layers, self._layers, self._merged)
        self._layers = layers
        return self._merged

    def _of(self, kind: str) -> Objects[Any]:
        return self._watches[kind].shelf.objects if kind in self._watches else Objects()

# SPDX-License-Identifier: Apache-2.0
"""Clusters of any size: as the source of one node holds them, without a server, and as views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from typing import Any

from kmesh.cluster.kubernetes.source import ALL_PODS, KubernetesCluster
from kmesh.cluster.kubernetes.store import Shelf, lean
from kmesh.cluster.objects import (
    CORE_API,
    NAMESPACE,
    NODE_INFO_API,
    REPLAY_ANNOTATION,
    ClusterObjects,
    Identity,
    Namespace,
    NodeInfo,
    NodeObject,
    Object,
    PodObject,
)
from kmesh.cluster.snapshot import MODE_LABEL
from kmesh.cluster.views import Views

from kmesh_bpf import Key, Node, Peer, Pod, View
from tests.unit.cluster.fake_api import FakeApi, listed

NAMESPACES = 200
KMESH, NONE = {MODE_LABEL: "Kmesh"}, {MODE_LABEL: "none"}
WINDOW = 4096
NODE_ADDRESSES, POD_CIDRS = 0x0A0A0000, 0x0B000000


def view_of(peers: int, pods: int) -> View:
    """Give the view of the first of so many nodes; each pod's address is of its node's pod CIDR."""
    nodes = [Node(f"n{n}", (ip_address(NODE_ADDRESSES + n),), f"boot-{n}", (pod_cidr(n),)) for n in range(peers + 1)]
    managed = tuple(
        Pod(f"p{number}", f"n{node}", (ip_address(POD_CIDRS + 1 + (node << 8) + round_),))
        for number, (round_, node) in enumerate(divmod(one, peers + 1) for one in range(pods))
    )
    others = tuple(Peer(one, 1, WINDOW, node_traffic=True) for one in nodes[1:])
    return View(nodes[0], others, managed, {1: Key(bytes(36))}, announced=1)


def pod_cidr(node: int) -> IPv4Network:
    """Give a node's pod CIDR."""
    return IPv4Network((POD_CIDRS + (node << 8), 24))


@dataclass(frozen=True)
class Spaces:
    """Who is enrolled: two of three small namespaces; a large one, which is not, holds the first ``large`` pods."""

    large: int = 0

    def of(self, number: int) -> str:
        """Give a pod's namespace."""
        return "large" if number < self.large else f"ns{number % NAMESPACES}"


class Cluster:
    """A source that holds a cluster of so many nodes, and the views of its first node.

    ``managed``: about how many pods of other nodes are managed; ``large``: pods besides, in the namespace ``large``.
    """

    def __init__(self, peers: int, managed: int, large: int = 0) -> None:
        self.nodes = peers + 1
        self.spaces = Spaces(large)
        self.pods = large + managed * 3 // 2
        self.keys = {1: Key(bytes(36))}
        self.announced, self.announced_at = 1, 0.0
        self.source = KubernetesCluster(FakeApi(lambda *_: listed()))
        self.views = Views("n0")
        self.source.read()
        names = {("Namespace", "", f"ns{n}"): Namespace(f"ns{n}", KMESH if n % 3 else {}) for n in range(NAMESPACES)}
        self.fill(self.shelf("Namespace"), names | {("Namespace", "", "large"): Namespace("large", {})})
        self.fill(self.shelf("Node"), {("Node", "", f"n{n}"): self._node(n) for n in range(self.nodes)})
        self.fill(
            self.shelf("KmeshNodeInfo"),
            {("KmeshNodeInfo", NAMESPACE, f"n{n}"): self._info(n) for n in range(1, self.nodes)},
        )
        pods, changed = self.shelf("Pod"), self.source._store.condition
        with changed:
            changed.wait_for(lambda: pods.synced)  # its own list, of nothing, must not come after what is put here
        self.fill(pods, self._all_pods())
        self.view()

    def close(self) -> None:
        """Let go of the source."""
        self.source.close()

    def shelf(self, kind: str) -> Shelf:
        """Give where the source keeps a kind of object."""
        return self.source._pods[ALL_PODS].shelf if kind == "Pod" else self.source._watches[kind].shelf

    @staticmethod
    def fill(shelf: Shelf, objects: dict[Identity, Object]) -> None:
        """Put objects there, as a list does."""
        draft = shelf.draft()
        draft.objects.update(objects)
        shelf.replace(draft)

    def read(self) -> ClusterObjects:
        """Give what the source holds."""
        return self.source.read()

    def view(self) -> View:
        """Give the view of that."""
        return self.views.view(
            self.read(),
            keys=self.keys,
            services=(),
            announced=self.announced,
            announced_at=self.announced_at,
            boot_id="",
        )

    def address(self, number: int, more: int = 0) -> str:
        """Give a pod's address, in its node's pod CIDR; ``more``: another one, that nobody has."""
        node, slot = number % self.nodes, number // self.nodes
        return str(ip_address(POD_CIDRS + (node << 8) + 1 + slot + more))

    def managed(self) -> Iterable[int]:
        """Give the numbers of pods that are managed, of other nodes, from the last one on."""
        return (
            number
            for number in range(self.pods - 1, -1, -1)
            if self.spaces.of(number) != "large" and number % NAMESPACES % 3 and number % self.nodes
        )

    def pod(self, number: int, *, more: int = 0, labels: dict[str, str] | None = None) -> dict[str, Any]:
        """Give a pod's manifest."""
        return {
            "kind": "Pod",
            "apiVersion": CORE_API,
            "metadata": {"name": f"pod-{number:06x}", "namespace": self.spaces.of(number), "labels": labels or {}},
            "spec": {"nodeName": f"n{number % self.nodes}", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": self.address(number, more)}]},
        }

    def info(self, number: int, spi: int, boot_id: str = "") -> dict[str, Any]:
        """Give a KmeshNodeInfo's manifest."""
        return {
            "kind": "KmeshNodeInfo",
            "apiVersion": NODE_INFO_API,
            "metadata": {
                "name": f"n{number}",
                "namespace": NAMESPACE,
                "annotations": {REPLAY_ANNOTATION: str(WINDOW)},
            },
            "spec": {
                "spi": spi,
                "addresses": [str(ip_address(NODE_ADDRESSES + number))],
                "bootID": boot_id or f"boot-{number}",
            },
        }

    def namespace(self, name: str, labels: dict[str, str]) -> dict[str, Any]:
        """Give a Namespace's manifest."""
        return {"kind": "Namespace", "apiVersion": CORE_API, "metadata": {"name": name, "labels": labels}}

    def put(self, manifest: dict[str, Any]) -> None:
        """Let an event come."""
        self.shelf(manifest["kind"]).put(manifest)

    def _node(self, number: int) -> NodeObject:
        return NodeObject(f"n{number}", (ip_address(NODE_ADDRESSES + number),), (pod_cidr(number),), "boot")

    def _info(self, number: int) -> NodeInfo:
        return NodeInfo(
            f"n{number}",
            1,
            (str(ip_address(NODE_ADDRESSES + number)),),
            f"boot-{number}",
            (),
            {REPLAY_ANNOTATION: str(WINDOW)},
        )

    def _all_pods(self) -> dict[Identity, Object]:
        found: dict[Identity, Object] = {}
        for number in range(self.pods):
            pod = PodObject(
                self.spaces.of(number),
                f"pod-{number:06x}",
                {},
                f"n{number % self.nodes}",
                False,
                "Running",
                (ip_address(self.address(number)),),
                frozenset({"app"}),
            )
            found["Pod", pod.namespace, pod.name] = lean(pod)
        return found

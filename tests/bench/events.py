"""What an event of the cluster costs from the shelf that takes it in to the view: small and large clusters, side by side.

Processor time: an event takes a fraction of a millisecond, and whatever else runs on the machine would be all of a p99.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import Any

from kmesh.cluster.kubernetes.source import ALL_PODS, KubernetesCluster
from kmesh.cluster.kubernetes.store import Shelf, lean
from kmesh.cluster.objects import (
    CORE_API,
    NAMESPACE,
    NODE_INFO_API,
    ClusterObjects,
    Identity,
    Namespace,
    NodeInfo,
    NodeObject,
    Object,
    PodObject,
)
from kmesh.cluster.snapshot import MODE_LABEL, build_view
from kmesh.cluster.views import Views
from kmesh.launcher.cli import GC_THRESHOLDS

from tests.bench.results import Result
from tests.unit.cluster.fake_api import FakeApi, listed

FEW_NODES, NODES, PODS_A_NODE, NAMESPACES, LARGE = 100, 5_000, 30, 200, 10_000
"""``LARGE``: pods of the one namespace that is large, where there are so many."""
EVENTS = 200
KMESH = {MODE_LABEL: "Kmesh"}
NOTHING_ELSE: dict[str, Any] = {"keys": {}, "services": (), "announced": 0, "announced_at": 0.0, "boot_id": ""}


def space_of(number: int, pods: int) -> str:
    """Give a pod's namespace: two of three are enrolled, of small ones, and the large one is not."""
    return "large" if number < LARGE and pods > 2 * LARGE else f"ns{number % NAMESPACES}"


def address_of(number: int) -> str:
    return str(ip_address(0x14000000 + number))


class Cluster:
    """A source that holds a cluster of so many nodes, without a server, and the views of its first node."""

    def __init__(self, nodes: int) -> None:
        self.nodes, self.pods = nodes, nodes * PODS_A_NODE
        self.source = KubernetesCluster(FakeApi(lambda *_: listed()))
        self.views = Views("n0")
        self.source.read()
        spaces = {("Namespace", "", f"ns{n}"): Namespace(f"ns{n}", KMESH if n % 3 else {}) for n in range(NAMESPACES)}
        self.fill(self.shelf("Namespace"), spaces | {("Namespace", "", "large"): Namespace("large", {})})
        cidr = ip_network("10.0.0.0/24")
        addresses = [ip_address(0x0A0A0000 + number) for number in range(nodes)]
        self.fill(
            self.shelf("Node"),
            {("Node", "", f"n{n}"): NodeObject(f"n{n}", (one,), (cidr,), "boot") for n, one in enumerate(addresses)},
        )
        self.fill(
            self.shelf("KmeshNodeInfo"),
            {
                ("KmeshNodeInfo", NAMESPACE, f"n{n}"): NodeInfo(f"n{n}", 1, (str(one),), "boot", (), {})
                for n, one in enumerate(addresses)
            },
        )
        pods, changed = self.shelf("Pod"), self.source._store.condition
        with changed:
            changed.wait_for(lambda: pods.synced)  # its own list, of nothing, must not come after what is put here
        self.fill(pods, self.all_pods())
        self.view()

    def shelf(self, kind: str) -> Shelf:
        return self.source._pods[ALL_PODS].shelf if kind == "Pod" else self.source._watches[kind].shelf

    @staticmethod
    def fill(shelf: Shelf, objects: dict[Identity, Object]) -> None:
        draft = shelf.draft()
        draft.objects.update(objects)
        shelf.replace(draft)

    def all_pods(self) -> dict[Identity, Object]:
        found: dict[Identity, Object] = {}
        for number in range(self.pods):
            pod = PodObject(
                space_of(number, self.pods),
                f"pod-{number:06x}",
                {},
                f"n{number % self.nodes}",
                False,
                "Running",
                (ip_address(address_of(number)),),
                frozenset({"app"}),
            )
            found["Pod", pod.namespace, pod.name] = lean(pod)
        return found

    def view(self) -> ClusterObjects:
        objects = self.source.read()
        self.views.view(objects, **NOTHING_ELSE)
        return objects

    def p99(self, shelf: Shelf, events: Iterable[dict[str, Any]]) -> float:
        """Give the milliseconds from the shelf to the view that all but a hundredth of the events take."""
        taken = []
        for manifest in events:
            start = time.process_time()
            shelf.put(manifest)
            self.view()
            taken.append((time.process_time() - start) * 1e3)
        return statistics.quantiles(taken, n=100)[-1]

    def pod_events(self) -> float:
        """Pods that are given another address."""
        step = self.pods // EVENTS
        numbers = range(self.pods - 1, self.pods - EVENTS * step, -step)
        return self.p99(self.shelf("Pod"), (self.moved(number) for number in numbers))

    def moved(self, number: int) -> dict[str, Any]:
        return {
            "kind": "Pod",
            "apiVersion": CORE_API,
            "metadata": {"name": f"pod-{number:06x}", "namespace": space_of(number, self.pods)},
            "spec": {"nodeName": f"n{number % self.nodes}", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": address_of(number + self.pods)}]},
        }

    def info_events(self) -> float:
        """Nodes that announce another key."""
        return self.p99(self.shelf("KmeshNodeInfo"), (self.announced(n % self.nodes, 2 + n) for n in range(EVENTS)))

    def announced(self, number: int, spi: int) -> dict[str, Any]:
        return {
            "kind": "KmeshNodeInfo",
            "apiVersion": NODE_INFO_API,
            "metadata": {"name": f"n{number}", "namespace": NAMESPACE},
            "spec": {"spi": spi, "addresses": [str(ip_address(0x0A0A0000 + number))], "bootID": "boot"},
        }

    def label(self, name: str, times: int) -> float:
        """Give the milliseconds of labelling a namespace, the mean of so many times."""
        taken = 0.0
        for labels in (KMESH, {}) * times:
            start = time.process_time()
            manifest = {"kind": "Namespace", "apiVersion": CORE_API, "metadata": {"name": name, "labels": labels}}
            self.shelf("Namespace").put(manifest)
            self.view()
            taken += time.process_time() - start if labels else 0.0
        return taken / times * 1e3

    def scratch(self) -> float:
        start = time.process_time()
        build_view(self.source.read(), "n0", **NOTHING_ELSE)
        return (time.process_time() - start) * 1e3


EVENTS_OF_ONE: tuple[tuple[str, Callable[[Cluster], float]], ...] = (
    ("a pod's event, to the view, p99", Cluster.pod_events),
    ("a KmeshNodeInfo's event, to the view, p99", Cluster.info_events),
)


def events() -> Iterator[Result]:
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)  # as the daemon does
    try:
        small, large = Cluster(FEW_NODES), Cluster(NODES)
        with closing(small.source), closing(large.source):
            yield from compared(small, large)
    finally:
        gc.set_threshold(*before)


def compared(small: Cluster, large: Cluster) -> Iterator[Result]:
    size = f"{large.nodes:,} nodes, {large.pods:,} pods"
    scratch = large.scratch()
    for what, measure in EVENTS_OF_ONE:
        little, much = measure(small), measure(large)
        yield Result(f"{what}, {size}", much, f"{small.nodes} nodes", little, "ms")
        yield Result(f"{what}, {size}", much, "the view from scratch", scratch, "ms")
    for name in ("ns0", "large"):
        pods = len(large.source.read().pods.part(name))
        cost = large.label(name, 5) / pods
        yield Result(f"a namespace of {pods:,} pods labelled, a pod", cost, "from scratch", scratch / large.pods, "ms")

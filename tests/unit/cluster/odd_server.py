# SPDX-License-Identifier: Apache-2.0
"""A server that is sane until it is told not to be, and a watch of it."""

from contextlib import contextmanager

from kmesh.cluster.kubernetes.resources import Collection
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.cluster.kubernetes.watch import Watch

from tests.contract.test_cluster_source import eventually
from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, listed

NAMESPACES = Collection("Namespace")
NAMELESS = (None, 5, [], {}, {"name": None}, {"name": ""}, {"name": 5}, {"name": ["a"]}, "a")


class World:
    """A server that is sane, until a list or a watch of namespaces is set to something odd."""

    def __init__(self) -> None:
        self.names, self.odd_list, self.odd_events, self.version = ["a", "b"], None, None, 10
        self.asked_odd = 0
        self.api = FakeApi(self.answer, self.watch)

    def answer(self, plural, asked):
        if plural != "namespaces" or "fieldSelector" in asked:
            return listed()
        if self.odd_list is not None:
            self.asked_odd += 1
            return self.odd_list() if callable(self.odd_list) else self.odd_list
        return listed(*(namespace(name) for name in self.names), version=self.version)

    def watch(self, plural, asked):
        if self.odd_events is None or plural != "namespaces":
            return []
        self.asked_odd += 1
        return self.odd_events


def namespace(name: str, version: int = 5) -> dict:
    manifest = kube.namespace(name)
    manifest["metadata"]["resourceVersion"] = str(version)
    return manifest


@contextmanager
def watching(world, told=None):
    """A watch whose waits are the shortest that chance may give; ``told`` takes what its shelf is told."""
    store = Store()
    shelf = Shelf(store, NAMESPACES, lambda: 0.0, lambda: None)
    if told is not None:
        lost, shelf.lost = shelf.lost, lambda *given: (told.append(given[0]), lost(*given))
    watch = Watch(world.api, shelf, lambda: 0.0, lambda: 0.0)
    watch.start()
    try:
        yield watch
        assert watch.running()
    finally:
        watch.stop()
        watch.join(10)
        store.close()
    assert not watch.running()


def names(watch) -> list[str]:
    return sorted(name for (_, name), _ in watch.shelf.objects.items())


def settled(watch, *wanted: str) -> bool:
    return eventually(
        lambda: names(watch) == list(wanted) and watch.shelf.problems == () and watch.shelf.lost_at is None
    )

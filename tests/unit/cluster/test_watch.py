# SPDX-License-Identifier: Apache-2.0
"""A watch over an API server that does what a real one does on rare days only."""

import json
import threading
from contextlib import contextmanager

import pytest
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.resources import Collection, refusal
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.cluster.kubernetes.watch import Watch
from kmesh.errors import ApiError

from tests.contract.test_cluster_source import eventually
from tests.lab.apiserver import LOOPBACK, free_port
from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, event, listed

INFOS = Collection("KmeshNodeInfo", "kmesh-system")
CIDRS = Collection("ServiceCIDR")


@pytest.fixture
def store():
    store = Store()
    yield store
    store.close()


def shelf_of(store, collection=INFOS) -> Shelf:
    return Shelf(store, collection, lambda: 0.0, lambda: None)


def names(shelf) -> list[str]:
    return sorted(one.name for one in shelf.objects)


@contextmanager
def watching(connection, shelf, *, optional=False):
    """A watch whose waits are the shortest that chance may give."""
    watch = Watch(connection, shelf, lambda: 0.0, lambda: 0.0, optional=optional)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
        watch.join(10)
    assert not watch.running()


def test_a_list_whose_next_page_the_server_has_forgotten_is_begun_anew_and_read_in_one(store):
    """What was on the pages before may be gone."""

    def answer(plural, asked):
        if plural == "namespaces":
            return listed()
        if "continue" in asked:
            raise refusal("list", str(INFOS), 410, b'{"message": "The provided continue parameter is too old"}')
        if "limit" in asked:
            return listed(kube.node_info(1), kube.node_info(2), version=5, more="token")
        return listed(kube.node_info(2), kube.node_info(3), version=9)

    api, shelf = FakeApi(answer), shelf_of(store)
    with watching(api, shelf):
        assert eventually(lambda: any("watch" in asked for _, asked in api.asked))
    assert names(shelf) == ["n2", "n3"]
    lists = [asked for plural, asked in api.asked if plural == "kmeshnodeinfos" and "watch" not in asked]
    assert [set(asked) for asked in lists] == [{"limit"}, {"limit", "continue"}, set()]
    assert api.asked[-1][1]["resourceVersion"] == "9"


def test_the_next_watch_goes_on_from_the_last_bookmark(store):
    """Else it would begin where nothing of this collection has happened for so long that the server has forgotten."""
    bookmark = {"kind": "KmeshNodeInfo", "metadata": {"resourceVersion": "42"}}

    def watch(_, asked):
        return [event("BOOKMARK", bookmark)] if asked["resourceVersion"] == "7" else []

    api, shelf = FakeApi(lambda *_: listed(kube.node_info(2), version=7), watch, ends=True), shelf_of(store)

    def watches() -> list[dict[str, str]]:
        return [asked for _, asked in api.asked if "watch" in asked]

    with watching(api, shelf):
        assert eventually(lambda: len(watches()) > 2)
    assert [asked["resourceVersion"] for asked in watches()[:3]] == ["7", "42", "42"]
    assert all(asked["allowWatchBookmarks"] == "true" for asked in watches())
    assert names(shelf) == ["n2"]


class QuickTime:
    """In place of a Comeback, of a server that stays away: nobody waits, and after ``seconds`` it is over."""

    def __init__(self, seconds: float) -> None:
        self.left, self.waits = seconds, 0
        self.over = threading.Event()

    def away(self) -> None: ...

    def answered(self) -> None: ...

    def nudge(self) -> None: ...

    def wait(self, seconds: float, stopping: threading.Event, *, early: bool) -> None:
        self.left -= seconds
        self.waits += 1
        if self.left < 0 or self.waits > 10_000:
            self.over.set()
            stopping.wait(10)


def nobody_listens(tmp_path):
    cluster = {"name": "c", "cluster": {"server": f"https://{LOOPBACK}:{free_port(LOOPBACK)}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "c", **config}))
    return connect(str(path), None, {})


def every_list_fails(_):
    def answer(*_):
        raise ApiError("no", 500)

    return FakeApi(answer)


def every_watch_ends_at_once(_):
    return FakeApi(lambda *_: listed(), ends=True)


def every_watch_is_of_a_version_forgotten(_):
    return FakeApi(lambda *_: listed(), lambda *_: [event("ERROR", {"code": 410, "message": "too old"})], ends=True)


@pytest.mark.parametrize(
    "server", [nobody_listens, every_list_fails, every_watch_ends_at_once, every_watch_is_of_a_version_forgotten]
)
def test_in_ten_minutes_a_server_that_fails_at_once_is_asked_again_some_times_and_not_thousands(
    store, tmp_path, server
):
    connection = server(tmp_path)
    time = connection.comeback = QuickTime(600.0)
    with watching(connection, shelf_of(store)):
        assert time.over.wait(60)
    assert 50 < time.waits < 250


def test_a_kind_that_the_server_does_not_have_is_asked_for_every_five_minutes_and_nothing_is_missing(store):
    def answer(plural, _):
        if plural == "servicecidrs":
            raise refusal("list", "servicecidrs", 404, b"404 page not found\n")
        return listed()

    connection, shelf = FakeApi(answer), shelf_of(store, CIDRS)
    time = connection.comeback = QuickTime(1500.0)
    with watching(connection, shelf, optional=True):
        assert time.over.wait(60)
    assert (time.waits, shelf.synced, shelf.problems) == (6, True, ())

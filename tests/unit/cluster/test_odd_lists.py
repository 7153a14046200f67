# SPDX-License-Identifier: Apache-2.0
"""Whatever a server answers to a list: what was good stays in force, and nothing is taken for gone that one odd answer lacks."""

import json
from contextlib import closing

import pytest
from kmesh.cluster.kubernetes import listing
from kmesh.cluster.kubernetes.resources import Collection, refusal
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.cluster.kubernetes.watch import Watch

from tests.contract.test_cluster_source import eventually
from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, listed
from tests.unit.cluster.odd_server import NAMELESS, World, names, namespace, settled, watching

pytestmark = pytest.mark.usefixtures("quick")


ODD_LISTS = {
    "html": b"<html>log in</html>",
    "nothing": b"",
    "ok": b'{"status": "ok"}',
    "a Status": b'{"kind": "Status", "status": "Success"}',
    "another list": listed(kube.node(1)) | {"kind": "NodeList"},
    "no items": {"metadata": {"resourceVersion": "9"}, "items": None},
    "items no list": {"metadata": {"resourceVersion": "9"}, "items": {"a": 1}},
    "an item no object": {"metadata": {"resourceVersion": "9"}, "items": [namespace("a"), 5]},
    "no version": {"metadata": {}, "items": []},
    "no metadata": {"metadata": None, "items": []},
    "a token no text": {"metadata": {"resourceVersion": "9", "continue": {"a": 1}}, "items": []},
    "cut": json.dumps(listed(namespace("a")) | {"kind": "NamespaceList"}).encode()[:-9],
}


@pytest.mark.parametrize("name", ODD_LISTS)
def test_what_is_no_list_is_told_and_changes_nothing(name):
    world = World()
    with watching(world) as watch:
        assert settled(watch, "a", "b")
        world.odd_list = ODD_LISTS[name]
        watch._begin_anew("a test")
        watch.cut()
        assert eventually(lambda: any("instead of a list of namespaces" in one for one in watch.shelf.problems))
        assert names(watch) == ["a", "b"]
        world.odd_list, world.names = None, ["b", "c"]
        assert settled(watch, "b", "c")


@pytest.mark.parametrize("odd", NAMELESS, ids=repr)
def test_of_an_object_without_a_name_the_others_do_not_suffer_and_none_is_taken_for_gone(odd):
    world = World()
    with watching(world) as watch:
        assert settled(watch, "a", "b")
        nameless = {**namespace("b"), "metadata": odd}
        world.odd_list = listed(nameless, namespace("a"), namespace("c"), version=20)
        watch._begin_anew("a test")
        watch.cut()
        assert eventually(lambda: names(watch) == ["a", "b", "c"])
        (problem,) = watch.shelf.problems
        assert problem == "in the list of namespaces: a Namespace without metadata.name; what it lacks is kept"
        world.odd_list, world.names = None, ["c"]
        watch._begin_anew("a test")
        watch.cut()
        assert settled(watch, "c")


def test_an_empty_list_is_asked_for_again_before_it_is_believed():
    world = World()
    empty = {"metadata": {"resourceVersion": "20"}, "items": []}
    with watching(world) as watch:
        assert settled(watch, "a", "b")
        seen = []
        world.odd_list = lambda: seen.append(names(watch)) or (empty if len(seen) == 1 else listed(namespace("b")))
        watch._begin_anew("a test")
        watch.cut()
        assert settled(watch, "b")
        assert seen[:2] == [["a", "b"], ["a", "b"]], "the first empty one was not believed"
        world.odd_list = empty
        watch._begin_anew("a test")
        watch.cut()
        assert settled(watch)


def test_a_kind_that_is_gone_in_one_answer_is_asked_for_again_before_that_is_believed():
    cidrs, store, answers = Collection("ServiceCIDR"), Store(), [listed(kube.service_cidr())]

    def answer(plural, _):
        if plural != "servicecidrs":
            return listed()
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if found is None:
            raise refusal("list", "servicecidrs", 404, b"404 page not found")
        return found

    shelf = Shelf(store, cidrs, lambda: 0.0, lambda: None)
    watch = Watch(FakeApi(answer), shelf, lambda: 0.0, lambda: 0.0, optional=True)
    with closing(store):
        watch.start()
        try:
            assert eventually(lambda: len(shelf.objects) == 1)
            held = []
            shelf_lost, shelf.lost = shelf.lost, lambda *given: (held.append(len(shelf.objects)), shelf_lost(*given))
            answers[:] = [None, listed(kube.service_cidr())]
            watch._begin_anew("a test")
            watch.cut()
            assert eventually(lambda: held and answers == [listed(kube.service_cidr())] and shelf.lost_at is None)
            assert set(held) == {1}
            assert len(shelf.objects) == 1
            answers[:] = [None]
            watch._begin_anew("a test")
            watch.cut()
            assert eventually(lambda: len(shelf.objects) == 0)
        finally:
            watch.stop()
            watch.join(10)


def test_pages_that_have_arrived_are_kept_when_a_later_one_fails():
    """Else a list that takes longer than connections live would be begun anew for ever."""
    asked_for, failures = [], [1, 1, 1]

    def answer(plural, asked):
        if plural == "namespaces" and "fieldSelector" not in asked:
            at = int(asked.get("continue", "0"))
            asked_for.append(at)
            if at and failures:
                failures.pop()
                raise refusal("list", "namespaces", 503, b"")
            return listed(namespace(f"n{at}"), version=7, more=str(at + 1) if at < 3 else "")
        return listed(version=9)

    world = World()
    world.api = FakeApi(answer)
    with watching(world) as watch:
        assert settled(watch, "n0", "n1", "n2", "n3")
    assert asked_for == [0, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("newest", [{"uid": "another"}, {"version": 3}])
def test_they_are_not_kept_when_another_cluster_or_an_older_state_answers(newest):
    asked_for, failed = [], []

    def answer(plural, asked):
        if "fieldSelector" in asked:
            system = kube.namespace("kube-system")
            system["metadata"]["uid"] = newest.get("uid", "one") if failed else "one"
            return listed(system, version=newest.get("version", 9) if failed else 9)
        asked_for.append(asked.get("continue", ""))
        if "continue" in asked and not failed:
            failed.append(True)
            raise refusal("list", "namespaces", 503, b"")
        return listed(namespace("a"), version=7, more="" if failed else "t")

    world = World()
    world.api = FakeApi(answer)
    with watching(world) as watch:
        assert settled(watch, "a")
    assert asked_for == ["", "t", ""]


def test_a_page_that_is_none_discards_those_before_it():
    answers = [listed(namespace("a"), more="t"), {"status": "ok"}, listed(namespace("b"))]

    def answer(plural, asked):
        return listed(version=9) if "fieldSelector" in asked else answers.pop(0) if len(answers) > 1 else answers[0]

    world = World()
    world.api = FakeApi(lambda plural, asked: answer(plural, asked) if plural == "namespaces" else listed())
    with watching(world) as watch:
        assert settled(watch, "b")


def test_a_server_that_always_has_another_page_is_none(monkeypatch):
    monkeypatch.setattr(listing, "MOST_PAGES", 5)
    world, asked_for = World(), []

    def answer(plural, asked):
        if "fieldSelector" in asked:
            return listed(version=9)
        asked_for.append(asked.get("continue", ""))
        return listed(namespace("a"), more=str(len(asked_for)))

    world.api = FakeApi(lambda plural, asked: answer(plural, asked) if plural == "namespaces" else listed())
    with watching(world) as watch:
        assert eventually(lambda: any("that has an end" in one for one in watch.shelf.problems))
        assert eventually(lambda: len(asked_for) > 5)
    assert asked_for[:6] == ["", "1", "2", "3", "4", ""]

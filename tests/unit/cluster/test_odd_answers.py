"""Whatever a server answers: one sentence tells it, what was good stays in force, and the thread goes on until close()."""

import copy
import json
import threading
from contextlib import closing, contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmesh.cluster.kubernetes import listing
from kmesh.cluster.kubernetes import watch as module
from kmesh.cluster.kubernetes.resources import LINE_LIMIT, Collection, lines, refusal
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.cluster.kubernetes.watch import Watch

from tests.contract.test_cluster_source import eventually
from tests.unit.amount import examples
from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, event, listed
from tests.unit.cluster.test_decoding import MANIFESTS

NAMESPACES = Collection("Namespace")
KEY = kube.entry()["aeadKey"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "EMPTY_SECONDS", 0.01)
    monkeypatch.setattr(module, "FIRST_RETRY", 0.05)


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


NAMELESS = (None, 5, [], {}, {"name": None}, {"name": ""}, {"name": 5}, {"name": ["a"]}, "a")
ODD_EVENTS = {
    "html": b"<html>log in</html>\n",
    "html without a line": b"<html>log in</html>",
    "half an event": b'{"type": "ADDED", "obj',
    "no JSON": b'{"type": "ADDED", "object": {"metadata"\n',
    "binary": b"\xff\xfe\n",
    "a list": b"[]\n",
    "null": b"null\n",
    "an object": b"{}\n",
    "no object": event("ADDED", None),
    "unknown type": event("FOO", namespace("c")),
    "a type that is none": event(5, namespace("c")),
    "another kind": event("ADDED", {"kind": "Node", "metadata": {"name": "a"}}),
    "deep": b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"\n",
    **{f"metadata {odd!r}": event("MODIFIED", {"kind": "Namespace", "metadata": odd}) for odd in NAMELESS},
    "deleted, metadata null": event("DELETED", {"kind": "Namespace", "metadata": None}),
}


@pytest.mark.parametrize("name", ODD_EVENTS)
def test_what_is_no_event_is_told_and_all_is_read_anew_as_soon_as_the_server_is_sane(name):
    world = World()
    world.api = FakeApi(world.answer, world.watch, ends=name in ("html without a line", "half an event"))
    world.odd_events = [ODD_EVENTS[name]]
    told = []
    with watching(world, told) as watch:
        assert eventually(lambda: world.asked_odd > 3)
        assert names(watch) == ["a", "b"]
        world.odd_events, world.names = None, ["a", "b", "c"]
        world.api._ends = False
        assert settled(watch, "a", "b", "c")
    assert told
    assert {one is not None and "in a watch of namespaces" in one for one in told} == {True}


@pytest.mark.parametrize(
    "status",
    [{}, {"code": None}, {"code": "410"}, {"code": True}, {"code": 10**30}, {"code": 500, "message": {"a": [KEY]}},
     {"code": 500, "message": KEY}, {"code": -1, "message": "\x1b[31m\n"}, {"metadata": None, "code": 503}],
    ids=repr,
)  # fmt: skip
def test_an_error_of_odd_shape_is_told_in_a_line(status):
    world = World()
    world.odd_events = [event("ERROR", status)]
    with watching(world) as watch:
        assert eventually(lambda: any("cannot watch namespaces: " in one for one in watch.shelf.problems))
        (said,) = watch.shelf.problems
        assert said.isprintable()
        assert KEY not in said
        assert (
            f"(HTTP status {status['code']})" in said
            if status.get("code") in (500, 503)
            else "(no HTTP status)" in said
        )
        assert names(watch) == ["a", "b"]
        world.odd_events = None
        assert settled(watch, "a", "b")


def test_a_version_that_is_forgotten_is_no_trouble_and_all_is_read_anew():
    world = World()
    world.odd_events = [event("ERROR", {"code": 410, "message": [KEY]})]
    with watching(world) as watch:
        assert eventually(lambda: world.asked_odd > 3)
        world.odd_events, world.names = None, ["b"]
        assert settled(watch, "b")


@pytest.mark.parametrize("odd", [None, {}, {"metadata": None}, {"metadata": {}}, {"metadata": {"resourceVersion": 7}}])
def test_a_bookmark_without_a_version_changes_nothing(odd):
    world = World()
    bookmark = event("BOOKMARK", {"kind": "Namespace", **(odd or {})})
    world.odd_events = [bookmark, event("ADDED", namespace("c", 11))]
    with watching(world) as watch:
        assert settled(watch, "a", "b", "c")
        assert watch._version == "11"


def test_watches_that_end_at_once_with_nothing_in_them_are_told_and_lists_keep_the_view_current():
    world = World()
    world.api = FakeApi(world.answer, world.watch, ends=True)
    told = []
    with watching(world, told) as watch:
        assert eventually(lambda: told != [])
        world.names = ["b", "c"]
        assert eventually(lambda: names(watch) == ["b", "c"])
    assert set(told) == {"the API server https://fake ends each watch of namespaces at once"}


def test_a_version_that_the_server_does_not_take_is_asked_for_once():
    world, strange = World(), []

    def watch_(plural, asked):
        if asked["resourceVersion"] == "strange":
            strange.append(asked)
            world.names = ["z"]
            raise refusal("watch", "namespaces", 400, b'{"message": "invalid resource version"}')
        return [event("BOOKMARK", {"kind": "Namespace", "metadata": {"resourceVersion": "strange"}})][len(strange) :]

    world.api = FakeApi(world.answer, watch_, ends=True)
    with watching(world) as watch:
        assert settled(watch, "z")
    assert len(strange) == 1


def test_a_line_without_end_is_given_up():
    piece = b"x" * (1 << 20)
    with pytest.raises(ValueError, match="without end"):
        list(lines(piece for _ in range((LINE_LIMIT >> 20) + 2)))
    assert list(lines(iter([piece, b"\n", piece, b"\n"]))) == [piece, piece]


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


def test_a_fault_of_ours_is_told_and_the_thread_goes_on(monkeypatch, caplog):
    world, told = World(), []
    with watching(world, told) as watch:
        assert settled(watch, "a", "b")
        real = watch.shelf.replace
        faults = [RuntimeError(KEY), MemoryError(), RecursionError(), KeyError("x")]

        def replace(*given):
            if faults:
                raise faults.pop()
            real(*given)

        watch.shelf.replace = replace
        world.names = ["c"]
        watch._begin_anew("a test")
        watch.cut()
        assert settled(watch, "c")
        said = [one for one in told if one]
        assert [one.rpartition("(")[2] for one in said] == [
            f"{name}) and begins anew" for name in ("KeyError", "RecursionError", "MemoryError", "RuntimeError")
        ]
    assert KEY not in caplog.text


def test_even_where_nothing_can_be_told_the_thread_goes_on():
    world = World()
    with watching(world) as watch:
        assert settled(watch, "a", "b")
        lost, fails = watch.shelf.lost, [True]

        def nothing(*given):
            if fails.pop() if fails else False:
                raise MemoryError
            lost(*given)

        watch.shelf.lost, world.odd_events = nothing, [b"null\n"]
        watch.cut()
        assert eventually(lambda: not fails)
        world.odd_events = None
        assert settled(watch, "a", "b")


def test_where_no_thread_can_be_started_it_is_told_and_tried_again_with_the_next_read(monkeypatch):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 0.2)
    world, start = World(), threading.Thread.start

    def no_room(self):
        if self.name.startswith("watch "):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", no_room)
    with closing(KubernetesCluster(world.api)) as source:
        found = source.read()
        assert not found.complete
        assert "namespaces cannot be watched: can't start new thread; it is tried again" in found.problems[0]
        monkeypatch.setattr(threading.Thread, "start", start)
        assert eventually(lambda: source.read().complete and source.read().problems == ())


def test_a_source_of_which_no_thread_could_be_started_can_be_closed(monkeypatch):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 0.0)
    source = KubernetesCluster(World().api)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no")))
        source.read()
    source.close()


# --- whatever stands wherever

ODD = st.sampled_from(
    [None, True, 5, -1, 10**30, 1.5, "", "x", "\ud800", "9" * 5000, [], {}, [None], [[]], [5], {"name": 7}, {"a": None}]
)


def places(value: object, at: tuple = ()) -> list[tuple]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in pairs for place in ((*at, key), *places(one, (*at, key)))]


def changed(value: object, place: tuple, odd: object) -> object:
    found = copy.deepcopy(value)
    part = found
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = odd
    return found


@settings(examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(MANIFESTS), st.data())
def test_whatever_stands_in_an_object_wherever_harms_no_other_one(manifest, data):
    """Shelf and watch, with a list, then an event, of which any field is anything."""
    kind = manifest["kind"]
    collection = Collection(kind, "kmesh-system" if kind in ("KmeshNodeInfo", "Secret") else "")
    good = copy.deepcopy(manifest)
    good["metadata"] |= {"name": good["metadata"]["name"] if kind == "Secret" else "other"}
    odd = manifest
    for _ in range(data.draw(st.integers(1, 3))):
        odd = changed(odd, data.draw(st.sampled_from(places(odd) or [("metadata",)])), data.draw(ODD))
        if not isinstance(odd, dict) or not places(odd):
            return
    with closing(Store()) as store:
        shelf = Shelf(store, collection, lambda: 0.0, lambda: None)
        watch = Watch(FakeApi(lambda *_: listed()), shelf, lambda: 0.0, lambda: 0.0)
        draft = shelf.draft()
        for one in (good, odd):
            draft.add(copy.deepcopy(one))
        shelf.replace(draft, "9")
        assert kind == "Secret" or any(name == "other" for (_, name), _ in shelf.objects.items())
        for event_kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"):
            try:
                watch._take(event_kind, copy.deepcopy(odd))
            except (module.ApiError, module._RelistError) as error:
                assert KEY not in str(error)
        assert all(KEY not in problem for problem in shelf.problems)

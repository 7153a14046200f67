# SPDX-License-Identifier: Apache-2.0
"""Whatever a server answers: one sentence tells it, what was good stays in force, and the thread goes on until close()."""

import copy
import threading
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmesh.cluster.kubernetes import watch as module
from kmesh.cluster.kubernetes.resources import LINE_LIMIT, Collection, lines, refusal
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.cluster.kubernetes.watch import Watch

from tests.contract.test_cluster_source import eventually
from tests.unit.amount import examples
from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, event, listed
from tests.unit.cluster.odd_server import NAMELESS, World, names, namespace, settled, watching
from tests.unit.cluster.test_decoding import MANIFESTS

KEY = kube.entry()["aeadKey"]

pytestmark = pytest.mark.usefixtures("quick")

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

# SPDX-License-Identifier: Apache-2.0
"""After every event of a random history the view kept is the one made from scratch, and shares with the one before
what the event did not concern."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.objects import ClusterObjects, Namespace, NodeInfo, NodeObject, PodObject, Service
from kmesh.cluster.placed import Placed
from kmesh.cluster.shared import Objects
from kmesh.cluster.snapshot import MODE_LABEL, build_view
from kmesh.cluster.views import Views

from kmesh_bpf import ConfigError, Key, View
from tests.unit.amount import examples

HERE = "n1"
NODES = ("n1", "n2", "n3")
SPACES = ("x", "x-y", "z")
ADDRESSES = [ip_address(f"10.9.9.{number}") for number in range(1, 4)]
NODE_ADDRESSES = [ip_address(f"10.10.0.{number}") for number in (1, 2, 3)]
ANY_ADDRESS = st.sampled_from(ADDRESSES + NODE_ADDRESSES)
ANY_CLAIM = st.sampled_from([*ADDRESSES, *NODE_ADDRESSES, ip_address("127.0.0.1"), ip_address("fe80::1%eth0")])
OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"
KMESH = {MODE_LABEL: "Kmesh"}
LABELS = st.sampled_from([KMESH, {}, KMESH, {MODE_LABEL: "none"}, KMESH, {MODE_LABEL: "ambient"}])

NODE_OBJECTS = st.builds(
    NodeObject,
    st.sampled_from(NODES),
    st.lists(ANY_ADDRESS, min_size=1, max_size=2).map(tuple),
    st.sampled_from([(), (ip_network("10.244.1.0/24"),)]),
    st.just("boot"),
    external=st.sampled_from([(), (ADDRESSES[0],), (ip_address("192.0.2.1"),)]),
    deleting=st.booleans(),
)
INFOS = st.builds(
    NodeInfo,
    st.sampled_from(NODES),
    st.integers(0, 2),
    st.lists(ANY_ADDRESS.map(str), min_size=1, max_size=2).map(tuple),
    st.sampled_from(["boot", "other"]),
    st.just(()),
    st.sampled_from([{}, {"kmesh.net/ipsec-replay-window": "64"}]),
    deleting=st.booleans(),
)
PODS = st.builds(
    PodObject,
    st.sampled_from(SPACES),
    st.sampled_from("abcd"),
    LABELS,
    st.sampled_from([*NODES, *NODES, ""]),
    st.just(False),
    st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
    st.lists(ANY_CLAIM, min_size=1, max_size=3).map(tuple) | st.just(()),
    st.integers(0, 5).map(lambda number: frozenset() if number else frozenset({"istio-proxy"})),
    created=st.sampled_from(["", OLD, NEW]),
    deleting=st.booleans(),
)
SERVICES = st.builds(Service, st.sampled_from(SPACES), st.sampled_from("ab"), st.lists(ANY_ADDRESS).map(tuple))
NAMESPACES = st.builds(Namespace, st.sampled_from(SPACES), LABELS)
COLLECTIONS = {
    "namespaces": NAMESPACES,
    "nodes": NODE_OBJECTS,
    "node_infos": INFOS,
    "pods": PODS,
    "service_objects": SERVICES,
}


def keyed(one) -> tuple[str, str]:
    return getattr(one, "namespace", ""), one.name


def changes_of(collection: str, objects):
    """Events of a collection: one is put in place, or taken out."""
    return st.tuples(
        st.just(collection), objects, st.booleans() if collection != "pods" else st.integers(0, 3).map(bool)
    )


SOMETHING = st.one_of(
    *(changes_of(*one) for one in COLLECTIONS.items()), changes_of("pods", PODS), changes_of("nodes", NODE_OBJECTS)
)
SETS = st.frozensets(ANY_ADDRESS, max_size=4)
EVENTS = st.one_of(
    SOMETHING,
    st.lists(SOMETHING, min_size=2, max_size=6),
    st.tuples(st.sampled_from(["evidence", "known"]), SETS),
    st.just("anew"),
)


class World:
    """What is so now: the objects, and what the kernel shows; one event after the other changes it."""

    def __init__(self) -> None:
        nodes = map(NodeObject, NODES, ((address,) for address in NODE_ADDRESSES), ((), (), ()), ("boot",) * 3)
        self.objects = ClusterObjects(nodes=Objects.of(tuple(nodes)), namespaces=(Namespace("x", KMESH),))
        self.seen = {"evidence": frozenset(), "known": frozenset()}

    def take(self, event) -> None:
        if (
            event == "anew"
        ):  # a source that reads all again, as a folder does, and shares objects only, or not even these
            fresh = {name: tuple(map(replace, getattr(self.objects, name))) for name in COLLECTIONS}
            self.objects = replace(self.objects, **fresh)
        elif isinstance(event, list):
            for one in event:
                self.take(one)
        elif event[0] in self.seen:
            self.seen[event[0]] = event[1]
        else:
            collection, one, there = event
            if one.name == HERE and collection == "nodes" and not there:
                return  # without its Node there is no view
            before = Objects.of(getattr(self.objects, collection))
            self.objects = replace(self.objects, **{collection: before.changed([(keyed(one), one if there else None)])})

    def known(self) -> dict:
        return {
            "keys": {1: Key(bytes(36))},
            "services": (),
            "announced": 1,
            "announced_at": 0.0,
            "boot_id": "b",
        } | self.seen

    def view(self) -> View:
        return build_view(self.objects, HERE, **self.known())


@examples(300)
@given(st.lists(EVENTS, min_size=10, max_size=40))
def test_the_view_kept_is_the_view_made_from_scratch_and_what_is_equal_is_the_very_same(events):
    world, views = World(), Views(HERE)
    before = views.view(world.objects, **world.known())
    assert before == world.view()
    for event in events:
        world.take(event)
        now = views.view(world.objects, **world.known())
        assert now == world.view()
        assert_shared(before, now)
        before = now


def assert_shared(before: View, now: View) -> None:
    for node in before.pods.nodes | now.pods.nodes:
        assert now.pods.on(node) is before.pods.on(node) or now.pods.on(node) != before.pods.on(node)
    assert now.pods is before.pods or now.pods != before.pods
    peers = {peer.node.name: peer for peer in before.peers}
    for peer in now.peers:
        former = peers.get(peer.node.name)
        assert peer is former or peer != former
    for part in ("node", "peers", "candidates", "contested", "keys", "services"):
        assert getattr(now, part) is getattr(before, part) or getattr(now, part) != getattr(before, part)


@examples(100)
@given(st.lists(EVENTS, max_size=20), st.data())
def test_states_that_nobody_asked_for_a_view_of_are_not_missed(events, data):
    world, views = World(), Views(HERE)
    for event in events:
        world.take(event)
        if data.draw(st.booleans()):
            assert views.view(world.objects, **world.known()) == world.view()
    assert views.view(world.objects, **world.known()) == world.view()


@examples(100)
@given(st.lists(EVENTS, max_size=15))
def test_claims_asked_for_on_other_evidence_are_those_of_that_evidence_and_spoil_nothing(events):
    world, views = World(), Views(HERE)
    for event in events:
        world.take(event)
        other = dict(zip(("evidence", "known"), reversed(world.seen.values()), strict=True))
        pods, problems = views.claims(world.objects, **other)
        wanted = build_view(world.objects, HERE, **(world.known() | other))
        assert (pods, problems) == (wanted.pods, wanted.problems)
        assert views.view(world.objects, **world.known()) == world.view()


def many() -> tuple[World, Views, View]:
    """Three nodes with two managed pods each, nobody's claim in doubt."""
    world, views = World(), Views(HERE)
    for number in range(6):
        address = ip_address(f"10.244.1.{number}")
        pod = PodObject("x", f"p{number}", {}, NODES[number % 3], False, "Running", (address,), frozenset())
        world.take(("pods", pod, True))
    return world, views, views.view(world.objects, **world.known())


def moved(world: World, name: str, **changes) -> None:
    world.take(("pods", replace(Objects.of(world.objects.pods).get("x", name), **changes), True))


def test_a_pod_s_event_gives_another_tuple_for_its_node_alone():
    world, views, before = many()
    moved(world, "p1", addresses=(ADDRESSES[0],))
    now = views.view(world.objects, **world.known())
    assert [node for node in NODES if now.pods.on(node) is not before.pods.on(node)] == ["n2"]
    assert [pod for pod in now.pods.on("n2") if pod in before.pods] == [before.pods.on("n2")[1]]
    assert (now.peers, now.candidates, now.problems) == (before.peers, before.candidates, before.problems)


def test_judged_again_are_the_addresses_that_an_event_concerns_and_no_others(monkeypatch):
    world, views, _ = many()
    judged: list[set] = []
    change = Placed.change
    monkeypatch.setattr(Placed, "change", lambda *given: judged.append(change(*given)) or judged[-1])
    moved(world, "p1", addresses=(ADDRESSES[0],))
    views.view(world.objects, **world.known())
    world.take(("evidence", frozenset({ADDRESSES[1]})))
    views.view(world.objects, **world.known())
    world.take(("node_infos", NodeInfo("n2", 1, ("10.10.0.2",), "boot", (), {}), True))
    views.view(world.objects, **world.known())
    assert judged == [{ip_address("10.244.1.1"), ADDRESSES[0]}, {ADDRESSES[1]}, set()]


def test_after_a_failure_half_way_the_next_view_is_made_anew(monkeypatch):
    world, views, _ = many()
    moved(world, "p1", addresses=(ADDRESSES[0],))
    with monkeypatch.context() as broken, pytest.raises(MemoryError):
        broken.setattr(Views, "_take", Views._take)
        broken.setattr("kmesh.cluster.placed.grant", raising)
        views.view(world.objects, **world.known())
    moved(world, "p2", addresses=())
    assert views.view(world.objects, **world.known()) == world.view()


def raising(*_: object) -> None:
    raise MemoryError


def test_without_a_node_of_this_name_there_is_no_view_and_what_is_known_stays():
    world, views, before = many()
    with pytest.raises(ConfigError, match="the cluster has no Node 'n1'"):
        views.view(replace(world.objects, nodes=()), **world.known())
    assert views.view(world.objects, **world.known()).pods is before.pods


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_several_nodes_with_one_address_the_first_by_name_is_named_whatever_came_first(order):
    given = [
        NodeObject(name, (ADDRESSES[0],) if number else NODE_ADDRESSES[:1], (), "boot")
        for number, name in enumerate(NODES)
    ]
    pod = PodObject("x", "web", KMESH, "n3", False, "Running", (ADDRESSES[0],), frozenset())
    objects = ClusterObjects(nodes=tuple(given[number] for number in order), pods=(pod,))
    known = World().known() | {"known": frozenset(ADDRESSES)}
    seen = Views(HERE).view(objects, **known)
    assert seen == build_view(objects, HERE, **known)
    assert "which is an address of node n2" in seen.problems[0]


def test_whether_anybody_is_known_counts_for_what_a_pod_and_a_node_claim():
    world, views = World(), Views(HERE)
    pod = PodObject("x", "a", {}, "n3", False, "Running", (NODE_ADDRESSES[1],), frozenset())
    world.take(("pods", pod, True))
    held = []
    for known in (frozenset(), frozenset({NODE_ADDRESSES[2]}), frozenset(), frozenset({NODE_ADDRESSES[1]})):
        world.take(("known", known))
        found = views.view(world.objects, **world.known())
        assert found == build_view(world.objects, HERE, **world.known())
        held.append((len(found.pods), len(found.contested)))
    assert held == [(0, 1), (1, 0), (0, 1), (0, 1)]

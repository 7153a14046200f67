# SPDX-License-Identifier: Apache-2.0
"""Which pod has an address: by evidence, by what lives, by age; and by names only where nothing else is left."""

from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.objects import ClusterObjects, collect, parse
from kmesh.cluster.snapshot import MODE_LABEL, pod_claims, refused

from tests.unit.cluster import kube

ADDRESS = ip_address("10.9.9.9")
KMESH = {MODE_LABEL: "Kmesh"}
NODES = tuple(kube.node(number) for number in (1, 2, 3))


def pod(name: str, node: int, **changes):
    return kube.pod(name, node, labels=KMESH, **({"addresses": [str(ADDRESS)]} | changes))


def cluster(*manifests) -> ClusterObjects:
    return collect(parse(one) for one in (*NODES, *manifests))


def has_it(*manifests, node: str = "n1", **known) -> tuple[list[str], list[str]]:
    """Give who has the address, whatever the order in which the objects come, and what is told."""
    answers = []
    for order in permutations(manifests):
        pods, problems = pod_claims(cluster(*order), node, **known)
        answers.append(([one.name for one in pods if ADDRESS in one.addresses], sorted(problems)))
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"
DELETED = {"deleting": "2026-03-03T00:00:00Z"}


@pytest.mark.parametrize(
    ("winner", "loser", "told"),
    [
        (pod("b", 2, created=NEW), pod("a", 7, created=OLD), True),
        (pod("b", 2, created=NEW, phase="Succeeded"), pod("a", 7, created=OLD), True),
        (pod("b", 2, created=NEW), pod("a", 2, created=OLD, phase="Succeeded"), False),
        (pod("b", 2, created=NEW), pod("a", 2, created=OLD, phase="Failed"), False),
        (pod("b", 2, created=NEW, phase="Pending"), pod("a", 2, created=OLD, phase="Failed"), False),
        (pod("b", 2, created=NEW), pod("a", 2, created=OLD, **DELETED), False),
        (pod("b", 2, created=OLD), pod("a", 2, created=NEW), True),
        (pod("b", 2, created=OLD), pod("a", 2), True),
        (pod("a", 2), pod("b", 2), True),
        (pod("a", 2, created=OLD), pod("b", 3, created=OLD), True),
    ],
    ids=[
        "a Node that is gone",
        "the same, before a pod that ended",
        "a pod that succeeded",
        "a pod that failed",
        "a pod that failed, before one that is only beginning",
        "a pod that is being deleted",
        "the younger one",
        "one without a date",
        "the later name",
        "the later name, of one age",
    ],
)
def test_of_two_pods_at_one_address_the_one_that_lives_and_was_there_first_has_it(winner, loser, told):
    for node in ("n1", "n2", "n3"):
        names, problems = has_it(winner, loser, node=node)
        assert names == [f"default/{winner['metadata']['name']}"]
        assert len(problems) == told
        for problem in problems:
            assert f"default/{loser['metadata']['name']} is not" in problem
            assert f"default/{winner['metadata']['name']} of node n" in problem
            assert str(ADDRESS) in problem


def test_of_three_the_two_that_lose_are_told_of():
    names, problems = has_it(pod("a", 7), pod("b", 2), pod("c", 3))
    assert (names, len(problems)) == (["default/b"], 2)


EVIDENCE = frozenset({ADDRESS})


def test_what_a_device_of_this_node_s_pods_carries_is_a_pod_s_of_this_node():
    ours, other = pod("z", 1, created=NEW), pod("a", 2, created=OLD)
    assert has_it(ours, other, evidence=EVIDENCE)[0] == ["default/z"]
    assert has_it(ours, other)[0] == ["default/a"]
    assert has_it(ours, other, node="n2", evidence=EVIDENCE)[0] == ["default/a"]
    assert has_it(ours, other, node="n2")[0] == ["default/a"]


def test_a_pod_of_another_node_at_an_address_that_ours_carry_is_told_and_stays_managed_while_it_lives():
    """Whoever sets an address in a pod must not have what is meant for another one sent in clear."""
    names, (problem,) = has_it(pod("a", 2), evidence=EVIDENCE)
    assert names == ["default/a"]
    assert problem == (
        "pod default/a of node n2 claims 10.9.9.9, which a pod of this node, n1, carries too: what that one sends from "
        "there is dropped; delete whichever is wrong"
    )
    assert has_it(pod("a", 2, phase="Succeeded"), evidence=EVIDENCE) == ([], []), "its address was given on"
    names, (problem,) = has_it(pod("a", 7), evidence=EVIDENCE)
    assert (names, "which a pod of this node, n1, carries; it is not managed here" in problem) == ([], True)


NODE_2 = "10.10.0.2"


def at(address: str, *manifests, node: str = "n1", **known) -> tuple[list[str], tuple[str, ...]]:
    pods, problems = pod_claims(cluster(*manifests), node, **known)
    return [one.name for one in pods if ip_address(address) in one.addresses], problems


def test_no_announcement_takes_a_pod_s_address():
    lying = kube.node_info(3)
    lying["spec"]["addresses"].append(str(ADDRESS))
    node = kube.node(3)
    node["status"]["addresses"].append({"type": "InternalIP", "address": str(ADDRESS)})
    for lies in ([lying], [node], [node, lying]):
        assert at(str(ADDRESS), pod("web", 2), *lies) == (["default/web"], ())


def test_an_address_of_this_node_is_no_pod_s():
    there = pod("web", 2, addresses=["10.10.0.1", "fd00:244:2::a"])
    assert at("10.10.0.1", there)[0] == []
    assert at("fd00:244:2::a", there)[0] == ["default/web"], "its other one it keeps"
    (problem,) = at("10.10.0.1", there)[1]
    assert "default/web of node n2 claims 10.10.0.1, which is an address of this node, n1" in problem


def test_a_tunnel_end_that_the_kernel_knows_and_the_node_object_confirms_is_no_pod_s():
    there, known = pod("web", 3, addresses=[NODE_2]), frozenset({ip_address(NODE_2), ADDRESS})
    names, (problem,) = at(NODE_2, there, known=known)
    assert (names, "10.10.0.2, which is an address of node n2" in problem) == ([], True)
    assert at(str(ADDRESS), pod("web", 3), known=known)[0] == ["default/web"], "of no Node, whoever announced it"


def test_what_a_pod_of_this_node_carries_is_its_own_though_a_node_said_so_first():
    lying = kube.node(3)
    lying["status"]["addresses"].append({"type": "InternalIP", "address": str(ADDRESS)})
    found = at(str(ADDRESS), pod("web", 1), lying, known=EVIDENCE, evidence=EVIDENCE)
    assert found == (["default/web"], ())


@pytest.mark.parametrize(("node", "phase"), [(7, "Running"), (3, "Succeeded"), (3, "Failed")])
def test_what_a_pod_left_behind_is_a_new_node_s(node, phase):
    assert at(NODE_2, pod("job", node, addresses=[NODE_2], phase=phase))[0] == []


def test_why_a_pod_was_refused_can_be_asked_by_its_name_also_where_nothing_is_to_be_mended():
    found = refused(cluster(pod("a", 2, phase="Succeeded"), pod("b", 2)))
    assert found.keys() == {"default/a"}
    assert "default/b of node n2" in found["default/a"]


PODS = st.builds(
    lambda name, node, address, changes: pod(name, node, addresses=[address], **changes),
    st.sampled_from("abcdef"),
    st.integers(1, 4),
    st.sampled_from(["10.9.9.1", "10.9.9.2", "10.10.0.1", "10.10.0.2"]),
    st.fixed_dictionaries(
        {},
        optional={
            "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
            "created": st.sampled_from([OLD, NEW]),
            "deleting": st.just(NEW),
        },
    ),
)
CLUSTERS = st.lists(PODS, max_size=8, unique_by=lambda one: one["metadata"]["name"])
ADDRESSES = st.frozensets(st.sampled_from([ip_address("10.9.9.1"), ip_address("10.9.9.2")]))
NODE_ENDS = frozenset(ip_address(f"10.10.0.{number}") for number in (1, 2, 3))


@given(CLUSTERS)
def test_all_nodes_agree_on_who_is_managed_where(manifests):
    found = cluster(*manifests)
    views = [dict(_holders(found, f"n{number}", known=NODE_ENDS)) for number in (1, 2, 3)]
    assert views[0] == views[1] == views[2]


@given(CLUSTERS, ADDRESSES)
def test_they_do_up_to_what_a_node_sees_on_its_own_devices(manifests, evidence):
    found = cluster(*manifests)
    plain, own = dict(_holders(found, "n1")), dict(_holders(found, "n1", evidence=evidence))
    assert {a: b for a, b in plain.items() if a not in evidence} == {a: b for a, b in own.items() if a not in evidence}
    here = {address for one in found.pods if one.node == "n1" for address in one.addresses}
    assert {node for address, (_, node) in own.items() if address in evidence & here} <= {"n1"}


@given(CLUSTERS, ADDRESSES)
def test_what_devices_carry_makes_no_live_pod_unmanaged_that_the_api_server_places_elsewhere_alone(manifests, evidence):
    found = cluster(*manifests)
    own = {address for address, _ in _holders(found, "n1", evidence=evidence)}
    for one in found.pods:
        if one.phase not in ("Succeeded", "Failed") and one.node in ("n2", "n3"):
            assert set(one.addresses) - NODE_ENDS <= own


@given(CLUSTERS)
def test_nobody_but_the_api_s_nodename_places_a_pod_and_an_address_is_one_pod_s(manifests):
    placed = {f"default/{one['metadata']['name']}": one["spec"]["nodeName"] for one in manifests}
    pods, _ = pod_claims(cluster(*manifests), "n1")
    assert all(placed[one.name] == one.node for one in pods)
    taken = [address for one in pods for address in one.addresses]
    assert len(taken) == len(set(taken))


@given(CLUSTERS)
def test_a_live_pod_loses_an_address_only_to_somebody_who_is_told(manifests):
    found = cluster(*manifests)
    pods, problems = pod_claims(found, "n3")
    managed = {one.name for one in pods}
    live = [one for one in found.pods if one.phase not in ("Succeeded", "Failed") and not one.deleting]
    for one in live:
        assert one.label in managed or any(one.label in problem for problem in problems)


def _holders(objects: ClusterObjects, node: str, **known):
    return (
        (address, (one.name, one.node)) for one in pod_claims(objects, node, **known)[0] for address in one.addresses
    )


def test_many_pods_are_placed_quickly():
    base = parse(pod("web", 1))
    pods = tuple(replace(base, name=f"p{i}", addresses=(ip_address((10 << 24) + i),)) for i in range(20_000))
    assert len(pod_claims(ClusterObjects(pods=pods))[0]) == 20_000

# SPDX-License-Identifier: Apache-2.0
"""Managed pods by node: what has not changed is not only equal, but the same."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import Pod, Pods

NODES = ("n1", "n2", "n3")


def pod(name: str, node: str, address: int = 1) -> Pod:
    return Pod(name, node, (ip_address(0x0A000000 + address),))


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(NODES)), unique=True))
def test_pods_by_node_are_the_pods(named):
    pods = [pod(name, node) for name, node in named]
    found = Pods(pods)
    assert sorted(found, key=repr) == sorted(pods, key=repr)
    assert len(found) == len(pods)
    assert all(one in found for one in pods)
    assert pod("z", "n1") not in found
    assert {name: found.on(name) for name in NODES if found.on(name)} == {name: found.on(name) for name in found.nodes}
    assert Pods.of(found) is found


def test_of_a_node_that_changes_all_others_keep_their_very_tuple():
    before = Pods(pod(name, node) for node in NODES for name in "ab")
    after = before.changed({"n1": (pod("c", "n1"),), "n2": tuple(before.on("n2")), "n3": ()})
    assert after.on("n1") == (pod("c", "n1"),)
    assert after.on("n2") is before.on("n2")
    assert "n3" not in after.nodes
    assert (len(before), len(after), len(list(after))) == (6, 3, 3)
    assert before.changed({"n2": tuple(before.on("n2")), "n9": ()}) is before


def test_equal_pods_are_equal_however_they_came_about():
    made = Pods([pod("a", "n1"), pod("b", "n2")])
    grown = Pods([pod("a", "n1")]).changed({"n2": (pod("b", "n2"),)})
    assert made == grown
    assert hash(made) == hash(grown)
    assert made != Pods([pod("a", "n1")])
    assert repr(Pods([pod("a", "n1")])).startswith("Pods([Pod(name='a'")

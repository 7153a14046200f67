# SPDX-License-Identifier: Apache-2.0
"""Which peers are selected by pod CIDR: those of which it selects no address that is not theirs."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.cidrs import Ranges, too_many
from kmesh_bpf.core.view import Node, Peer, View
from tests.unit.amount import examples
from tests.unit.core import mesh

VIEW = mesh.view()
OWNER = {address: pod.node for pod in VIEW.pods for address in pod.addresses}
READY = {"n2", "n3"}


def chosen(view=VIEW, owner=OWNER, ready=READY, limit=0):
    if not too_many(sum(node != view.node.name for node in owner.values()), limit, wide=False):
        return frozenset()
    ranges = Ranges()
    ranges.begin((view.node, *(peer.node for peer in view.peers)), owner)
    return {name for name in ready if name in owner.values() and ranges.fit(name)}


def changed(index, **changes):
    """Give the view with node ``index`` changed."""
    if index == 1:
        return replace(VIEW, node=replace(VIEW.node, **changes))
    peers = tuple(
        replace(peer, node=replace(peer.node, **changes)) if peer.node.name == f"n{index}" else peer
        for peer in VIEW.peers
    )
    return replace(VIEW, peers=peers)


def test_up_to_the_limit_nobody_is_and_above_it_everybody_of_whom_it_selects_the_same():
    assert chosen(limit=4) == frozenset()
    assert chosen(limit=3) == READY


def test_nobody_who_is_not_ready_or_has_no_managed_pod():
    assert chosen(ready={"n3"}) == {"n3"}
    assert chosen(owner={address: node for address, node in OWNER.items() if node != "n2"}) == {"n3"}


@pytest.mark.parametrize(
    ("cidrs", "selected"),
    [
        ((), {"n3"}),
        (("10.244.2.0/24",), {"n3"}),
        (("10.244.2.0/25", "10.244.2.128/25", "fd00:244:2::/64"), {"n2", "n3"}),
        (("10.244.2.0/24", "fd00:244:2::/64", "10.244.2.0/25"), {"n2", "n3"}),
        (("10.244.2.0/23", "fd00:244:2::/64"), set()),
        (("10.244.0.0/16", "fd00:244:2::/64"), set()),
        (("10.244.2.0/24", "fd00:244:2::/64", "10.10.0.9/32"), {"n2", "n3"}),
        (("10.244.2.0/24", "fd00:244:2::/64", "10.10.0.0/24"), {"n3"}),
        (("10.244.2.0/24", "fd00:244:2::/64", "10.244.1.10/32"), {"n3"}),
    ],
    ids=["none", "half", "parts", "nested", "overlap", "around all", "beside", "nodes within", "a pod of ours within"],
)
def test_a_cidr_that_leaves_out_a_pod_or_holds_what_is_another_s_does_not_count(cidrs, selected):
    assert chosen(changed(2, pod_cidrs=tuple(map(ip_network, cidrs)))) == selected


def test_a_pod_in_another_node_s_cidr_leaves_both_to_be_selected_exactly():
    owner = OWNER | {ip_address("10.244.3.77"): "n2"}
    assert chosen(owner=owner) == frozenset()
    assert chosen(owner=OWNER | {ip_address("10.244.3.77"): "elsewhere"}) == {"n2"}


NUMBERS = st.integers(0, 255)
CIDRS = st.builds(lambda at, length: ip_network((0x0A000000 + at, length), strict=False), NUMBERS, st.integers(24, 32))


@examples(300)
@given(st.data())
def test_of_any_cluster_the_cidrs_chosen_hold_the_peer_s_pods_and_no_address_of_anybody_else(data):
    names = [f"n{number}" for number in range(5)]
    nodes = [
        Node(
            name,
            (ip_address(0x0A000000 + data.draw(NUMBERS)),),
            "b",
            tuple(data.draw(st.lists(CIDRS, max_size=3))),
        )
        for name in names
    ]
    owner = data.draw(st.dictionaries(NUMBERS.map(lambda one: ip_address(0x0A000000 + one)), st.sampled_from(names)))
    view = View(nodes[0], tuple(Peer(node, 1) for node in nodes[1:]))
    for name in chosen(view, owner, names[1:]):
        mine = next(node for node in nodes if node.name == name)
        for address, node in owner.items():
            assert any(address in cidr for cidr in mine.pod_cidrs) == (node == name)
        for other in nodes:
            assert not any(address in cidr for address in other.addresses for cidr in mine.pod_cidrs)
            assert other is mine or not any(a.overlaps(b) for a in mine.pod_cidrs for b in other.pod_cidrs)


def ranges_of(owner=OWNER, **cidrs) -> Ranges:
    """Give the ranges of nodes with these pod CIDRs, by name."""
    ranges = Ranges()
    nodes = [Node(name, (), "boot", tuple(map(ip_network, texts.split()))) for name, texts in cidrs.items()]
    ranges.begin(nodes, owner)
    return ranges


def test_the_first_and_the_last_address_of_a_cidr_are_in_it_the_next_ones_and_those_of_another_family_are_not():
    cidrs = {"n2": "10.244.2.0/24", "n3": "10.244.4.0/24"}
    for text, fits in (
        ("10.244.2.0", True),
        ("10.244.2.255", True),
        ("10.244.1.255", False),
        ("10.244.3.0", False),
        ("::1", False),
        ("fd00::1", False),
    ):
        ranges = ranges_of({ip_address(text): "n2"}, **cidrs)
        assert (ranges.fit("n2"), ranges.fit("n3")) == (fits, True), text


@pytest.mark.parametrize(
    ("cidrs", "left"),
    [
        ({"n2": "10.244.2.0/24", "n3": "10.244.2.255/32"}, set()),
        ({"n2": "10.244.2.0/24", "n3": "10.244.3.0/24"}, {"n2", "n3"}),
        ({"n2": "10.244.2.0/25", "n3": "10.244.2.0/24", "n4": "10.244.2.200/32"}, set()),
        ({"n2": "10.244.2.0/24", "n3": "10.244.2.0/25", "n4": "10.244.2.200/32"}, set()),
    ],
    ids=["the last address", "neighbours", "a third in the longer one", "a third behind the shorter one"],
)
def test_cidrs_that_share_one_address_overlap(cidrs, left):
    ranges = ranges_of({}, **cidrs)
    assert {name for name in cidrs if ranges.fit(name)} == left


def test_an_address_that_moves_away_and_back_makes_its_nodes_misfits_and_fits_again():
    ranges, strayed = ranges_of({}, n2="10.244.2.0/24", n3="10.244.3.0/24"), ip_address("10.244.3.7")
    assert ranges.move({strayed: "n2"}) == {"n2", "n3"}
    assert not ranges.fit("n2")
    assert not ranges.fit("n3")
    assert ranges.move({strayed: "n9"}) == {"n2", "n3", "n9"}
    assert (ranges.fit("n2"), ranges.fit("n3")) == (True, False)
    assert ranges.move({strayed: "n3"}) == {"n3", "n9"}
    assert ranges.fit("n3")
    assert ranges.move({ip_address("10.99.0.1"): "n2"}) == {"", "n2"}
    assert ranges.move({ip_address("10.99.0.1"): None}) == {"", "n2"}
    assert ranges.fit("n2")

# SPDX-License-Identifier: Apache-2.0
"""Nodes with several addresses of a family, and nodes with one family only: which of them tunnels use, and for what."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.state import Direction, KernelState, Observation, PodFlags
from kmesh_bpf.core.view import Peer
from tests.unit.core import mesh

FOUR, SIX = {index: f"10.10.0.{index}" for index in (1, 2)}, {index: f"fd00:10::{index}" for index in (1, 2)}
MORE_FOUR, MORE_SIX = {1: "172.16.0.1", 2: "172.16.0.2"}, {1: "fd00:16::1", 2: "fd00:16::2"}


def node(index, *addresses):
    return replace(mesh.node(index), addresses=tuple(map(ip_address, addresses)))


def plan(here, there, state=None):
    """Give the plan of one node with one peer; the mesh's two families of pods are on each."""
    view = mesh.view(nodes=2, node=here, peers=(Peer(there, 1, mesh.WINDOW),))
    return make_plan(view, Observation(state or KernelState()), Options(), 1000.0)


def settled(here, there):
    """Give the plan when what the first one asks for is in the kernel."""
    return plan(here, there, plan(here, there).state)


def ends(found):
    """Give the outer addresses of all SAs."""
    return {(str(sa.src), str(sa.dst)) for sa in found.state.sas.values()}


def both_ways(*pairs):
    return {pair for one, other in pairs for pair in ((one, other), (other, one))}


def tunnels(found, version):
    """Give the outer addresses that policies name for inner packets of a family, from here to there."""
    policies = [one for one in found.state.policies.values() if one.src.version == version and not one.block]
    assert {one.direction for one in policies} == set(Direction)
    return {
        (str(one.tunnel_src), str(one.tunnel_dst))
        if one.direction is Direction.OUT
        else (str(one.tunnel_dst), str(one.tunnel_src))
        for one in policies
    }


HERE, THERE = ([FOUR[i], SIX[i], MORE_FOUR[i], MORE_SIX[i]] for i in (1, 2))


def test_tunnels_use_the_first_address_of_each_family_at_both_ends():
    found = plan(node(1, *HERE), node(2, *THERE))
    assert ends(found) == both_ways((FOUR[1], FOUR[2]), (SIX[1], SIX[2]))
    assert tunnels(found, 4) == {(FOUR[1], FOUR[2])}
    assert tunnels(found, 6) == {(SIX[1], SIX[2])}


def test_the_order_of_the_addresses_decides_and_not_that_of_the_numbers():
    here, there = node(1, MORE_SIX[1], MORE_FOUR[1], *HERE[:2]), node(2, *THERE)
    assert ends(plan(here, there)) == both_ways((MORE_FOUR[1], FOUR[2]), (MORE_SIX[1], SIX[2]))


def test_two_nodes_with_several_addresses_choose_the_same_tunnels_and_keys():
    here, there = node(1, *HERE), node(2, *reversed(THERE))
    one, other = plan(here, there), plan(there, here)
    keys = [{(sa.src, sa.dst, sa.spi): sa.key for sa in found.state.sas.values()} for found in (one, other)]
    assert keys[0] == keys[1]
    assert ends(one) == both_ways((FOUR[1], MORE_FOUR[2]), (SIX[1], MORE_SIX[2]))


def test_every_address_of_a_peer_leads_to_its_node_id_and_those_of_tunnels_to_a_version_too():
    found = settled(node(1, *HERE), node(2, *THERE))
    assert {str(address): entry.spi for address, entry in found.state.peers.items()} == {
        FOUR[2]: 1,
        SIX[2]: 1,
        MORE_FOUR[2]: 0,
        MORE_SIX[2]: 0,
    }
    assert len({(entry.node_id, entry.node_mark, entry.incarnations) for entry in found.state.peers.values()}) == 1
    assert (found.lost, found.problems, found.ready_peers) == ((), (), {"n2"})


def test_of_a_peer_that_claims_another_s_further_address_nothing_is_taken():
    honest = Peer(node(2, *THERE), 1, mesh.WINDOW)
    thief = Peer(replace(mesh.node(3), addresses=(*mesh.node(3).addresses, ip_address(MORE_FOUR[2]))), 1, mesh.WINDOW)
    found = make_plan(mesh.view(peers=(honest, thief)), Observation(KernelState()), Options(), 1000.0)
    (problem,) = map(str, found.problems)
    assert problem.startswith(f"peer n3 claims {MORE_FOUR[2]}, which is of peer n2; quarantined, nothing is sent to n3")
    assert found.state.peers.keys() == set(honest.node.addresses)


@pytest.mark.parametrize(("shared", "other"), [(FOUR, SIX), (SIX, FOUR)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("lacks", ["here", "there", "both"])
def test_where_one_family_only_is_shared_both_families_of_pods_go_through_it(shared, other, lacks):
    here = node(1, shared[1], *([other[1]] if lacks == "there" else []))
    there = node(2, shared[2], *([other[2]] if lacks == "here" else []))
    found = settled(here, there)
    assert ends(found) == both_ways((shared[1], shared[2]))
    assert tunnels(found, 4) == tunnels(found, 6) == {(shared[1], shared[2])}
    assert all(sa.any_family for sa in found.state.sas.values())
    spis = {str(address): entry.spi for address, entry in found.state.peers.items()}
    assert spis == {shared[2]: 1} | ({other[2]: 0} if lacks == "here" else {})
    assert found.state.pods[mesh.pod(2).addresses[1]] == PodFlags.REMOTE | PodFlags.READY


def test_nodes_of_one_family_have_tunnels_of_that_one_and_their_pods_of_the_other_go_through_it():
    found = plan(node(1, FOUR[1]), node(2, FOUR[2]))
    assert ends(found) == both_ways((FOUR[1], FOUR[2]))
    assert tunnels(found, 4) == tunnels(found, 6) == {(FOUR[1], FOUR[2])}


def test_a_peer_that_shares_no_family_is_known_and_not_ready_and_no_tunnel_leads_there():
    found = plan(node(1, FOUR[1]), node(2, SIX[2]))
    assert (dict(found.state.sas), found.ready_peers) == ({}, frozenset())
    assert all(policy.block for policy in found.state.policies.values())
    assert [(str(address), entry.spi) for address, entry in found.state.peers.items()] == [(SIX[2], 0)]
    assert {found.state.pods[address] for address in mesh.pod(2).addresses} == {PodFlags.REMOTE}

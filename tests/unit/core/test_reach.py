# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.operations import SetPeer, SetPolicy
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import Planner, make_plan
from kmesh_bpf.core.reach import in_order
from kmesh_bpf.core.state import Direction, KernelState, Observation
from tests.unit.core import mesh

VIEW = mesh.view()
PLAN = make_plan(VIEW, Observation(KernelState(), {}, mesh.LINKS, None), Options(), 1000.0)
PEERS = {"n2", "n3"}


def reachable(view, observed, state) -> set[str]:
    """Give the peers that are reached with a state, by the plan for what was observed."""
    planner = Planner(Options())
    planner.plan(view, Mirror(observed), 1000.0)
    return {peer.node.name for peer in view.peers if planner.reaches(peer.node.name, Mirror(Observation(state)))}


def reached(**held) -> set[str]:
    return reachable(VIEW, Observation(KernelState(), {}, mesh.LINKS, None), replace(PLAN.state, **held))


def expected(view) -> frozenset[str]:
    return make_plan(view, Observation(KernelState()), Options(), 1000.0).expected


def without(objects: dict, gone: object) -> dict:
    return {name: one for name, one in objects.items() if name != gone}


def owner(address) -> str:
    return next(peer.node.name for peer in VIEW.peers if address in peer.node.addresses)


def test_with_all_that_is_planned_every_peer_is_reached_and_expected():
    assert reached() == expected(VIEW) == PEERS


def test_without_anything_nobody_is_reached():
    assert reached(sas={}, policies={}) == set()


def test_each_outbound_sa_and_policy_that_is_missing_cuts_off_its_peer_and_no_inbound_one_does():
    for identity, sa in PLAN.state.sas.items():
        left = PEERS - {owner(sa.dst)} if sa.mark is None else PEERS
        assert reached(sas=without(PLAN.state.sas, identity)) == left
    for identity, policy in PLAN.state.policies.items():
        left = PEERS - {owner(policy.tunnel_dst)} if policy.direction is Direction.OUT else PEERS
        assert reached(policies=without(PLAN.state.policies, identity)) == left


def test_a_policy_that_still_sends_with_the_key_before_reaches_its_peer_while_that_key_s_sa_is_there():
    newer = mesh.view(spi=2)
    before = Observation(PLAN.state, {}, mesh.LINKS, None)
    assert reachable(newer, before, PLAN.state) == PEERS
    inbound = {identity: sa for identity, sa in PLAN.state.sas.items() if sa.mark is not None}
    assert reachable(newer, before, replace(PLAN.state, sas=inbound)) == set()


def test_a_node_that_has_pods_and_announces_nothing_is_expected_and_this_node_is_not():
    assert expected(replace(VIEW, peers=VIEW.peers[:1])) == PEERS
    assert expected(replace(VIEW, peers=(), pods=VIEW.pods[:1])) == frozenset()


@pytest.mark.parametrize(
    ("held", "told", "leads", "waits"),
    [
        (None, None, True, True),
        (0, None, True, True),
        (0, None, False, True),
        (1, None, False, True),
        (1, None, True, False),
        (0, 1, True, False),  # told in this very round, before it
        (1, 0, True, True),
    ],
)
def test_a_policy_waits_for_its_sa_and_until_the_peer_map_tells_of_it(held, told, leads, waits):
    (address, entry), *_ = PLAN.state.peers.items()
    peers = {} if held is None else {address: replace(entry, spi=held)}
    state = KernelState(peers=peers, sas=PLAN.state.sas if leads else {})
    out = (one for one in PLAN.state.policies.values() if one.direction is Direction.OUT and one.tunnel_dst == address)
    operations = [
        *(SetPeer(address, replace(entry, spi=told)) for _ in range(told is not None)),
        SetPolicy(next(out), replace=False),
    ]
    now = in_order(operations, Mirror(Observation(state)))
    assert (operations[-1] not in now) is waits

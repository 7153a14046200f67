from dataclasses import replace

from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.reach import expected_peers, reachable_peers
from kmesh_bpf.core.state import Direction, KernelState, Observation
from tests.unit.core import mesh

VIEW = mesh.view()
PLAN = make_plan(VIEW, Observation(KernelState(), {}, mesh.LINKS, None), Options(), 1000.0)
PEERS = {"n2", "n3"}


def reached(**held) -> frozenset[str]:
    return reachable_peers(VIEW, PLAN, replace(PLAN.state, **held))


def without(objects: dict, gone: object) -> dict:
    return {name: one for name, one in objects.items() if name != gone}


def owner(address) -> str:
    return next(peer.node.name for peer in VIEW.peers if address in peer.node.addresses)


def test_with_all_that_is_planned_every_peer_is_reached_and_expected():
    assert reached() == expected_peers(VIEW) == PEERS


def test_without_anything_nobody_is_reached():
    assert reached(sas={}, policies={}) == frozenset()


def test_each_outbound_sa_and_policy_that_is_missing_cuts_off_its_peer_and_no_inbound_one_does():
    for identity, sa in PLAN.state.sas.items():
        expected = PEERS - {owner(sa.dst)} if sa.mark is None else PEERS
        assert reached(sas=without(PLAN.state.sas, identity)) == expected
    for identity, policy in PLAN.state.policies.items():
        expected = PEERS - {owner(policy.tunnel_dst)} if policy.direction is Direction.OUT else PEERS
        assert reached(policies=without(PLAN.state.policies, identity)) == expected


def test_a_policy_that_still_sends_with_the_key_before_reaches_its_peer_while_that_key_s_sa_is_there():
    newer = mesh.view(spi=2)
    plan = make_plan(newer, Observation(PLAN.state, {}, mesh.LINKS, None), Options(), 1000.0)
    assert reachable_peers(newer, plan, PLAN.state) == PEERS
    inbound = {identity: sa for identity, sa in PLAN.state.sas.items() if sa.mark is not None}
    assert reachable_peers(newer, plan, replace(PLAN.state, sas=inbound)) == frozenset()


def test_a_node_that_has_pods_and_announces_nothing_is_expected_and_this_node_is_not():
    assert expected_peers(replace(VIEW, peers=VIEW.peers[:1])) == PEERS
    assert expected_peers(replace(VIEW, peers=(), pods=VIEW.pods[:1])) == frozenset()

# SPDX-License-Identifier: Apache-2.0
"""Whose claim holds among peers: what is known and lives keeps it, and whoever loses is quarantined and told."""

from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest

from kmesh_bpf.core import claims, marks
from kmesh_bpf.core.claims import Claims, evidence, settle
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.planner import Options, ProblemKind, make_plan
from kmesh_bpf.core.pods import Owners
from kmesh_bpf.core.state import KernelState, Observation, PodFlags
from kmesh_bpf.core.view import Peer, Pods, View
from tests.unit.core import mesh

EMPTY = Observation(KernelState(), links=mesh.LINKS)
DOUBLE = mesh.node(2).addresses[0]


def peer(name: str, boot: str = "boot", **changes) -> Peer:
    """Give a peer at the first address of n2."""
    node = replace(mesh.node(2, boot), name=name, addresses=(DOUBLE,))
    return Peer(node, 1, mesh.WINDOW, **changes)


def settled(*peers: Peer, observed: Observation = EMPTY, **changes) -> Claims:
    """Give what is decided, whatever the order in which the peers come."""
    answers = []
    for order in permutations(peers):
        view = mesh.view(peers=order, **changes)
        fingerprints = {one.node.name: marks.incarnations(view.node, one.node) for one in order}
        owners = Owners()
        owners.update(view.node, Pods.of(view.pods))
        answers.append(settle(view, fingerprints, Mirror(observed), owners.pod))
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def names(claims: Claims) -> list[str]:
    return sorted(claims.accepted)


def kernel(view: View) -> Observation:
    """Give the kernel as a node with this view has it."""
    plan = make_plan(view, EMPTY, Options(), 1000.0)
    return replace(EMPTY, state=plan.state, incarnation=view.node.boot_id)


@pytest.mark.parametrize(
    ("winner", "loser", "said"),
    [
        (
            peer("z"),
            peer("a", alive=False),
            "which is of peer z; quarantined, nothing is sent to a: its Node is gone, or about to go; delete ",
        ),
        (
            peer("z"),
            peer("a", vouched=False),
            "which is of peer z; quarantined, nothing is sent to a: its Node object has no such address",
        ),
        (
            peer("z", alive=False),
            peer("a", vouched=False),
            "which is of peer z; quarantined, nothing is sent to a: its Node object has no such address",
        ),
        (
            peer("a"),
            peer("z"),
            "which is of peer a; quarantined, nothing is sent to z: mend z, or delete the other one",
        ),
        (
            peer("a", vouched=False),
            peer("z", vouched=False),
            "which is of peer a; quarantined, nothing is sent to z: its Node object has no such address",
        ),
    ],
)
def test_of_two_new_peers_at_one_address_the_one_that_lives_and_is_vouched_for_has_it(winner, loser, said):
    found = settled(winner, loser)
    (sentence,) = found.quarantined
    assert names(found) == [winner.node.name]
    assert sentence.startswith(f"peer {loser.node.name} claims {DOUBLE}")
    assert said in sentence


def test_among_living_ones_the_known_one_has_it_and_one_that_is_gone_yields_though_it_is_known():
    known = kernel(mesh.view(peers=(peer("z"),)))
    assert names(settled(peer("z"), peer("a"), observed=known)) == ["z"]
    assert names(settled(peer("z", alive=False), peer("a"), observed=known)) == ["a"]
    assert names(settled(peer("z", vouched=False), peer("a"), observed=known)) == ["a"]


def test_a_known_peer_stays_known_when_this_node_takes_a_new_incarnation():
    known = kernel(mesh.view(peers=(peer("z"),)))
    renewed = replace(mesh.node(1), boot_id="renewed".ljust(36, "0"))
    assert names(settled(peer("z"), peer("a"), observed=known, node=renewed)) == ["z"]


def test_a_known_peer_that_reboots_keeps_its_addresses_from_one_that_claims_them_besides_its_own():
    honest = mesh.view(peers=(mesh.view().peers[0], mesh.view().peers[1]))
    thief = replace(honest.peers[1], node=replace(mesh.node(3), name="a"))
    greedy = replace(thief, node=replace(thief.node, addresses=(*thief.node.addresses, *mesh.node(2).addresses)))
    known = kernel(replace(honest, peers=(honest.peers[0], thief)))
    rebooted = replace(honest.peers[0], node=mesh.node(2, "again"))
    assert names(settled(rebooted, greedy, observed=known)) == ["n2"]


def test_a_peer_that_claims_a_managed_pod_s_address_or_ours_is_quarantined_and_takes_nothing():
    pod = mesh.pod(2)
    thief = Peer(replace(mesh.node(3), addresses=(*mesh.node(3).addresses, pod.addresses[0])), 1, mesh.WINDOW)
    found = settled(mesh.view().peers[0], thief)
    assert names(found) == ["n2"]
    assert f"which is of pod {pod.name} on node n2; quarantined" in found.quarantined[0]
    ours = Peer(replace(mesh.node(3), addresses=(mesh.node(1).addresses[1],)), 1, mesh.WINDOW)
    found = settled(mesh.view().peers[0], ours)
    assert names(found) == ["n2"]
    assert "peer n3 claims fd00:10::1, which is of this node, n1; quarantined" in found.quarantined[0]


def test_a_quarantined_peer_takes_nothing_from_anybody_else():
    quarantined = Peer(replace(mesh.node(2), name="b", addresses=(DOUBLE, ip_address("10.10.0.77"))), 1)
    later = Peer(replace(mesh.node(3), name="c", addresses=(ip_address("10.10.0.77"),)), 1)
    assert names(settled(peer("a"), quarantined, later)) == ["a", "c"]


def crowd(count: int, **changes) -> View:
    base = mesh.node(2, cidrs=False)
    peers = tuple(
        Peer(replace(base, name=f"p{i:03}", addresses=(ip_address((10 << 24) + i),)), 1) for i in range(count)
    )
    return mesh.view(peers=peers, **changes)


def test_more_peers_than_node_ids_are_a_problem_and_everything_else_goes_on():
    options = Options(node_mark_mask=0xFF00)
    plan = make_plan(crowd(262), EMPTY, options, 1000.0)
    assert plan.ready_peers == {f"p{i:03}" for i in range(255)}
    (problem,) = plan.problems
    assert problem.kind is ProblemKind.CAPACITY
    assert str(problem) == (
        "--node-mark-mask 0xff00 has room for 255 peers, and there are more: nothing is sent to p255, p256, p257, p258, "
        "p259 and 2 more; give the mask more bits"
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [("a", "a;"), ("abcde", "a, b, c, d, e;"), ("abcdef", "a, b, c, d, e and 1 more;"), ("abcdefgh", "e and 3 more;")],
)
def test_five_of_those_without_a_node_id_are_named_and_the_others_counted(names, told):
    sentence = claims.crowd(tuple(names), 0xFF00)
    assert sentence.startswith(
        "--node-mark-mask 0xff00 has room for 255 peers, and there are more: nothing is sent to a"
    )
    assert sentence.endswith(f"{told} give the mask more bits")


def test_those_that_have_a_node_id_keep_it_when_others_come():
    options = Options(node_mark_mask=0xFF00)
    few = crowd(262)
    before = make_plan(replace(few, peers=few.peers[7:]), EMPTY, options, 1000.0)
    after = make_plan(few, replace(EMPTY, state=before.state), options, 1000.0)
    assert after.ready_peers == before.ready_peers
    assert {a: e.node_id for a, e in after.state.peers.items()} == {a: e.node_id for a, e in before.state.peers.items()}


def test_pods_of_a_peer_without_a_node_id_are_not_ready():
    view = crowd(256)
    pod = replace(mesh.pod(2), node="p255")
    plan = make_plan(replace(view, pods=(pod,)), EMPTY, Options(node_mark_mask=0xFF00), 1000.0)
    assert {plan.state.pods[address] for address in pod.addresses} == {PodFlags.REMOTE}


def test_a_peer_without_a_key_yet_is_no_problem_and_nothing_is_sent_to_it():
    without = replace(mesh.view().peers[0], spi=0)
    plan = make_plan(mesh.view(peers=(without, mesh.view().peers[1])), EMPTY, Options(), 1000.0)
    assert (plan.ready_peers, plan.problems) == ({"n3"}, ())
    assert not {sa.dst for sa in plan.state.sas.values()} & set(without.node.addresses)
    assert {sa.src for sa in plan.state.sas.values()} > set(without.node.addresses), "it may get one, and sends at once"


def test_evidence_is_what_lies_behind_pods_devices_and_the_tunnel_ends_of_peers():
    behind, elsewhere = ip_address("10.244.1.10"), ip_address("192.0.2.1")
    links = (replace(mesh.LINKS[1], far_addresses=(elsewhere,)), replace(mesh.LINKS[2], far_addresses=(behind,)))
    state = make_plan(mesh.view(), replace(EMPTY, links=links), Options(), 1000.0).state
    seen = evidence(Observation(state, links=links))
    assert (seen.carried, seen.tunnel_ends) == ({behind}, {*mesh.node(2).addresses, *mesh.node(3).addresses})
    assert evidence(Observation(state, links=(replace(links[1], far_addresses=None),))).carried == frozenset()


def test_no_tunnel_end_is_what_a_peer_names_besides():
    besides = ip_address("10.244.9.9")
    named = replace(mesh.node(2), addresses=(*mesh.node(2).addresses, besides))
    state = kernel(mesh.view(peers=(Peer(named, 1, mesh.WINDOW),))).state
    assert besides in state.peers
    assert evidence(Observation(state)).tunnel_ends == set(mesh.node(2).addresses)
    assert evidence(Observation(replace(state, sas={}))).tunnel_ends == frozenset()

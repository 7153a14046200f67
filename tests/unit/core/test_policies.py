# SPDX-License-Identifier: Apache-2.0
"""Which policies there are: of any cluster, what is managed is encrypted towards the node that it runs on, or blocked."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.marks import incarnations
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.pods import Owners
from kmesh_bpf.core.policies import ANY, UNMARKED, host, to_encrypt, was_decrypted
from kmesh_bpf.core.problems import ProblemKind
from kmesh_bpf.core.state import Direction, KernelState, Mark, Observation, PodFlags
from kmesh_bpf.core.tunnels import tunnels
from kmesh_bpf.core.view import Node, Peer, Pod, Pods, View
from tests.unit.amount import examples
from tests.unit.core import mesh

L, R = ip_address("10.10.0.1"), ip_address("10.10.0.2")
ANYBODY, POD, PEER = ip_network("0.0.0.0/0"), ip_network("10.244.2.10/32"), ip_network("10.10.0.2/32")
ENCRYPT, DECRYPTED = Mark(0xE0, 0xEF), Mark(0xD0, 0xDF)


def plan(view, options=Options()):  # noqa: B008 # frozen
    return make_plan(view, Observation(KernelState()), options, 1000.0)


def four(found):
    """Give what says everything of the policies for IPv4 packets."""
    return {
        (one.direction, one.src, one.dst, one.mark, one.tunnel_src, one.tunnel_dst, one.block)
        for one in found.state.policies.values()
        if one.src.version == 4
    }


TO_POD = {
    (Direction.OUT, ANYBODY, POD, ENCRYPT, L, R, False),
    (Direction.FWD, POD, ANYBODY, DECRYPTED, R, L, False),
    (Direction.IN, POD, ANYBODY, DECRYPTED, R, L, False),
}


def test_a_managed_pod_of_a_ready_peer_is_selected_by_its_address_alone_and_no_template_names_an_spi():
    found = plan(mesh.view(nodes=2))
    assert four(found) == TO_POD
    assert {policy.spi for policy in found.state.policies.values()} == {0}


def test_a_peer_that_takes_node_traffic_is_selected_too_and_what_this_node_sends_to_its_pods_needs_no_mark():
    assert four(plan(mesh.view(nodes=2, traffic=True))) == TO_POD | {
        (Direction.OUT, ANYBODY, PEER, ENCRYPT, L, R, False),
        (Direction.FWD, PEER, ANYBODY, DECRYPTED, R, L, False),
        (Direction.IN, PEER, ANYBODY, DECRYPTED, R, L, False),
        (Direction.OUT, ip_network("10.10.0.1/32"), POD, UNMARKED, L, R, False),
    }


def test_an_address_that_a_peer_s_node_object_has_not_draws_nothing_to_it():
    stranger = ip_address("198.51.100.1")
    view = mesh.view(nodes=2, traffic=True)
    (peer,) = view.peers
    node = replace(peer.node, addresses=(*peer.node.addresses, stranger))
    lying = replace(peer, node=node, unconfirmed=frozenset({stranger}))
    found = plan(replace(view, peers=(lying,)))
    assert four(found) == four(plan(view))
    assert PodFlags.PEER not in found.state.pods[stranger]


def unready(traffic):
    return (Peer(mesh.node(2), 0, mesh.WINDOW, node_traffic=traffic),)


def from_there(source):
    return {(direction, source, ANYBODY, DECRYPTED, R, L, False) for direction in (Direction.FWD, Direction.IN)}


@pytest.mark.parametrize(
    ("peers", "taken"),
    [((), set()), (unready(False), from_there(POD)), (unready(True), from_there(POD) | from_there(PEER))],
)
def test_what_is_for_a_node_that_is_not_ready_is_blocked_in_strict_mode_only_and_what_it_sends_is_taken(peers, taken):
    view = mesh.view(nodes=2, peers=peers)
    assert four(plan(view)) == taken | {(Direction.OUT, ANYBODY, POD, ENCRYPT, L, L, True)}
    assert four(plan(view, Options(strict=False))) == taken


def test_from_a_peer_without_any_sa_nothing_is_taken():
    assert four(plan(mesh.view(nodes=2, peers=unready(True), keys={}), Options(strict=False))) == set()


def test_when_a_peer_becomes_ready_what_takes_its_packets_stays():
    before = four(plan(mesh.view(nodes=2, peers=unready(True)), Options(strict=False)))
    assert before < four(plan(mesh.view(nodes=2, traffic=True)))


def test_a_peer_that_is_not_ready_is_taken_from_by_its_pods_addresses_however_many_there_are():
    view = mesh.view(nodes=2, peers=unready(False))
    assert four(plan(view, Options(max_exact=0))) == four(plan(view))


@pytest.mark.parametrize(("mask", "marks"), [(0xFF, (0xE0, 0xEF, 0xD0, 0xDF)), (0x7F, (0x60, 0x6F, 0x50, 0x5F))])
def test_a_bit_that_is_somebody_else_s_is_in_no_mark_and_what_is_to_be_encrypted_again_is_both(mask, marks):
    encrypt, decrypted = to_encrypt(mask), was_decrypted(mask)
    assert (encrypt, decrypted) == (Mark(*marks[:2]), Mark(*marks[2:]))
    again = 0xF0 & mask
    assert (again & encrypt.mask, again & decrypted.mask) == (encrypt.value, decrypted.value)
    assert encrypt.value & decrypted.mask != decrypted.value
    assert decrypted.value & encrypt.mask != encrypt.value
    found = plan(mesh.view(nodes=2), Options(mark_mask=mask))
    assert {policy.mark for policy in found.state.policies.values()} == {encrypt, decrypted}
    outputs = {sa.output_mark for sa in found.state.sas.values() if sa.mark}
    assert outputs == {Mark(0xD0 & mask, 0xFFFFFF00 | mask)}
    assert {sa.mark.mask & 0xFF for sa in found.state.sas.values() if sa.mark} == {mask}


@pytest.mark.parametrize("address", ["10.10.0.1", "10.244.1.10"])
def test_a_pod_that_claims_an_address_of_this_node_or_of_a_pod_here_gets_no_policy_and_is_told(address):
    claimant = Pod("default/thief", "n2", (ip_address(address),))
    view = mesh.view(nodes=2)
    found = plan(replace(view, pods=(claimant, *view.pods)))
    assert found.state.policies == plan(view).state.policies
    (problem,) = found.problems
    assert problem.kind is ProblemKind.CONFLICT
    assert problem.sentence.startswith(f"pod default/thief on n2: {address} is ")
    flags = found.state.pods
    assert flags[L] == PodFlags.CANDIDATE | PodFlags.OWN
    assert flags[ip_address("10.244.1.10")] == PodFlags.LOCAL
    assert flags[R] == PodFlags.CANDIDATE


def test_of_two_pods_elsewhere_with_one_address_the_first_has_it_and_the_other_is_told():
    view = mesh.view()
    twin = replace(mesh.pod(3), addresses=mesh.pod(2).addresses)
    found = plan(replace(view, pods=(mesh.pod(1), mesh.pod(2), twin)))
    assert {one.tunnel_dst for one in found.state.policies.values() if one.direction is Direction.OUT} == set(
        mesh.node(2).addresses
    )
    assert len(found.problems) == 2


def test_the_pod_map_tells_pods_from_what_may_become_one():
    outside = ip_address("203.0.113.9")
    view = mesh.view(candidates=frozenset({outside}))
    peers = (replace(view.peers[0], node_traffic=True), replace(view.peers[1], node_traffic=True, spi=0))
    flags = plan(replace(view, peers=peers)).state.pods
    assert {str(address): flag for address, flag in flags.items() if address.version == 4} == {
        "203.0.113.9": PodFlags.CANDIDATE,
        "10.10.0.1": PodFlags.CANDIDATE | PodFlags.OWN,
        "10.10.0.2": PodFlags.CANDIDATE | PodFlags.PEER | PodFlags.READY,
        "10.10.0.3": PodFlags.CANDIDATE | PodFlags.PEER,
        "10.244.1.10": PodFlags.LOCAL,
        "10.244.2.10": PodFlags.REMOTE | PodFlags.READY | PodFlags.PEER,
        "10.244.3.10": PodFlags.REMOTE,
    }
    without = plan(view).state.pods
    assert without[R] == PodFlags.CANDIDATE
    assert without[ip_address("10.244.2.10")] == PodFlags.REMOTE | PodFlags.READY


NODES = tuple(f"n{index}" for index in range(1, 6))
OUTER = st.sampled_from(tuple(ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2")))
INNER = st.sampled_from(
    tuple(ip_address(f"10.1.{net}.{one}") for net in (1, 2) for one in (1, 2, 3))
    + tuple(ip_address(f"fd01::{net}:{one}") for net in (1, 2) for one in (1, 2))
)
CIDRS = st.sampled_from(tuple(map(ip_network, ("10.1.1.0/24", "10.1.2.0/24", "fd01::1:0/112"))))


def nodes(name):
    return st.builds(
        Node,
        st.just(name),
        st.lists(OUTER | INNER, min_size=1, max_size=2, unique=True).map(tuple),
        st.just(f"boot of {name}"),
        st.lists(CIDRS, max_size=2, unique=True).map(tuple),
    )


PODS = st.lists(
    st.builds(
        Pod,
        st.text("abc", min_size=1),
        st.sampled_from(NODES),
        st.lists(INNER | OUTER, min_size=1, max_size=2).map(tuple),
    ),
    max_size=8,
).map(tuple)
VIEWS = st.builds(
    View,
    nodes(NODES[0]),
    st.tuples(
        *(
            st.builds(Peer, nodes(name), st.integers(0, 2), st.sampled_from((0, 4096)), st.booleans())
            for name in NODES[1:4]
        )
    ),
    PODS,
    st.sampled_from(({1: mesh.key(1)}, {1: mesh.key(1), 2: mesh.key(2)}, {2: mesh.key(2)})),
    candidates=st.frozensets(INNER | OUTER, max_size=2),
    announced=st.integers(0, 2),
)


@examples(150)
@given(VIEWS, st.booleans(), st.sampled_from((0, 3, 30000)))
def test_of_any_cluster_each_managed_address_elsewhere_has_exactly_one_policy_towards_the_node_that_it_runs_on(
    view, strict, max_exact
):
    found = plan(view, Options(strict=strict, max_exact=max_exact))
    policies = tuple(found.state.policies.values())
    outer = {peer.node.name: set(peer.node.addresses) for peer in view.peers}
    mine = set(view.node.addresses) | {a for pod in view.pods if pod.node == view.node.name for a in pod.addresses}
    where = {}
    for pod in sorted(view.pods, key=lambda one: one.node):
        for address in pod.addresses:
            if address not in mine:
                where.setdefault(address, pod.node)
    assert found.state.peers.keys().isdisjoint({*where, *mine}), "a node whose address a pod has, or we, is cut off"
    for address, flags in found.state.pods.items():
        selecting = [
            one for one in policies if one.direction is Direction.OUT and one.mark != UNMARKED and address in one.dst
        ]
        if PodFlags.REMOTE not in flags:
            if PodFlags.LOCAL in flags:
                assert not selecting, "nothing for a pod here is encrypted"
            continue
        node = where[address]
        if PodFlags.READY in flags:
            (one,) = selecting
            assert not one.block
            assert one.tunnel_dst in outer[node]
        else:
            assert [one.block for one in selecting] == ([True] if strict else [])
    for one in policies:
        if one.direction is not Direction.OUT:
            for address, node in where.items():
                if address in one.src:
                    assert one.tunnel_src in outer[node], "nobody speaks for another one's pod"


@examples(150)
@given(VIEWS)
def test_of_any_cluster_what_a_peer_may_send_encrypted_is_taken_from_it_whether_or_not_it_is_ready(view):
    found = plan(view)
    inbound = {(sa.dst, sa.src) for sa in found.state.sas.values() if sa.mark is not None}
    ways = {}
    for peer in view.peers:
        ends = tunnels(view.node, peer.node)
        entry = found.state.peers.get(peer.node.addresses[0])
        accepted = entry is not None and entry.incarnations == incarnations(view.node, peer.node)
        if peer.node.name in found.ready_peers or (accepted and not inbound.isdisjoint(ends.values())):
            ways[peer.node.name] = (peer, ends)
    owners = Owners()
    owners.update(view.node, Pods.of(view.pods))
    where = owners.all()
    expected = [(address, ways[node][1]) for address, node in where.items() if node in ways]
    expected += [
        (address, ends) for peer, ends in ways.values() if peer.node_traffic for address in peer.node.addresses
    ]
    assert {
        (one.direction, one.src, one.dst, one.tunnel_dst, one.tunnel_src)
        for one in found.state.policies.values()
        if one.direction is not Direction.OUT
    } == {
        (direction, host(address), ANY[address.version], *ends[address.version])
        for address, ends in expected
        for direction in (Direction.IN, Direction.FWD)
    }


@examples(100)
@given(VIEWS)
def test_of_any_cluster_every_policy_leads_between_the_two_nodes_or_blocks(view):
    theirs = {address for peer in view.peers for address in peer.node.addresses}
    for one in plan(view).state.policies.values():
        here, there = (one.tunnel_src, one.tunnel_dst)[:: 1 if one.direction is Direction.OUT else -1]
        assert here in view.node.addresses
        assert (there == here) if one.block else (there in theirs)
        assert one.src.version == one.dst.version
        assert ANY[one.src.version] in (one.src, one.dst) or one.mark == UNMARKED


def test_the_network_of_an_address_is_that_address_alone():
    for text in ("10.0.0.1", "fd00::1"):
        assert host(ip_address(text)) == ip_network(text)

# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product

import pytest

from kmesh_bpf import Fate, KernelState, Observation, Options, Peer, Stop, make_plan, trace
from kmesh_bpf.core.state import PodFlags
from tests.bpf import model
from tests.unit.core import mesh

A, B, C = (ip_address(f"10.244.{index}.10") for index in (1, 2, 3))
SERVICE = ip_network("10.96.0.0/16")


def stop(here: int, strict: bool = True, **changes) -> Stop:
    return Stop(make_plan(mesh.view(here, **changes), Observation(KernelState()), Options(), 1000.0), strict)


def test_between_managed_pods_of_ready_nodes_it_is_encrypted_both_ways_and_in_both_families():
    for src, dst in ((A, B), (ip_address("fd00:244:1::a"), ip_address("fd00:244:2::a"))):
        there, back = trace(stop(1), stop(2), src, dst), trace(stop(2), stop(1), dst, src)
        assert there.fate is back.fate is Fate.ENCRYPTED
        assert (src in there.policy.src, dst in there.policy.dst, there.spi) == (True, True, 1)


def test_a_packet_is_selected_by_the_pod_s_own_address_wherever_its_node_s_pod_cidrs_are():
    found = trace(stop(1), stop(2), A, B)
    assert (found.fate, str(found.policy.src), str(found.policy.dst)) == (Fate.ENCRYPTED, "0.0.0.0/0", "10.244.2.10/32")


def test_in_a_replacement_the_sender_s_version_goes_by_what_the_receiver_announces():
    keys = {1: mesh.key(1), 2: mesh.key(2)}
    ahead = tuple(Peer(mesh.node(index), 2, mesh.WINDOW) for index in (2, 3))
    assert trace(stop(1, keys=keys, peers=ahead), stop(2, keys=keys), A, B).spi == 2
    assert trace(stop(1, keys=keys), stop(2, keys=keys), A, B).spi == 1


def test_a_version_that_the_receiver_does_not_hold_is_dropped_there():
    ahead = tuple(Peer(mesh.node(index), 2) for index in (2, 3))
    found = trace(stop(1, keys={2: mesh.key(2)}, peers=ahead), stop(2), A, B)
    assert found.fate is Fate.DROPPED
    assert found.reason == "the receiving node has no SA from 10.10.0.1 to 10.10.0.2 with SPI 2: dropped there"


def test_what_a_node_can_send_is_taken_by_one_that_cannot_send_back():
    newest = {2: mesh.key(2)}
    ahead = tuple(Peer(mesh.node(index), 2, mesh.WINDOW, node_traffic=True) for index in (2, 3))
    sender = stop(1, keys={1: mesh.key(1), **newest}, peers=ahead)
    receiver = stop(2, keys=newest, traffic=True)  # it was told of version 1 only, and holds none such
    for src, dst in ((A, B), (A, THERE), (HERE, B)):
        found = trace(sender, receiver, src, dst)
        assert (found.fate, found.spi) == (Fate.ENCRYPTED, 2)
    assert trace(receiver, sender, B, A).reason == (
        "the destination's node is no ready peer of the sending node: dropped (strict)"
    )


def test_a_receiver_that_does_not_know_the_sender_s_pods_refuses_them():
    found = trace(stop(1), stop(2, pods=(mesh.pod(2),)), A, B)
    assert (found.fate, found.reason) == (
        Fate.DROPPED,
        "no policy of the receiving node accepts it from this peer: dropped there",
    )


def test_without_a_daemon_on_the_receiving_node_nothing_decrypts():
    assert trace(stop(1), None, A, B).fate is Fate.DROPPED


def test_pods_of_one_node_are_never_encrypted():
    here = stop(1, pods=(mesh.pod(1), mesh.pod(1, 11)))
    found = trace(here, here, A, ip_address("10.244.1.11"))
    assert found.fate is Fate.CLEAR
    assert found.reason.startswith("both are on the same node")


@pytest.mark.parametrize(("pods", "reason"), [((2,), "the sender"), ((1,), "the destination"), ((), "the sender")])
def test_a_pod_that_is_not_managed_sends_and_receives_in_clear(pods, reason):
    managed = tuple(mesh.pod(index) for index in pods)
    found = trace(stop(1, pods=managed), stop(2, pods=managed), A, B)
    assert (found.fate, found.reason) == (Fate.CLEAR, f"{reason} is not managed")


@pytest.mark.parametrize(("strict", "fate"), [(True, Fate.DROPPED), (False, Fate.CLEAR)])
def test_towards_a_node_that_is_no_peer_strict_drops_and_permissive_sends_in_clear(strict, fate):
    assert trace(stop(1, strict, peers=()), None, A, B).fate is fate
    assert trace(stop(1, False, peers=()), stop(2, strict), A, B).fate is fate


def test_clear_text_from_a_node_without_a_daemon_is_dropped_by_a_strict_receiver():
    assert trace(None, None, A, B).fate is Fate.CLEAR
    assert trace(None, stop(2, False), A, B).fate is Fate.CLEAR
    found = trace(None, stop(2), A, B)
    assert found.fate is Fate.DROPPED
    assert found.reason == "no daemon runs on the sending node; the receiving node drops it as clear text (strict)"


def test_a_service_address_leaves_it_open():
    found = trace(stop(1, services=(SERVICE,)), None, A, ip_address("10.96.0.10"))
    assert found.fate is Fate.UNKNOWN
    assert trace(stop(1), None, A, ip_address("10.96.0.10")).fate is Fate.CLEAR


def test_another_candidate_leaves_it_open_too():
    outside = ip_address("203.0.113.9")
    found = trace(stop(1, candidates=frozenset({outside})), None, A, outside)
    assert (found.fate, found.reason[:28]) == (Fate.UNKNOWN, "it is a Service's address: D")


HERE, THERE = ip_address("10.10.0.1"), ip_address("10.10.0.2")


def test_between_a_pod_and_the_address_of_a_node_that_takes_it_it_is_encrypted_both_ways():
    there = trace(stop(1, traffic=True), stop(2, traffic=True), A, THERE)
    back = trace(stop(2, traffic=True), stop(1, traffic=True), THERE, A)
    assert (there.fate, there.spi, str(there.policy.dst)) == (Fate.ENCRYPTED, 1, "10.10.0.2/32")
    assert (back.fate, back.spi, str(back.policy.src)) == (Fate.ENCRYPTED, 1, "10.10.0.2/32")


def test_between_a_pod_and_the_address_of_another_node_it_is_in_clear_both_ways():
    there, back = trace(stop(1), stop(2), A, THERE), trace(stop(2), stop(1), THERE, A)
    assert (there.fate, back.fate) == (Fate.CLEAR, Fate.CLEAR)
    assert there.reason.startswith("it is the address of a node that takes nothing")
    assert trace(stop(1, traffic=True, keys={}), stop(2), A, THERE).fate is Fate.CLEAR
    told = "if it is a managed pod there, the receiving node drops it (strict)"
    assert told in there.reason
    assert told not in back.reason
    assert told not in trace(stop(1), stop(2, False), A, THERE).reason


def test_what_goes_to_the_own_node_s_address_does_not_leave_it():
    here = stop(1, traffic=True)
    found = trace(here, here, A, HERE)
    assert (found.fate, found.reason[:42]) == (Fate.CLEAR, "it is the sending node's own address, whic")


def test_a_pod_that_is_not_managed_and_a_node_talk_in_clear():
    managed = {"pods": (mesh.pod(2),), "traffic": True}
    assert trace(stop(1, **managed), stop(2, **managed), A, THERE).reason == "the sender is not managed"
    assert trace(stop(2, **managed), stop(1, **managed), THERE, A).fate is Fate.CLEAR


def test_what_a_node_would_have_encrypted_is_not_taken_in_clear_by_another_one_s_address():
    found = trace(None, stop(2, traffic=True), A, THERE)
    assert (found.fate, found.reason[-52:]) == (Fate.DROPPED, "; the receiving node drops it as clear text (strict)")
    assert trace(None, stop(2, False, traffic=True), A, THERE).fate is Fate.CLEAR
    assert trace(None, stop(2), A, THERE).fate is Fate.CLEAR, "it takes nothing encrypted that is sent to nodes"
    unready = tuple(replace(peer, spi=0) for peer in mesh.view(2, traffic=True).peers)
    assert trace(None, stop(2, peers=unready), A, THERE).fate is Fate.CLEAR
    assert trace(None, stop(2, traffic=True), HERE, THERE).fate is Fate.CLEAR, "nodes among themselves"


def _edited(plan, **state):
    return Stop(replace(plan, state=replace(plan.state, **state)))


def test_ready_without_policy_or_without_sa_is_dropped_not_sent_in_clear():
    plan = stop(1).plan
    assert trace(_edited(plan, policies={}), stop(2), A, B).fate is Fate.DROPPED
    assert trace(_edited(plan, sas={}), stop(2), A, B).fate is Fate.DROPPED


SOURCES = (None, PodFlags.LOCAL)  # what bears the address of another node's pod is dropped, whatever it asks for
DESTINATIONS = (None, PodFlags.LOCAL, PodFlags.REMOTE, PodFlags.REMOTE | PodFlags.READY)


def test_the_answer_agrees_with_the_model_that_the_programs_are_tested_against():
    plan = stop(1).plan
    for source, destination, strict in product(SOURCES, DESTINATIONS, (True, False)):
        if source == destination == PodFlags.LOCAL:
            continue  # never on an uplink
        pods = {address: flags for address, flags in ((A, source), (B, destination)) if flags is not None}
        sender = Stop(replace(plan, state=replace(plan.state, pods=pods, services=frozenset())), strict)
        case = model.Case(model.Program.MARK_ENCRYPT, strict, source=source, destination=destination)
        _, mark, _ = model.expected(case)
        if mark == case.encrypt and PodFlags.READY in destination:
            assert trace(sender, stop(2), A, B).fate is Fate.ENCRYPTED, case
            continue
        verdict, _, _ = model.expected(replace(case, program=model.Program.LEAK_GUARD, mark=mark))
        assert (trace(sender, None, A, B).fate is Fate.DROPPED) == (verdict == model.SHOT), case

# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core import keys
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.problems import ProblemKind
from kmesh_bpf.core.state import Direction, KernelState, Mark, Observation, PodFlags
from kmesh_bpf.core.view import Peer
from tests.unit.core import mesh

EMPTY = Observation(KernelState(), links=mesh.LINKS)
OPTIONS = Options()
L, R = ip_address("10.10.0.1"), ip_address("10.10.0.2")


def plan(view, observed=EMPTY, now=1000.0, options=OPTIONS):
    return make_plan(view, observed, options, now)


def test_each_peer_has_an_sa_a_direction_and_family():
    sas = plan(mesh.view()).state.sas.values()
    assert sorted((str(sa.src), str(sa.dst)) for sa in sas if sa.src.version == 4) == [
        ("10.10.0.1", "10.10.0.2"),
        ("10.10.0.1", "10.10.0.3"),
        ("10.10.0.2", "10.10.0.1"),
        ("10.10.0.3", "10.10.0.1"),
    ]
    assert len(sas) == 8


def test_inbound_sas_are_told_apart_by_the_node_mark_and_lay_on_the_decrypted_mark():
    inbound = [sa for sa in plan(mesh.view()).state.sas.values() if sa.dst == L]
    assert len({sa.mark.value for sa in inbound}) == 2
    for sa in inbound:
        assert sa.mark.mask == contract.NODE_MARK_MASK | contract.MARK_MASK
        assert sa.mark.value & contract.MARK_MASK == contract.MARK_DECRYPTED
        assert sa.output_mark == Mark(contract.MARK_DECRYPTED, 0xFFFFFFFF)


def test_both_ends_derive_the_same_keys():
    ours, theirs = plan(mesh.view(1)).state.sas, plan(mesh.view(2)).state.sas
    for src, dst in ((L, R), (R, L)):
        mine = next(sa for sa in ours.values() if (sa.src, sa.dst) == (src, dst))
        other = next(sa for sa in theirs.values() if (sa.src, sa.dst) == (src, dst))
        assert mine.key == other.key


def test_without_a_key_nobody_is_ready_and_nothing_is_installed():
    found = plan(mesh.view(keys={}, announced=0))
    assert not found.state.sas
    assert all(policy.block for policy in found.state.policies.values())
    assert not found.ready_peers
    assert PodFlags.READY not in found.state.pods[ip_address("10.244.2.10")]


def test_a_go_node_that_announces_no_esn_gets_sas_without():
    view = mesh.view(nodes=2)
    view = replace(view, peers=(replace(view.peers[0], replay_window=0),))
    assert {sa.replay_window for sa in plan(view).state.sas.values()} == {0}
    assert {sa.replay_window for sa in plan(mesh.view(nodes=2)).state.sas.values()} == {4096}


def test_inner_packets_of_a_family_that_the_nodes_lack_go_through_the_other():
    view = mesh.view(nodes=2)
    peer = replace(view.peers[0].node, addresses=(R,))
    found = plan(replace(view, peers=(replace(view.peers[0], node=peer),))).state.policies.values()
    six = [policy for policy in found if policy.src.version == 6]
    assert six
    assert {policy.tunnel_dst for policy in six if policy.direction is Direction.OUT} == {R}


def test_a_new_boot_id_of_a_peer_gives_it_a_new_node_id():
    before = plan(mesh.view())
    observed = Observation(before.state, links=mesh.LINKS)
    view = mesh.view()
    reborn = replace(view, peers=(replace(view.peers[0], node=mesh.node(2, "reborn")), view.peers[1]))
    after = plan(reborn, observed)
    assert after.state.peers[R].node_id != before.state.peers[R].node_id
    assert after.state.peers[R].node_id not in {entry.node_id for entry in before.state.peers.values()}
    assert after.state.peers[ip_address("10.10.0.3")] == replace(before.state.peers[ip_address("10.10.0.3")], spi=1)


def test_the_keys_of_a_pair_follow_both_boot_ids():
    view = mesh.view(nodes=2)
    sa = next(sa for sa in plan(view).state.sas.values() if sa.src == L)
    assert sa.key == keys.derive(mesh.key(1), L, R, view.node.boot_id, view.peers[0].node.boot_id)


@pytest.mark.parametrize("uplinks", [(), ("eth0",)])
def test_programs_go_on_every_device(uplinks):
    found = plan(mesh.view(), options=Options(uplinks=uplinks)).state.attachments
    assert {(attachment.device, attachment.program.value) for attachment in found} == {
        ("lo", "tc_mark_decrypt"),
        ("lo", "tc_inner_guard"),
        ("eth0", "tc_mark_decrypt"),
        ("eth0", "tc_leak_guard"),
        ("pod0", "tc_mark_encrypt"),
        ("pod0", "tc_pod_guard"),
    }


def test_addresses_of_managed_pods_here_are_bound_to_their_devices():
    state = plan(mesh.view()).state
    assert state.sources == dict.fromkeys(mesh.pod(1).addresses, 3)
    assert state.pod_devices == {3}


def test_an_uplink_asked_for_that_is_not_there_is_reported():
    (problem,) = plan(mesh.view(), options=Options(uplinks=("eth0", "eth7"))).problems
    assert problem.kind is ProblemKind.UPLINK
    assert "uplink eth7" in problem.sentence
    assert plan(mesh.view(), options=Options(uplinks=("eth0",))).problems == ()


def test_a_peer_that_claims_another_s_address_is_quarantined_and_the_one_in_place_stays():
    honest, claimant = (
        mesh.view().peers[0],
        Peer(replace(mesh.node(2), name="a-thief", boot_id="t" * 36), 1, mesh.WINDOW),
    )
    alone = plan(mesh.view(peers=(honest,)))
    observed = replace(EMPTY, state=alone.state)
    both = plan(mesh.view(peers=(claimant, honest)), observed)
    assert both.state.sas == alone.state.sas
    assert both.state.policies == alone.state.policies
    assert both.ready_peers == {"n2"}
    assert tuple(map(str, both.problems)) == (
        "peer a-thief claims 10.10.0.2, which is of peer n2; quarantined, nothing is sent to a-thief: mend a-thief, or "
        "delete the other one if that is gone",
    )


def test_a_known_peer_that_claims_another_s_address_is_quarantined_too_and_its_sas_stay_for_when_it_is_good_again():
    honest, other = mesh.view().peers
    thief = replace(other, node=replace(other.node, name="a-thief"))
    good = mesh.view(peers=(honest, thief), pods=(mesh.pod(1), mesh.pod(2), replace(mesh.pod(3), node="a-thief")))
    before = plan(good, replace(EMPTY, state=plan(good).state)).state
    observed = replace(EMPTY, state=before)
    addresses = (*honest.node.addresses[:1], *thief.node.addresses)
    claiming = replace(thief, node=replace(thief.node, addresses=addresses))
    bad = plan(replace(good, peers=(honest, claiming)), observed)
    assert bad.ready_peers == {"n2"}
    assert (bad.state.sas, bad.state.peers) == (before.sas, before.peers)
    blocked = {policy.dst for policy in bad.state.policies.values() if policy.block}
    assert blocked == {ip_network(address) for address in mesh.pod(3).addresses}
    again = plan(good, replace(observed, state=bad.state))
    assert (again.state, again.lost) == (before, ())


def test_of_two_new_peers_with_one_address_the_first_by_name_is_taken():
    peers = tuple(Peer(replace(mesh.node(2), name=name), 1, mesh.WINDOW) for name in ("n2", "n2-again"))
    assert plan(mesh.view(peers=peers)).ready_peers == plan(mesh.view(peers=peers[::-1])).ready_peers == {"n2"}


def test_without_any_key_what_is_in_the_kernel_stays_and_pods_go_on_being_encrypted():
    before = plan(mesh.view(), replace(EMPTY, state=plan(mesh.view()).state))  # the SAs have been seen to be there
    observed = replace(EMPTY, state=before.state)
    kept = plan(mesh.view(keys={}, announced=0), observed)
    assert (kept.state, kept.ready_peers, kept.lost) == (before.state, before.ready_peers, ())
    assert tuple(map(str, kept.problems)) == ("no key is known; the SAs stay as they are until there is one",)
    fewer = plan(mesh.view(keys={}, announced=0, pods=(mesh.pod(1),)), observed)
    assert {flag for flag in fewer.state.pods.values() if PodFlags.CANDIDATE not in flag} == {PodFlags.LOCAL}
    assert not fewer.state.policies


def test_policies_of_whole_addresses_are_found_by_hash_where_the_kernel_has_thresholds():
    assert plan(mesh.view()).state.policy_hash
    assert not plan(mesh.view(), replace(EMPTY, can_hash=False)).state.policy_hash


def test_above_the_bound_a_peer_is_selected_by_pod_cidr_and_the_plan_says_so():
    exact, wide = plan(mesh.view()), plan(mesh.view(), options=Options(max_exact=3))
    assert (exact.by_cidr, wide.by_cidr) == (frozenset(), {"n2", "n3"})
    assert len(exact.state.policies) == len(wide.state.policies) == 2 * 2 * 3
    selected = {policy.dst for policy in wide.state.policies.values() if policy.direction is Direction.OUT}
    assert selected == {cidr for index in (2, 3) for cidr in mesh.node(index).pod_cidrs}


def test_around_the_bound_policies_do_not_change_with_each_pod_that_comes_and_goes():
    def selected(number, before=None):
        pods = tuple(
            replace(mesh.pod(2, one), addresses=mesh.pod(2, one).addresses[:1]) for one in range(1, number + 1)
        )
        state = before.state if before else KernelState()
        return plan(mesh.view(pods=pods), replace(EMPTY, state=state), options=Options(max_exact=20))

    exact, wide = selected(20), selected(21)
    assert (exact.by_cidr, wide.by_cidr) == (frozenset(), {"n2"})
    assert [selected(number, wide).by_cidr for number in (20, 19, 18)] == [{"n2"}, {"n2"}, frozenset()]
    assert selected(20, selected(18, wide)).by_cidr == frozenset()

# SPDX-License-Identifier: Apache-2.0
"""The order of operations: nothing is sent that the other end could not read, and nothing passes in clear."""

from dataclasses import replace
from itertools import groupby

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.devices import decide
from kmesh_bpf.core.diff import at_once, diff
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.state import Attachment, Direction, KernelState, Mark, Observation, Policy, Program
from tests.unit.core import mesh

EMPTY = KernelState()
ENDS = mesh.node(1).addresses[0], mesh.node(2).addresses[0]


def mesh_cidrs(*nodes):
    return tuple(mesh.node(index).pod_cidrs[0] for index in nodes)


def planned(spi=1):
    """Give what a node with two peers should have, every kind of object among it, all SAs of one key version."""
    view = mesh.view(spi=spi, traffic=True, keys={spi: mesh.key(spi)}, services=mesh.node(9).pod_cidrs)
    pods = (*view.pods, mesh.pod(9))  # of a node that is not ready
    return make_plan(replace(view, pods=pods), Observation(EMPTY, links=mesh.LINKS), Options(), 0.0).state


def step(operation):
    name = type(operation).__name__
    match operation:
        case ops.AddSa(sa) | ops.DeleteSa(sa):
            return f"{name} {'in' if sa.mark else 'out'}"
        case ops.SetPolicy(policy) | ops.DeletePolicy(policy):
            return f"{name} {'out' if policy.direction is Direction.OUT else 'in'}"
        case ops.Attach(attachment):
            return f"{name} {'encrypt' if attachment.program is Program.MARK_ENCRYPT else 'guard'}"
        case _:
            return name


def steps(desired, observed):
    """Give the steps in order: one that is done for every peer before the next begins stands here once."""
    return [name for name, _ in groupby(diff(desired, observed), step)]


def test_what_receives_is_made_before_what_sends_and_pods_are_marked_when_all_is_in_place():
    assert steps(planned(), EMPTY) == [
        "LowerHashThresholds",
        "SetPeer",
        "AddSa in",
        "SetPolicy in",
        "SetSource",
        "AddPodDevice",
        "Attach guard",
        "InstallNatExemption",
        "AddSa out",
        "SetPolicy out",
        "SetPod",
        "AddService",
        "Attach encrypt",
    ]


def test_pods_go_before_policies_before_sas_before_peers_and_what_sends_before_what_receives():
    assert steps(EMPTY, planned()) == [
        "DeletePodDevice",
        "DeleteSource",
        "DeletePod",
        "DeleteService",
        "Detach",
        "DeletePolicy out",
        "DeletePolicy in",
        "DeleteSa out",
        "DeleteSa in",
        "DeletePeer",
        "RemoveNatExemption",
        "RestoreHashThresholds",
    ]


def test_of_a_new_key_everything_is_in_place_before_anything_of_the_old_one_goes():
    assert steps(planned(spi=2), planned(spi=1)) == [
        "AddSa in",
        "AddSa out",
        "DeleteSa out",
        "DeleteSa in",
    ]


def test_of_policies_of_a_former_version_the_new_ones_are_in_place_before_they_and_the_sas_that_they_point_to_go():
    now = planned(spi=2)
    former = [
        Policy(Direction.OUT, *mesh_cidrs(1, 2), Mark(0xE0, 0xFF), *ENDS, spi=1),
        Policy(Direction.FWD, *mesh_cidrs(2, 1), Mark(0xD0, 0xFF), *reversed(ENDS)),
        Policy(Direction.IN, *mesh_cidrs(2, 1), Mark(0xD0, 0xFF), *reversed(ENDS)),
    ]
    before = replace(planned(spi=1), policies={policy.id: policy for policy in former})
    assert steps(now, before) == [
        "AddSa in",
        "SetPolicy in",
        "AddSa out",
        "SetPolicy out",
        "DeletePolicy out",
        "DeletePolicy in",
        "DeleteSa out",
        "DeleteSa in",
    ]


def test_only_a_policy_that_is_there_and_ours_is_replaced_what_else_is_in_its_place_is_not():
    """The kernel refuses to add what is there; to update it would overwrite somebody else's, which is not observed."""
    desired = planned()
    identity, policy = next(iter(desired.policies.items()))
    others = {key: one for key, one in desired.policies.items() if key != identity}
    for there, told in ((others, False), ({**others, identity: replace(policy, priority=7)}, True)):
        (found,) = diff(desired, replace(desired, policies=there))
        assert found == ops.SetPolicy(policy, replace=told)


def test_towards_a_node_that_becomes_ready_nothing_but_the_block_is_replaced_and_before_the_pods_are_told_so():
    view = mesh.view(nodes=2)
    ready = make_plan(view, Observation(EMPTY, links=mesh.LINKS), Options(), 0.0).state
    unready = make_plan(replace(view, peers=()), Observation(EMPTY, links=mesh.LINKS), Options(), 0.0).state
    assert steps(ready, unready) == ["SetPeer", "AddSa in", "SetPolicy in", "AddSa out", "SetPolicy out", "SetPod"]
    assert all(op.replace for op in diff(ready, unready) if step(op) == "SetPolicy out")
    assert steps(unready, ready) == [
        "SetPolicy out",
        "SetPod",
        "DeletePod",
        "DeletePolicy in",
        "DeleteSa out",
        "DeleteSa in",
        "DeletePeer",
    ]


def test_an_entry_that_is_there_gives_packets_another_mark_only_when_there_are_sas_that_it_selects():
    desired = planned()
    other = {address: replace(entry, node_id=9, node_mark=0x900000) for address, entry in desired.peers.items()}
    found = steps(desired, replace(EMPTY, peers=other))
    assert found.index("AddSa in") < found.index("SetPeer") < found.index("SetPolicy in")


POD = mesh.pod(1).addresses
POD_S = (Program.MARK_ENCRYPT, Program.POD_GUARD)
AGAIN = replace(mesh.LINKS[2], ifindex=8)
PROGRAMS = [ops.Attach(Attachment(8, "pod0", program)) for program in POD_S]


def hurried(*links, bound=3, attached=()):
    """Give what is done at once about these devices by a node whose pod is bound to a device that is gone."""
    observed = KernelState(
        sources=dict.fromkeys(POD, bound),
        pod_devices=frozenset({bound}),
        attachments=frozenset(Attachment(one.ifindex, one.name, program) for one in attached for program in POD_S),
    )
    return list(at_once(links, decide(links, mesh.node(1).addresses, (), POD, observed.sources), observed))


def test_a_pod_s_new_device_is_bound_before_it_gets_its_program_and_the_old_one_is_released_first():
    bound = [ops.SetSource(address, 8) for address in sorted(POD, key=lambda one: one.version)]
    assert hurried(AGAIN) == [ops.DeletePodDevice(3), *bound, ops.AddPodDevice(8), *PROGRAMS]


def test_a_new_device_that_is_not_known_to_be_the_pod_s_is_not_held_back_by_the_old_one():
    released = [ops.DeletePodDevice(3), *map(ops.DeleteSource, POD)]
    other = replace(AGAIN, far_addresses=mesh.pod(1, 11).addresses)
    assert hurried(other) == [*released, *PROGRAMS]
    assert hurried() == released
    assert hurried(AGAIN, attached=[AGAIN]) == released, "it had the address while the other one was there"


def test_a_device_that_is_there_keeps_what_is_its_own():
    assert hurried(mesh.LINKS[2], attached=[mesh.LINKS[2]]) == []
    assert hurried(mesh.LINKS[2], AGAIN, attached=[mesh.LINKS[2], AGAIN]) == []


def test_programs_come_to_devices_that_lead_out_first_and_to_lo_last():
    found = [op.attachment for op in diff(planned(), EMPTY) if isinstance(op, ops.Attach)]
    assert [name for name, _ in groupby(one.device for one in found)] == ["eth0", "pod0", "lo", "pod0"]
    assert [one.program for one in found if one.device == "pod0"] == [Program.POD_GUARD, Program.MARK_ENCRYPT]

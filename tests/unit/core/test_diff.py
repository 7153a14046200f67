"""The order of operations: nothing is sent that the other end could not read, and nothing passes in clear."""

from itertools import groupby

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.planner import Options, make_plan
from kmesh_bpf.core.state import Direction, KernelState, Observation, Program
from tests.unit.core import mesh

EMPTY = KernelState()


def planned(spi=1):
    """Give what a node with two peers should have, every kind of object among it, all SAs of one key version."""
    view = mesh.view(spi=spi, keys={spi: mesh.key(spi)}, services=mesh.node(9).pod_cidrs)
    return make_plan(view, Observation(EMPTY, links=mesh.LINKS), Options(), 0.0).state


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
        "AddSa in",
        "SetPeer",
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
    ]


def test_of_a_new_key_everything_is_in_place_before_anything_of_the_old_one_goes():
    assert steps(planned(spi=2), planned(spi=1)) == [
        "AddSa in",
        "AddSa out",
        "SetPolicy out",
        "DeleteSa out",
        "DeleteSa in",
    ]


def test_programs_come_to_devices_that_lead_out_first_and_to_lo_last():
    found = [op.attachment.device for op in diff(planned(), EMPTY) if isinstance(op, ops.Attach)]
    assert [name for name, _ in groupby(found)] == ["eth0", "lo", "pod0"]

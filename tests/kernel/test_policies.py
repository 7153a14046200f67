# SPDX-License-Identifier: Apache-2.0
"""Policies and thresholds as the kernel really takes and gives them. No ESP is needed: these are never put to use."""

import socket
from collections.abc import Iterator

import pytest

from kmesh_bpf import LinuxKernel, Options, Peer, Settings, make_plan
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.render import render
from kmesh_bpf.core.state import KernelState, Mark, Observation, Policy
from kmesh_bpf.kernel import xfrm_stat
from kmesh_bpf.kernel.netlink import NetlinkSocket
from kmesh_bpf.kernel.thresholds import HashThresholds
from kmesh_bpf.kernel.xfrm import Xfrm
from tests.lab.network import run
from tests.unit.core import mesh

MASKS = pytest.mark.parametrize("mask", [0xFF, 0x7F])


def planned(mask: int = 0xFF, **options):
    """Give all kinds of policies: of pods and nodes of a ready peer, of one that is ready for pods only, and blocks.

    They block what is for a peer that cannot be sent to, from which packets are taken, and for a node that is none.
    """
    announced = ((2, 1, True), (3, 1, False), (4, 0, True))
    peers = tuple(Peer(mesh.node(index), spi, mesh.WINDOW, traffic) for index, spi, traffic in announced)
    view = mesh.view(nodes=5, peers=peers)
    state = make_plan(view, Observation(KernelState()), Options(mark_mask=mask, **options), 0.0).state
    marks = {policy.mark for policy in state.policies.values()}
    assert marks == {Mark(0xE0 & mask, 0xEF & mask), Mark(0xD0 & mask, 0xDF & mask), Mark(0, 0)}
    return state.policies


@pytest.fixture
def netlink(netns: str) -> Iterator[NetlinkSocket]:
    with NetlinkSocket() as one:
        yield one


@MASKS
@pytest.mark.parametrize("max_exact", [30000, 0])
def test_every_kind_of_policy_reads_back_equal_is_replaced_and_goes(netlink, mask, max_exact):
    wanted, xfrm = planned(mask, max_exact=max_exact), Xfrm(netlink)
    assert any(policy.block for policy in wanted.values())
    for replace in (False, True):
        assert xfrm.apply([ops.SetPolicy(policy, replace) for policy in wanted.values()]) == ()
        assert {policy.id: policy for policy in xfrm.dump_policies()} == wanted
    assert xfrm.apply([ops.DeletePolicy(policy) for policy in wanted.values()]) == ()
    assert xfrm.dump_policies() == []


@MASKS
def test_the_lines_that_are_shown_do_the_same(netlink, mask):
    wanted, xfrm = planned(mask), Xfrm(netlink)
    run("; ".join(render(ops.SetPolicy(policy), "", "") for policy in wanted.values()))
    assert {policy.id: policy for policy in xfrm.dump_policies()} == wanted
    run("; ".join(render(ops.DeletePolicy(policy), "", "") for policy in wanted.values()))
    assert xfrm.dump_policies() == []


@pytest.fixture
def block(netlink) -> Policy:
    """A policy that blocks what is for a pod, and a device by which that pod is reached."""
    run("ip link add d0 type veth peer name d1; ip addr add 10.10.0.1/24 dev d0; ip link set d0 up; ip link set d1 up")
    run("ip route add 10.244.4.0/24 via 10.10.0.4")
    return next(one for one in planned().values() if one.block and one.dst.version == 4)


def blocked(policy: Policy, mark: int) -> bool:
    """Send a packet to the pod; tell whether it was blocked, by what the sender is told and by the counter."""
    before = xfrm_stat.read()["XfrmOutPolBlock"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            one.sendto(b"x", (str(policy.dst.network_address), 9))
            refused = False
        except PermissionError:
            refused = True
    assert xfrm_stat.read()["XfrmOutPolBlock"] - before == refused
    return refused


def test_what_is_for_a_node_that_is_not_ready_is_dropped_and_counted_if_it_is_to_be_encrypted(netlink, block):
    assert Xfrm(netlink).apply([ops.SetPolicy(block)]) == ()
    marks = {0xE0: True, 0xF0: True, 0x40E0: True, 0xD0: False, 0x80: False, 0: False}
    assert {mark: blocked(block, mark) for mark in marks} == marks


@pytest.mark.parametrize("low", [False, True])
def test_of_a_policy_of_a_former_version_and_ours_the_first_counts_until_it_goes(netlink, block, low):
    """Both are in the kernel for a moment when the daemon is upgraded; the SA that the former one pins stays so long."""
    if low:
        HashThresholds(netlink).lower(Memory())
    former = "src 10.10.0.0/24 dst 10.244.4.0/24 dir out mark 0xe0 mask 0xff"
    run(f"ip xfrm policy add {former} action allow priority 100")
    assert Xfrm(netlink).apply([ops.SetPolicy(block)]) == ()
    assert not blocked(block, 0xE0)
    run(f"ip xfrm policy delete {former}")
    assert blocked(block, 0xE0)


class Memory:
    def __init__(self):
        self.kept = None

    def thresholds(self):
        return self.kept

    def set_thresholds(self, found):
        self.kept = found


def test_thresholds_are_lowered_remembered_and_put_back(netlink):
    thresholds, memory = HashThresholds(netlink), Memory()
    run("ip xfrm policy set hthresh4 24 28 hthresh6 64 128")
    thresholds.lower(memory)
    assert (thresholds.found(), memory.kept) == ((0, 28, 0, 128), (24, 28, 64, 128))
    thresholds.restore(memory)
    assert (thresholds.found(), memory.kept) == ((24, 28, 64, 128), None)


def test_a_kernel_lowers_what_the_plan_asks_for_and_puts_it_back_when_all_goes(netns, pin_root):
    kernel = LinuxKernel(pin_root / "pins", Settings())
    observed = kernel.observe()
    assert (observed.state.policy_hash, observed.can_hash) == (False, True)
    assert kernel.apply([ops.LowerHashThresholds()]) == ()
    kernel.remember("i" * 36)
    assert kernel.observe().state.policy_hash
    run("ip xfrm policy set hthresh4 16 16")
    assert not kernel.observe().state.policy_hash
    assert kernel.apply([ops.LowerHashThresholds()]) == ()
    assert kernel.remove_everything() == ()
    kernel.close()
    with NetlinkSocket() as one:
        assert HashThresholds(one).found() == (16, 16, 128, 128)

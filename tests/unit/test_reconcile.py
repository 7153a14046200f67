# SPDX-License-Identifier: Apache-2.0
import errno
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.formers import DEPARTED_LINGER
from kmesh_bpf.core.incarnation import Announcement, Memory
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.render import render
from kmesh_bpf.core.state import Direction, KernelState, Link, PodFlags
from kmesh_bpf.core.view import View
from kmesh_bpf.errors import KernelError
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import reconcile
from tests.unit.amount import examples
from tests.unit.core import mesh

R, R3 = ip_address("10.10.0.2"), ip_address("10.10.0.3")


class World:
    """One node's kernel, a clock and numbered incarnations."""

    def __init__(self):
        self.now = 1000.0
        self.kernel = FakeKernel(mesh.LINKS, lambda: self.now)
        self.born = 0
        self.memory = Memory()

    def run(self, view: View, options: Options | None = None, shown: Announcement | None = None):
        known = {"shown": shown, "memory": self.memory}
        report = reconcile(self.kernel, view, options or Options(), lambda: self.now, self.fresh, **known)
        self.memory = report.memory
        return report

    def fresh(self) -> str:
        self.born += 1
        return f"fresh-{self.born}".ljust(36, "0")

    def outbound(self, dst=R) -> set[int]:
        return {sa.spi for sa in self.kernel.sas.values() if sa.dst == dst}

    def inbound(self, src=R) -> set[int]:
        return {sa.spi for sa in self.kernel.sas.values() if sa.src == src}

    def sending(self, dst=R) -> int:
        """Give the version that the kernel sends with: the newest SA's."""
        outbound = [identity for identity in self.kernel.sas if identity.dst == dst]
        return max(outbound, key=lambda one: self.kernel.usage[one].added).spi


def test_a_pass_reaches_the_plan_and_a_second_one_does_nothing():
    world = World()
    assert world.run(mesh.view()).converged
    assert world.run(mesh.view()).applied == ()


def test_the_incarnation_is_never_the_boot_id_and_is_remembered():
    world = World()
    report = world.run(mesh.view())
    assert report.incarnation == world.kernel.remembered != mesh.node(1).boot_id
    assert not report.renewed
    assert world.run(mesh.view()).incarnation == report.incarnation


def test_what_receives_is_installed_before_what_sends_and_pods_come_last():
    world = World()
    world.run(mesh.view())
    kinds = [
        type(operation).__name__ + (".in" if getattr(getattr(operation, "sa", None), "mark", None) else "")
        for operation in world.kernel.log
    ]
    first = {kind: kinds.index(kind) for kind in kinds}
    assert first["SetPeer"] < first["AddSa.in"] < first["SetPolicy"] < first["AddSa"] < first["SetPod"]
    log = list(enumerate(world.kernel.log))
    out = next(i for i, op in log if isinstance(op, ops.SetPolicy) and op.policy.direction is Direction.OUT)
    told = max(i for i, op in log if isinstance(op, ops.SetPeer) and op.entry.spi)
    ready = next(i for i, op in log if isinstance(op, ops.SetPod) and op.flags & PodFlags.READY)
    assert first["AddSa"] < told < out < ready, "what is used is known to be, whoever is killed in between"


@pytest.mark.parametrize("after", range(1, 12))
def test_whoever_is_killed_while_a_peer_is_new_is_who_it_was(after):
    """Found by scripts/simulate: of a new peer's SAs some were there, no entry told that none was used, and all peers
    had to change their keys."""
    world = World()
    first = world.run(mesh.view(nodes=2)).incarnation
    left = after

    def kill(_):
        nonlocal left
        left -= 1
        if left < 0:
            raise InterruptedError

    world.kernel.refuse = kill
    with pytest.raises(InterruptedError):
        world.run(mesh.view())
    world.kernel.refuse = lambda _: None
    report = world.run(mesh.view())
    assert (report.incarnation, report.renewed, report.converged) == (first, False, True)


def test_a_flush_of_all_sas_is_healed_with_a_new_incarnation():
    world = World()
    first = world.run(mesh.view()).incarnation
    before = dict(world.kernel.sas)
    world.kernel.sas.clear()
    world.kernel.usage.clear()
    report = world.run(mesh.view())
    assert report.renewed
    assert report.converged
    assert world.kernel.remembered == report.incarnation != first
    assert not {sa.key for sa in before.values()} & {sa.key for sa in world.kernel.sas.values()}
    assert not world.run(mesh.view()).renewed


def test_a_flush_of_policies_is_healed_without_one():
    world = World()
    world.run(mesh.view())
    world.kernel.policies.clear()
    report = world.run(mesh.view())
    assert report.converged
    assert not report.renewed


def test_another_replay_window_means_another_incarnation_for_sequence_numbers_must_not_start_again_under_a_key():
    world = World()
    world.run(mesh.view())
    before = {sa.key for sa in world.kernel.sas.values()}
    report = world.run(mesh.view(), Options(replay_window=64))
    assert report.renewed
    assert report.converged
    assert {sa.replay_window for sa in world.kernel.sas.values()} == {64}
    assert not before & {sa.key for sa in world.kernel.sas.values()}


def test_a_node_whose_own_address_changes_sends_from_the_new_one_after_one_pass():
    world = World()
    world.run(mesh.view())
    here = replace(mesh.node(1), addresses=(ip_address("10.11.0.1"), ip_address("fd00:11::1")))
    assert world.run(mesh.view(node=here)).converged
    senders = {str(sa.src) for sa in world.kernel.sas.values() if sa.mark is None}
    assert senders == {str(identity.src) for identity in world.kernel.usage if identity.mark is None}
    assert senders == {"10.11.0.1", "fd00:11::1"}


def test_a_node_whom_its_peers_have_forgotten_comes_back_as_another_if_it_had_sas():
    world = World()
    assert not world.run(mesh.view(), shown=Announcement()).renewed
    before = {sa.key for sa in world.kernel.sas.values()}
    assert not world.run(mesh.view(), shown=Announcement()).renewed, "nobody has seen this incarnation yet"
    world.memory = world.memory.announced(recreated=False)
    report = world.run(mesh.view(), shown=Announcement())
    assert (report.renewed, report.converged) == (True, True)
    assert not before & {sa.key for sa in world.kernel.sas.values()}


def test_an_sa_that_the_kernel_refuses_is_reported_and_does_not_renew_the_incarnation_for_ever():
    world = World()
    world.kernel.refuse = lambda op: KernelError("add SA", "x", errno.ENOMEM) if isinstance(op, ops.AddSa) else None
    for _ in range(3):
        report = world.run(mesh.view())
        assert not report.converged
        assert report.failures
        assert not report.renewed
    world.kernel.refuse = lambda op: None
    assert world.run(mesh.view()).converged


def test_a_foreign_sa_in_the_way_is_a_conflict_and_stays():
    world = World()
    world.kernel.foreign_sas.add((R, 1))
    report = world.run(mesh.view())
    assert [failure.error.errno for failure in report.failures] == [errno.EEXIST]
    assert world.outbound() == set()
    assert world.outbound(ip_address("10.10.0.3")) == {1}


def rotating(peer: int, announced: int, held=(1, 2), announced_at: float = 0.0) -> View:
    view = mesh.view(nodes=2)
    return replace(
        view,
        keys={version: mesh.key(version) for version in held},
        peers=(replace(view.peers[0], spi=peer),),
        announced=announced,
        announced_at=announced_at,
    )


def test_replacing_the_key_follows_the_design_s_steps():
    world = World()
    world.run(rotating(peer=1, announced=1, held=(1,)))
    world.run(rotating(peer=1, announced=1))
    assert (world.inbound(), world.outbound(), world.sending()) == ({1, 2}, {1}, 1)
    for sa in list(world.kernel.usage):
        world.kernel.use(sa, world.now)
    report = world.run(rotating(peer=2, announced=2, announced_at=world.now))
    assert (world.outbound(), report.plan.due is not None) == ({1}, True), (
        "not two in one second: which one is the newest?"
    )
    world.now += 1
    report = world.run(rotating(peer=2, announced=2, announced_at=1000.0))
    assert (world.inbound(), world.outbound(), world.sending()) == ({1, 2}, {1, 2}, 2)
    assert not any(isinstance(op, ops.SetPolicy | ops.DeletePolicy) for op in report.applied)
    world.now += 2
    world.run(rotating(peer=2, announced=2, announced_at=1000.0))
    assert (world.inbound(), world.outbound()) == ({1, 2}, {2})
    world.now += 30
    report = world.run(rotating(peer=2, announced=2, announced_at=1000.0))
    assert (world.inbound(), world.outbound()) == ({2}, {2})
    assert report.plan.due is None
    assert not report.renewed


def test_a_peer_that_announces_a_version_we_do_not_hold_is_sent_the_old_one():
    world = World()
    world.run(rotating(peer=2, announced=1, held=(1,)))
    assert (world.outbound(), world.sending()) == ({1}, 1)


def test_a_peer_that_leaves_takes_all_its_objects_along_after_a_while_and_is_remembered():
    world = World()
    world.run(mesh.view())
    view = mesh.view()
    missed = world.run(replace(view, peers=view.peers[:1], pods=view.pods[:2]))
    assert missed.plan.due is not None
    assert not any(R3 in (policy.tunnel_src, policy.tunnel_dst) for policy in world.kernel.policies.values())
    assert world.outbound(R3) == {1}
    assert not world.kernel.formers
    assert world.run(view).converged, "it is back: nothing was made anew"
    assert world.born == 3
    assert world.kernel.remembered == missed.incarnation
    world.run(replace(view, peers=view.peers[:1], pods=view.pods[:2]))
    world.now += DEPARTED_LINGER
    world.run(replace(view, peers=view.peers[:1], pods=view.pods[:2]))
    assert list(world.kernel.formers.values()) == [1, 1], "of each of its tunnels"
    order = [type(op) for op in world.kernel.log]
    assert order.index(ops.SetFormer) < order.index(ops.DeleteSa)
    assert all(ip_address("10.10.0.3") not in (sa.src, sa.dst) for sa in world.kernel.sas.values())
    assert len(world.kernel.peers) == 2
    assert world.run(replace(view, peers=view.peers[:1], pods=view.pods[:2])).applied == ()


def test_a_restart_with_everything_in_place_changes_nothing():
    world = World()
    world.run(mesh.view())
    world.memory = Memory()
    other = world.run(mesh.view())
    assert other.applied == ()


views = st.builds(
    lambda nodes, spi, peer_spi, pods, cidrs: replace(
        mesh.view(nodes=nodes, spi=spi),
        pods=tuple(mesh.pod(i, n) for i, n in pods),
        peers=tuple(
            replace(p, spi=min(peer_spi, spi), node=mesh.node(i + 2, cidrs=cidrs))
            for i, p in enumerate(mesh.view(nodes=nodes, spi=spi).peers)
        ),
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sets(st.tuples(st.integers(1, 4), st.integers(1, 20)), max_size=8),
    st.booleans(),
)


@examples(60)
@given(st.lists(views, min_size=1, max_size=4))
def test_applying_a_difference_makes_the_plan_true_from_any_state(sequence):
    world = World()
    for view in sequence:
        world.now += 100
        report = world.run(view)
        assert report.converged
        state = world.kernel.observe().state
        assert diff(state, state) == ()


@examples(30)
@given(views, st.data())
def test_whatever_object_disappears_is_put_back(view, data):
    world = World()
    world.run(view)
    for objects in (world.kernel.policies, world.kernel.pods, world.kernel.peers, world.kernel.sas):
        if objects:
            del objects[data.draw(st.sampled_from(sorted(objects, key=repr)))]
    assert world.run(view).converged


def test_every_operation_renders_as_a_command_without_key_bytes():
    world = World()
    full = make_plan(mesh.view(services=(mesh.node(1).pod_cidrs[0],)), world.kernel.observe(), Options(), 0.0).state
    lines = [
        render(op, "/pins/programs/build", "/pins/maps")
        for op in (*diff(full, KernelState()), *diff(KernelState(), full))
    ]
    assert len(lines) > 40
    assert any(
        line.startswith("ip xfrm state add src 10.10.0.1 dst 10.10.0.2 proto esp spi 0x00000001") for line in lines
    )
    text = "\n".join(lines)
    assert "0x$KEY" in text
    for sa in full.sas.values():
        assert sa.key.reveal().hex() not in text


def test_an_old_program_on_a_device_is_replaced_not_detached():
    world = World()
    world.run(mesh.view())
    world.kernel.attachments = {replace(a, current=False) for a in world.kernel.attachments}
    report = world.run(mesh.view())
    assert {type(op) for op in report.applied} == {ops.Attach}
    assert report.converged


def test_a_device_that_is_no_pod_s_any_more_loses_its_program():
    world = World()
    world.run(mesh.view())
    world.kernel.links = tuple(link for link in mesh.LINKS if link.name != "pod0")
    world.kernel.links += (Link(9, "pod9", "veth", True, (), far_addresses=mesh.pod(1, 11).addresses),)
    report = world.run(mesh.view())
    assert [type(op) for op in report.applied] == [
        *[ops.Attach] * 2,
        ops.DeletePodDevice,
        *[ops.DeleteSource] * 2,
        *[ops.Detach] * 2,
    ]
    assert contract.REQID

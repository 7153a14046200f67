import errno
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.planner import Options, make_plan
from kmesh_bpf.core.render import render
from kmesh_bpf.core.state import Direction, KernelState, Link
from kmesh_bpf.core.view import View
from kmesh_bpf.errors import KernelError
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import reconcile
from tests.unit.core import mesh

R = ip_address("10.10.0.2")


class World:
    """One node's kernel, a clock and numbered incarnations."""

    def __init__(self):
        self.now = 1000.0
        self.kernel = FakeKernel(mesh.LINKS, lambda: self.now)
        self.born = 0

    def run(self, view: View):
        return reconcile(self.kernel, view, Options(), lambda: self.now, self.fresh)

    def fresh(self) -> str:
        self.born += 1
        return f"fresh-{self.born}".ljust(36, "0")

    def outbound(self, dst=R) -> set[int]:
        return {sa.spi for sa in self.kernel.sas.values() if sa.dst == dst}

    def inbound(self, src=R) -> set[int]:
        return {sa.spi for sa in self.kernel.sas.values() if sa.src == src}

    def policy_spi(self, dst=R) -> set[int]:
        return {p.spi for p in self.kernel.policies.values() if p.direction is Direction.OUT and p.tunnel_dst == dst}


def test_a_pass_reaches_the_plan_and_a_second_one_does_nothing():
    world = World()
    assert world.run(mesh.view()).converged
    assert world.run(mesh.view()).applied == ()


def test_the_incarnation_is_the_boot_id_and_is_remembered():
    world = World()
    report = world.run(mesh.view())
    assert report.incarnation == mesh.node(1).boot_id == world.kernel.incarnation
    assert not report.renewed


def test_what_receives_is_installed_before_what_sends_and_pods_come_last():
    world = World()
    world.run(mesh.view())
    kinds = [
        type(operation).__name__ + (".in" if getattr(getattr(operation, "sa", None), "mark", None) else "")
        for operation in world.kernel.log
    ]
    first = {kind: kinds.index(kind) for kind in kinds}
    assert first["AddSa.in"] < first["SetPeer"] < first["SetPolicy"] < first["AddSa"] < first["SetPod"]
    out = next(
        i
        for i, op in enumerate(world.kernel.log)
        if isinstance(op, ops.SetPolicy) and op.policy.direction is Direction.OUT
    )
    assert first["AddSa"] < out < first["SetPod"]


def test_a_flush_of_all_sas_is_healed_with_a_new_incarnation():
    world = World()
    world.run(mesh.view())
    before = dict(world.kernel.sas)
    world.kernel.sas.clear()
    world.kernel.usage.clear()
    report = world.run(mesh.view())
    assert report.renewed
    assert report.converged
    assert world.kernel.incarnation == report.incarnation != mesh.node(1).boot_id
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
    report = reconcile(world.kernel, mesh.view(), Options(replay_window=64), lambda: world.now, world.fresh)
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
    assert not reconcile(world.kernel, mesh.view(), Options(), lambda: 0.0, world.fresh, forgotten=True).renewed
    before = {sa.key for sa in world.kernel.sas.values()}
    report = reconcile(world.kernel, mesh.view(), Options(), lambda: 0.0, world.fresh, forgotten=True)
    assert (report.renewed, report.converged) == (True, True)
    assert not before & {sa.key for sa in world.kernel.sas.values()}


def test_an_sa_that_the_kernel_refuses_is_reported_and_does_not_renew_the_incarnation_for_ever():
    world = World()
    world.kernel.refuse = lambda op: KernelError("add SA", "x", errno.ENOMEM) if isinstance(op, ops.AddSa) else None
    for _ in range(3):
        report = world.run(mesh.view())
        assert not report.converged
        assert report.failures
    assert world.born == 0
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
    assert (world.inbound(), world.outbound(), world.policy_spi()) == ({1, 2}, {1}, {1})
    for sa in list(world.kernel.usage):
        world.kernel.use(sa, world.now)
    world.run(rotating(peer=2, announced=2, announced_at=world.now))
    assert (world.inbound(), world.outbound(), world.policy_spi()) == ({1, 2}, {1, 2}, {2})
    world.now += 3
    world.run(rotating(peer=2, announced=2, announced_at=1000.0))
    assert (world.inbound(), world.outbound()) == ({1, 2}, {2})
    world.now += 30
    report = world.run(rotating(peer=2, announced=2, announced_at=1000.0))
    assert (world.inbound(), world.outbound()) == ({2}, {2})
    assert not report.plan.transition
    assert not report.renewed


def test_a_peer_that_announces_a_version_we_do_not_hold_is_sent_the_old_one():
    world = World()
    world.run(rotating(peer=2, announced=1, held=(1,)))
    assert (world.outbound(), world.policy_spi()) == ({1}, {1})


def test_a_peer_that_leaves_takes_all_its_objects_along():
    world = World()
    world.run(mesh.view())
    view = mesh.view()
    world.run(replace(view, peers=view.peers[:1], pods=view.pods[:2]))
    assert all(ip_address("10.10.0.3") not in (sa.src, sa.dst) for sa in world.kernel.sas.values())
    assert len(world.kernel.peers) == 2
    assert world.run(replace(view, peers=view.peers[:1], pods=view.pods[:2])).applied == ()


def test_a_restart_with_everything_in_place_changes_nothing():
    world = World()
    world.run(mesh.view())
    other = reconcile(world.kernel, mesh.view(), Options(), lambda: world.now, world.fresh)
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


@settings(max_examples=60, deadline=None)
@given(st.lists(views, min_size=1, max_size=4))
def test_applying_a_difference_makes_the_plan_true_from_any_state(sequence):
    world = World()
    for view in sequence:
        world.now += 100
        report = world.run(view)
        assert report.converged
        state = world.kernel.observe().state
        assert diff(state, state) == ()


@settings(max_examples=30, deadline=None)
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
        ops.Attach,
        ops.DeletePodDevice,
        *[ops.DeleteSource] * 2,
        ops.Detach,
    ]
    assert contract.REQID

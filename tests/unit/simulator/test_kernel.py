# SPDX-License-Identifier: Apache-2.0
"""The simulated kernel by itself: what a packet meets on its way, and what becomes of it when something is missing.

Whether these are the real kernel's rules, tests/esp/test_simulator_kernel.py says.
"""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kmesh_bpf import Key, Options, Settings, reconcile
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.state import Direction, Link, Mark, PodFlags, Policy, Program
from tests.simulator.kernel import NodeKernel
from tests.simulator.packets import Inner
from tests.unit.core import mesh

UPLINK, POD, OTHER_POD = 2, 3, 4
OUTSIDE = {4: ip_address("203.0.113.7"), 6: ip_address("2001:db8::7")}
SERVICE = ip_address("10.96.0.9")
VERSIONS = pytest.mark.parametrize("version", [4, 6])
NOW = 1000.0
STRICT = Settings()


def address(of, version=4):
    return next(one for one in of.addresses if one.version == version)


def links(index):
    return (
        Link(1, "lo", "", False, ()),
        Link(UPLINK, "eth0", "", False, mesh.node(index).addresses, leads_out=True),
        Link(POD, "pod0", "veth", True, (), far_addresses=mesh.pod(index).addresses),
        Link(OTHER_POD, "pod1", "veth", True, (), far_addresses=mesh.pod(index, 11).addresses),
    )


class Nodes:
    """Three, with what a plan calls for: one managed pod each, and one that is not."""

    def __init__(self, settings=STRICT, **changes):
        self.now = NOW
        self.kernels = {index: NodeKernel(links(index), lambda: self.now, settings) for index in (1, 2, 3)}
        self.ident = 0
        for index, kernel in self.kernels.items():
            view = mesh.view(index, traffic=True, services=(ip_network("10.96.0.0/24"),), **changes)
            options = Options(strict=settings.strict, replay_window=64)
            boot_id = mesh.node(index).boot_id
            assert reconcile(kernel, view, options, lambda: NOW, lambda fresh=boot_id: fresh).converged

    def __getitem__(self, index):
        return self.kernels[index]

    def inner(self, src, dst):
        self.ident += 1
        return Inner(src, dst, self.ident)

    def between(self, src=1, dst=2, version=4):
        """Give a packet from one managed pod to another."""
        return self.inner(address(mesh.pod(src), version), address(mesh.pod(dst), version))


@pytest.fixture
def nodes():
    return Nodes()


@VERSIONS
def test_a_packet_between_managed_pods_is_delivered_by_esp_once(nodes, version):
    inner = nodes.between(version=version)
    frame = nodes[1].send(inner).frame
    ends = address(mesh.node(1), version), address(mesh.node(2), version)
    assert ((frame.src, frame.dst), frame.spi, frame.sequence, frame.esn) == (ends, 1, 1, True)
    assert nodes[2].receive(frame).delivered == inner
    assert nodes[2].receive(frame).xfrm_error == "XfrmInStateSeqError"
    assert nodes[1].send(nodes.between(version=version)).frame.sequence == 2
    assert (nodes[1].numbers["marked"], nodes[2].numbers["esp_known_peer"], nodes[2].numbers["decrypted"]) == (2, 2, 1)
    assert nodes[2].xfrm_errors() == {"XfrmInStateSeqError": 1}


def test_use_is_counted_as_the_kernel_does(nodes):
    nodes.now = NOW + 7.9
    for _ in range(3):
        assert nodes[2].receive(nodes[1].send(nodes.between()).frame).delivered
    sent = next(usage for sa, usage in nodes[1].usage.items() if sa.dst == address(mesh.node(2)))
    taken = next(usage for sa, usage in nodes[2].usage.items() if sa.src == address(mesh.node(1)))
    for usage in (sent, taken):
        assert (usage.added, usage.last_used, usage.packets, usage.sequence) == (1000, 1007, 3, 3)


@VERSIONS
def test_pods_that_are_not_managed_and_the_world_talk_in_clear(nodes, version):
    plain = address(mesh.pod(1, 11), version)
    for dst in (OUTSIDE[version], address(mesh.pod(2, 11), version)):
        assert nodes[1].send(nodes.inner(plain, dst)).frame.spi is None
    inner = nodes.inner(plain, address(mesh.pod(2), version))
    assert nodes[2].receive(nodes[1].send(inner).frame).delivered == inner
    assert nodes[1].send(nodes.inner(plain, address(mesh.pod(1), version))).delivered


def test_without_policies_the_guard_holds_and_without_the_guard_it_is_in_clear(nodes):
    nodes[1].flush_policies()
    assert nodes[1].send(nodes.between()).counter == "dropped_by_guard"
    nodes[1].detach(UPLINK, Program.LEAK_GUARD)
    frame = nodes[1].send(nodes.between()).frame
    assert frame.spi is None
    assert nodes[2].receive(frame).counter == "dropped_clear_text"
    nodes[2].detach(UPLINK)
    assert nodes[2].receive(frame).counter == "dropped_clear_text", "the pod's own device has a guard too"
    nodes[2].detach(POD, Program.POD_GUARD)
    assert nodes[2].receive(frame).delivered


def test_permissive_programs_let_pass_what_no_ready_peer_could_take():
    nodes = Nodes(Settings(strict=False), keys={}, announced=0)
    frame = nodes[1].send(nodes.between()).frame
    assert frame.spi is None
    assert nodes[1].numbers["allowed_clear_text"] == 1
    assert nodes[2].receive(frame).delivered


def test_programs_keep_their_settings_until_others_take_their_place(nodes):
    nodes[2].load(Settings(strict=False))
    clear = replace(nodes[1].send(nodes.between()).frame, spi=None)
    clear = replace(clear, src=clear.inner.src, dst=clear.inner.dst)
    assert nodes[2].receive(clear).counter == "dropped_clear_text"
    for one in tuple(nodes[2].attachments):
        nodes[2].apply((ops.Attach(replace(one, current=True)),))
    assert nodes[2].receive(clear).delivered


def test_without_sas_nothing_is_sent_and_nothing_taken(nodes):
    frame = nodes[1].send(nodes.between()).frame
    nodes[1].flush_sas()
    nodes[2].flush_sas()
    assert nodes[1].send(nodes.between()).xfrm_error == "XfrmOutNoStates"
    assert nodes[2].receive(frame).xfrm_error == "XfrmInNoStates"


def test_a_peer_that_is_not_known_has_its_esp_marked_by_nobody(nodes):
    frame = nodes[1].send(nodes.between()).frame
    nodes[2].peers.clear()
    assert nodes[2].receive(frame).xfrm_error == "XfrmInNoStates"
    assert nodes[2].numbers["esp_unknown_peer"] == 1


def test_another_key_or_a_number_authenticated_otherwise_is_refused_and_counted(nodes):
    frame = nodes[1].send(nodes.between()).frame
    for wrong in (replace(frame, key=Key(bytes(36))), replace(frame, esn=False), replace(frame, sequence=1 << 32 | 7)):
        assert nodes[2].receive(wrong).xfrm_error == "XfrmInStateProtoError"
    usage = next(usage for sa, usage in nodes[2].usage.items() if sa.src == frame.src)
    assert (usage.integrity_failures, usage.packets) == (3, 0)
    assert nodes[2].receive(frame).delivered


def test_a_node_cannot_speak_for_pods_of_another_one(nodes):
    frame = nodes[1].send(nodes.between()).frame
    lie = replace(frame, inner=nodes.between(src=3))
    assert nodes[2].receive(lie).xfrm_error == "XfrmInTmplMismatch"
    stranger = replace(frame, sequence=2, inner=nodes.inner(OUTSIDE[4], frame.inner.dst))
    assert nodes[2].receive(stranger).xfrm_error == "XfrmInNoPols"


def test_a_pod_cannot_speak_for_another_one(nodes):
    assert nodes[1].send(nodes.between(), device=OTHER_POD).counter == "dropped_spoofed"
    assert nodes[1].send(nodes.between(src=3), device=OTHER_POD).counter == "dropped_spoofed"
    assert nodes[1].send(nodes.inner(address(mesh.pod(1, 11)), OUTSIDE[4]), device=POD).counter == "dropped_spoofed"


def test_what_is_blocked_is_dropped_by_xfrm(nodes):
    policy = next(
        one for one in nodes[1].policies.values() if one.direction is Direction.OUT and address(mesh.pod(2)) in one.dst
    )
    nodes[1].policies[policy.id] = replace(policy, block=True)
    assert nodes[1].send(nodes.between()).xfrm_error == "XfrmOutPolBlock"


def test_dnat_comes_ahead_of_everything_that_looks_at_the_destination(nodes):
    inner = nodes.inner(address(mesh.pod(1)), SERVICE)
    fate = nodes[1].send(inner, dnat=address(mesh.pod(2)))
    assert fate.frame.spi == 1
    assert nodes[2].receive(fate.frame).delivered == replace(inner, dst=address(mesh.pod(2)))
    assert nodes[1].send(nodes.inner(address(mesh.pod(1)), SERVICE), dnat=address(mesh.pod(2, 11))).frame.spi is None
    plain = nodes.inner(address(mesh.pod(1, 11)), SERVICE)
    assert nodes[1].send(plain, dnat=address(mesh.pod(2))).frame.spi is None


def test_a_masquerade_leaves_alone_what_is_encrypted_and_without_the_exemption_it_does_not(nodes):
    nodes[1].masquerades = True
    assert nodes[1].send(nodes.between()).frame.inner.src == address(mesh.pod(1))
    assert nodes[1].send(nodes.inner(address(mesh.pod(1)), OUTSIDE[4])).frame.src == address(mesh.node(1))
    nodes[1].apply((ops.RemoveNatExemption(),))
    frame = nodes[1].send(nodes.between()).frame
    assert (frame.spi, frame.inner.src) == (1, address(mesh.node(1)))
    other = nodes[1].send(nodes.between(), masquerade=address(mesh.pod(1, 11))).frame
    assert other.inner.src == address(mesh.pod(1, 11))


def test_what_a_node_itself_sends_to_managed_pods_is_encrypted(nodes):
    inner = nodes.inner(address(mesh.node(1)), address(mesh.pod(2)))
    frame = nodes[1].send_own(inner).frame
    assert frame.spi == 1
    assert nodes[2].receive(frame).delivered == inner
    assert nodes[1].send_own(nodes.inner(address(mesh.node(1)), address(mesh.node(2)))).frame.spi is None
    assert nodes[1].send_own(nodes.inner(address(mesh.node(1)), address(mesh.pod(1)))).delivered


def test_what_was_decrypted_goes_on_encrypted_or_not_at_all(nodes):
    frame = nodes[1].send(nodes.between()).frame
    onward = nodes[2].receive(replace(frame, inner=nodes.between(dst=3)))
    assert (onward.frame.spi, onward.frame.dst) == (1, address(mesh.node(3)))
    gone = replace(frame, sequence=2, inner=nodes.inner(address(mesh.pod(1)), OUTSIDE[4]))
    assert nodes[2].receive(gone).counter == "dropped_decrypted"


def test_an_answer_that_connection_tracking_knows_leaves_if_the_exemption_is_there(nodes):
    frame = nodes[1].send(nodes.between()).frame
    answer = replace(frame, inner=nodes.inner(address(mesh.pod(1)), address(mesh.node(2))))
    assert nodes[2].receive(answer, dnat=OUTSIDE[4], reply=True).frame.dst == OUTSIDE[4]
    assert nodes[2].receive(replace(answer, sequence=2), dnat=OUTSIDE[4]).counter == "dropped_decrypted"
    nodes[2].nat_exemption = False
    assert nodes[2].receive(replace(answer, sequence=3), dnat=OUTSIDE[4], reply=True).counter == "dropped_decrypted"


@pytest.mark.parametrize(
    ("theirs", "after"),
    [("10.244.2.10/32", "near"), ("10.244.2.0/24", "far")],
    ids=["of one chain keeps its place", "of two chains is the younger one"],
)
def test_of_two_policies_the_lower_priority_counts_then_the_older_one_and_one_written_again(nodes, theirs, after):
    kernel = nodes[1]
    kernel.flush_policies()
    near = Policy(
        Direction.OUT,
        ip_network("10.0.0.0/8"),
        ip_network("10.244.2.10/32"),
        Mark(0, 0),
        address(mesh.node(1)),
        address(mesh.node(2)),
    )
    far = replace(near, src=ip_network("8.0.0.0/6"), dst=ip_network(theirs), tunnel_dst=address(mesh.node(3)))
    ends = {"near": near.tunnel_dst, "far": far.tunnel_dst}

    def chosen():
        return kernel.send(nodes.between()).frame.dst

    kernel.apply((ops.SetPolicy(near), ops.SetPolicy(far)))
    assert chosen() == ends["near"]
    kernel.apply((ops.SetPolicy(near, replace=True),))
    assert chosen() == ends[after]
    kernel.apply((ops.SetPolicy(replace(far, priority=99), replace=True),))
    assert chosen() == ends["far"]
    kernel.apply((ops.SetPolicy(replace(near, priority=99), replace=True),))
    assert chosen() == ends["far"]


def test_the_newest_sa_sends_and_a_template_with_an_spi_keeps_to_that(nodes):
    kernel = nodes[1]
    old = next(sa for sa in kernel.sas.values() if sa.dst == address(mesh.node(2)))
    nodes.now = NOW + 1
    kernel.apply((ops.AddSa(replace(old, spi=2)),))
    assert kernel.send(nodes.between()).frame.spi == 2
    pinned = [replace(one, spi=1) for one in kernel.policies.values() if one.tunnel_dst == old.dst]
    kernel.apply([ops.SetPolicy(one, replace=True) for one in pinned])
    assert kernel.send(nodes.between()).frame.spi == 1
    kernel.delete_sa(old.id)
    assert kernel.send(nodes.between()).xfrm_error == "XfrmOutNoStates"


def test_a_device_that_goes_takes_its_programs_and_its_address_along(nodes):
    kernel = nodes[2]
    frame = nodes[1].send(nodes.between()).frame
    device = next(one for one in kernel.links if one.ifindex == POD)
    kernel.link_gone(POD)
    assert not [one for one in kernel.attachments if one.ifindex == POD]
    assert kernel.receive(frame).counter == "dropped_decrypted", "it would leave by the default route"
    assert kernel.send(nodes.between(2, 1)).why == "no device of the node leads to 10.244.2.10"
    kernel.link_comes(replace(device, ifindex=9))
    assert kernel.receive(nodes[1].send(nodes.between()).frame).delivered
    assert kernel.send(nodes.between(2, 1)).counter == "dropped_by_guard", "no program marks it yet"


def test_lost_pins_and_a_reboot_leave_nothing_that_was_pinned(nodes):
    kernel = nodes[1]
    kernel.lose_pins()
    state = kernel.observe().state
    assert not (state.pods or state.peers or state.sources or state.attachments or state.formers)
    assert (kernel.incarnation(), bool(state.sas), bool(state.policies)) == (None, True, True)
    assert kernel.send(nodes.between()).frame.spi is None, "policies select by the mark, which nobody sets"
    kernel.reboot()
    state = kernel.observe().state
    assert not (state.sas or state.policies or state.nat_exemption)
    assert set(kernel.counters().values()) == {0}


def test_flags_are_what_the_programs_go_by_at_that_moment(nodes):
    nodes[2].pods[address(mesh.pod(1))] = PodFlags.CANDIDATE
    frame = nodes[1].send(nodes.between()).frame
    clear = replace(frame, spi=None, src=frame.inner.src, dst=frame.inner.dst)
    assert nodes[2].receive(clear).delivered

# SPDX-License-Identifier: Apache-2.0
"""Which SAs there are in the course of things: replacements, restarts without a key, peers that say this and then that."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.operations import DeletePolicy, DeleteSa, ReplaceSa, SetPolicy
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Direction, KernelState, Mark, Policy, SaUsage
from kmesh_bpf.errors import KernelError
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import Reconciler, reconcile
from tests.unit.amount import examples
from tests.unit.core import mesh

L, R = ip_address("10.10.0.1"), ip_address("10.10.0.2")


class Node:
    """A node with one peer, its kernel, and a clock; what it knows and is told changes by attributes."""

    def __init__(self):
        self.now = 1000.0
        self.kernel = FakeKernel(mesh.LINKS, lambda: self.now)
        self.held, self.announced, self.peer, self.window = (1,), 1, 1, mesh.WINDOW
        self.sends = 0
        self.options = Options()

    def run(self, seconds=0.0):
        self.now += seconds
        base = mesh.view(nodes=2)
        view = replace(
            base,
            keys={version: mesh.key(version) for version in self.held},
            peers=(replace(base.peers[0], spi=self.peer, replay_window=self.window, sends=self.sends),),
            announced=self.announced,
        )
        self.view = view
        return reconcile(self.kernel, view, self.options, lambda: self.now, lambda: f"{self.now}".ljust(36, "0"))

    def use(self, *, inbound=(), outbound=()):
        """Let packets come and go now, with these versions."""
        for identity in self.kernel.sas:
            if identity.spi in (outbound if identity.mark is None else inbound):
                self.kernel.use(identity, self.now)

    def outbound(self):
        return sorted(one.spi for one in self.kernel.sas if one.dst == R)

    def inbound(self):
        return sorted(one.spi for one in self.kernel.sas if one.src == R)

    def entry(self):
        return self.kernel.peers[R]


@pytest.fixture
def node():
    made = Node()
    made.run()
    return made


def replaced(node):
    """Replace the key on both nodes; the old inbound SA is still in use."""
    node.held = (1, 2)
    node.run(100)
    node.peer = node.announced = 2
    node.use(inbound=(1,))
    node.run()
    assert (node.outbound(), node.inbound()) == ([2], [1, 2])
    return node


def test_a_second_outbound_sa_waits_for_the_next_second(node):
    node.held, node.peer = (1, 2), 2
    report = node.run()
    assert (node.outbound(), report.plan.due is not None, report.converged) == ([1], True, True)
    report = node.run(0.9)
    assert (node.outbound(), report.plan.due is not None) == ([1], True)
    node.run(0.1)
    assert 2 in node.outbound()
    assert node.entry().spi == 2


def test_an_old_outbound_sa_goes_when_the_new_one_is_there_and_it_is_idle_and_no_earlier(node):
    node.held, node.peer = (1, 2), 2
    node.now += 100
    node.use(outbound=(1,))
    node.run()
    assert node.outbound() == [1, 2]
    node.use(outbound=(1,))
    node.run(1.5)
    assert node.outbound() == [1, 2]
    node.run(0.5)
    assert node.outbound() == [2]


def test_an_old_outbound_sa_stays_however_idle_while_the_kernel_refuses_the_new_one(node):
    node.held, node.peer = (1, 2), 2
    node.kernel.refuse = lambda op: KernelError("add SA", "x", 12) if type(op).__name__ == "AddSa" else None
    for _ in range(3):
        report = node.run(100)
        assert report.reachable == {"n2"}
        assert (node.outbound(), node.entry().spi, report.renewed) == ([1], 1, False)


def test_a_key_that_is_not_known_any_more_goes_on_as_long_as_it_is_needed_and_no_sa_is_lost(node):
    """The Secret lost the previous key (upstream's CLI writes none), and the daemon started again in the middle."""
    before = dict(node.kernel.sas)
    node.held = (2,)
    report = node.run(100)
    assert not report.renewed
    assert before.items() <= node.kernel.sas.items(), "sent with and accepted, until the peer has moved"
    assert (node.outbound(), node.inbound(), report.reachable) == ([1], [1, 2], {"n2"})
    node.peer = node.announced = 2
    node.use(inbound=(1,), outbound=(1,))
    node.run()
    assert (node.outbound(), node.inbound()) == ([1, 2], [1, 2])
    node.run(5)
    assert (node.outbound(), node.inbound()) == ([2], [1, 2])
    report = node.run(10)
    assert (node.outbound(), node.inbound(), report.renewed) == ([2], [2], False)


def test_without_any_key_everything_stays(node):
    before = dict(node.kernel.sas)
    node.held = ()
    report = node.run(100)
    assert (dict(node.kernel.sas), report.reachable, report.renewed) == (before, {"n2"}, False)


def test_a_peer_that_announces_less_than_it_did_is_sent_the_same_as_before(node):
    replaced(node).run(5)
    assert node.outbound() == [2]
    for spi in (1, 0):
        node.peer = spi
        report = node.run(100)
        assert (node.outbound(), node.entry().spi, report.reachable, report.renewed) == ([2], 2, {"n2"}, False)


def test_a_version_that_was_sent_with_and_is_gone_with_its_key_ends_the_incarnation(node):
    node.held = (2,)
    node.run(100)
    for identity in [one for one in node.kernel.sas if one.spi == 1]:
        node.kernel.sas.pop(identity)
        node.kernel.usage.pop(identity)
    assert node.run().renewed
    assert 1 not in node.outbound()


def test_a_retired_version_is_never_accepted_again_whatever_is_announced(node):
    replaced(node)
    assert node.entry().retired == 0
    report = node.run(100)
    assert (node.inbound(), node.entry().retired) == ([2], 1)
    kinds = [type(op).__name__ for op in report.applied]
    assert kinds.index("SetPeer") < kinds.index("DeleteSa"), "remembered before it goes"
    node.peer = 1
    node.run(1)
    node.announced = 1
    node.run(1)
    assert (node.inbound(), node.entry().retired) == ([2], 1)


def test_what_a_peer_that_tells_may_still_send_with_is_accepted_until_it_tells_otherwise_or_is_heard(node):
    node.sends = 1
    replaced(node)
    for seconds in (100, 5000):
        report = node.run(seconds)
        assert (node.inbound(), node.entry().retired) == ([1, 2], 0)
    assert report.plan.due == 1100 + node.options.retirement.silence
    node.sends = 2
    node.run(1)
    assert (node.inbound(), node.entry().retired) == ([2], 1)


def test_a_packet_over_the_newer_sa_tells_as_well(node):
    node.sends = 1
    replaced(node).run(100)
    node.use(inbound=(2,))
    node.run(1)
    assert (node.inbound(), node.entry().retired) == ([2], 1)


def test_who_remembers_asks_how_an_old_sa_was_used_when_it_may_go_and_no_earlier(node):
    node.sends = 1
    replaced(node)
    asked = []
    find = node.kernel.find
    node.kernel.find = lambda keys: asked.extend(one.spi for one in keys.sas) or find(keys)
    passes = Reconciler(node.kernel, node.options, lambda: node.now, lambda: "x" * 36)
    passes.run(node.view)
    for _ in range(5):
        node.now += 60
        passes.run(node.view)
    assert asked == []
    node.now += node.options.retirement.silence
    assert passes.run(node.view).plan.due is None
    assert asked[0] == 1
    assert node.inbound() == [2]


def test_what_was_retired_counts_for_the_present_incarnations_only(node):
    replaced(node).run(100)
    node.kernel.peers = {
        address: replace(entry, incarnations=7, retired=5) for address, entry in node.kernel.peers.items()
    }
    node.run(1)
    assert node.entry().retired == 1


def test_a_version_is_not_told_to_be_in_use_while_another_sa_stands_in_the_place_of_one_of_its_own(node):
    """The kernel refuses to replace it, so what it holds under this identity is not what was planned."""
    node.held = (1, 2)
    node.run(100)
    (mine,) = (one for one in node.kernel.sas.values() if one.src == R and one.spi == 2)
    node.kernel.sas[mine.id] = replace(mine, key=mesh.key(9))
    node.kernel.refuse = lambda op: KernelError("add SA", "x", 12) if isinstance(op, ReplaceSa) else None
    node.peer = 2
    for _ in range(3):
        node.run(2)
    assert node.outbound() == [1], "nor is it sent with, for the kernel would at once, and nothing would tell of it"
    assert node.entry().spi == 1
    node.kernel.refuse = lambda _: None
    node.run(2)
    node.run(2)
    assert node.entry().spi == 2


@pytest.mark.parametrize("busy", [0, 1], ids=["IPv4", "IPv6"])
def test_of_a_peer_s_two_tunnels_the_one_in_use_keeps_its_old_sa_and_the_idle_one_does_not(node, busy):
    replaced(node)
    ends = mesh.node(2).addresses
    for _ in range(4):
        node.now += 5
        node.kernel.use(next(one for one in node.kernel.sas if one.src == ends[busy] and one.spi == 1), node.now)
        node.run()
    left = [sorted(one.spi for one in node.kernel.sas if one.src == end) for end in ends]
    assert (left[busy], left[1 - busy]) == ([1, 2], [2])


def test_an_inbound_sa_under_another_mark_is_of_a_former_incarnation_and_does_not_stay(node):
    """Between the same addresses: what tells whose it is, and how it was used, is address and mark together."""
    (mine,) = (one for one in node.kernel.sas.values() if one.src == R)
    other = replace(mine, spi=7, key=mesh.key(9), mark=replace(mine.mark, value=mine.mark.value ^ 0x300000))
    node.kernel.sas[other.id], node.kernel.usage[other.id] = other, SaUsage(int(node.now), int(node.now), 1, 1)
    node.run()
    assert node.inbound() == [1]


def test_a_peer_that_toggles_its_window_changes_nothing_until_the_next_key(node):
    before = dict(node.kernel.sas)
    for window in (0, 4096, 0):
        node.window = window
        report = node.run(10)
        assert (dict(node.kernel.sas), report.renewed, report.applied) == (before, False, ())
    node.held = (1, 2)
    node.run(10)
    assert {(one.spi, sa.replay_window) for one, sa in node.kernel.sas.items()} == {(1, 4096), (2, 0)}


def test_a_peer_that_begins_to_announce_a_window_changes_nothing_where_others_have_one_or_announce_none():
    for third in (0, 4096):
        kernel = FakeKernel(mesh.LINKS)
        two, three = mesh.view().peers
        for window in (0, 4096, 0, 4096):
            peers = (replace(two, replay_window=window), replace(three, replay_window=third))
            report = reconcile(kernel, mesh.view(peers=peers), Options(), lambda: 1000.0, lambda: "x" * 36)
            assert (report.converged, report.renewed) == (True, False)
            assert {sa.replay_window for one, sa in kernel.sas.items() if R in (one.src, one.dst)} == {0}


def test_an_sa_is_never_made_again_with_the_same_key(node):
    node.options = Options(replay_window=64)
    made = next(sa for sa in node.kernel.sas.values() if sa.dst == R)
    wanted = KernelState(sas={made.id: replace(made, replay_window=64)})
    assert not [op for op in diff(wanted, node.kernel.observe().state) if isinstance(op, ReplaceSa)]


@pytest.mark.parametrize(("before", "after"), [(4096, 64), (4096, 0), (0, 4096), (64, 128)])
def test_another_window_of_this_node_s_own_means_another_incarnation(before, after):
    node = Node()
    node.options = Options(replay_window=before)
    node.run()
    assert not node.run(1).renewed
    node.options = Options(replay_window=after)
    report = node.run(1)
    assert (report.renewed, report.converged) == (True, True)
    assert {sa.replay_window for sa in node.kernel.sas.values()} == {after}


def test_what_a_former_version_left_is_replaced_without_an_sa_going_that_its_policies_point_to(node):
    cidrs = ip_network("10.244.1.0/24"), ip_network("10.244.2.0/24")
    former = [
        Policy(Direction.OUT, *cidrs, Mark(0xE0, 0xFF), L, R, spi=1),
        Policy(Direction.FWD, *cidrs[::-1], Mark(0xD0, 0xFF), R, L),
        Policy(Direction.IN, *cidrs[::-1], Mark(0xD0, 0xFF), R, L),
    ]
    node.kernel.policies |= {policy.id: policy for policy in former}
    node.held, node.peer = (1, 2), 2
    report = node.run(100)
    kinds = [type(op) for op in report.applied]
    assert (report.converged, report.renewed) == (True, False)
    assert [op.policy for op in report.applied if isinstance(op, DeletePolicy)] == former
    assert SetPolicy not in kinds, "the new ones are in place"
    assert max(i for i, kind in enumerate(kinds) if kind is DeletePolicy) < kinds.index(DeleteSa)
    assert node.outbound() == [2]


STEPS = st.lists(
    st.tuples(
        st.sets(st.integers(1, 3)).map(tuple),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from((0.0, 0.4, 1.0, 3.0, 30.0)),
        st.sets(st.integers(1, 3)),
        st.sampled_from((0, 4096)),
    ),
    max_size=8,
)


@examples(150)
@given(STEPS)
def test_through_any_history_the_newest_outbound_sa_is_one_of_the_highest_version_and_nothing_retired_returns(steps):
    node = Node()
    node.run()
    incarnation, sent, retired = None, 0, 0
    for held, node.peer, node.announced, seconds, used, node.window in steps:
        node.held = held
        node.use(inbound=used, outbound=used)
        before = set(node.inbound())
        report = node.run(seconds)
        if report.incarnation != incarnation:
            incarnation, sent, retired, before = report.incarnation, 0, 0, set(node.inbound())
        assert report.converged
        outbound = {one.spi: node.kernel.usage[one].added for one in node.kernel.sas if one.dst == R}
        newest = max(outbound.values(), default=0)
        assert sum(1 for added in outbound.values() if added == newest) <= 1, "the kernel's choice is plain"
        using = next((spi for spi, added in outbound.items() if added == newest), 0)
        assert using == max(outbound, default=0)
        assert using >= sent
        sent = using
        entry = node.kernel.peers[R]
        assert entry.retired >= retired
        assert entry.spi <= max(using, sent)
        retired = entry.retired
        made = set(node.inbound()) - before
        assert not {spi for spi in made if spi <= retired}

# SPDX-License-Identifier: Apache-2.0
"""An SA that is used from the moment it is there is told of before: whenever the daemon is killed, and whatever goes then."""

import errno
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.incarnation import Memory
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Direction
from kmesh_bpf.errors import KernelError, MapFullError
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import reconcile
from tests.unit.core import mesh

L, R = ip_address("10.10.0.1"), ip_address("10.10.0.2")


class KilledError(Exception):
    pass


class Kernel(FakeKernel):
    """Each packet that may go goes: ``used`` are the keys of SAs that a policy has led to while they were there."""

    def __init__(self, clock):
        super().__init__(mesh.LINKS, clock)
        self.used, self.left, self.halfway = set(), None, False
        self.refuse = lambda _: self.step()
        self.between = lambda: self.step(halfway=True)

    def step(self, *, halfway=False):
        self.use_all()
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.halfway = halfway
                raise KilledError

    def outbound(self):
        return [sa for sa in self.sas.values() if sa.mark is None]

    def use_all(self):
        out = [one for one in self.policies.values() if one.direction is Direction.OUT and not one.block]
        led = {(one.tunnel_src, one.tunnel_dst) for one in out}
        self.used |= {sa.key for sa in self.outbound() if (sa.src, sa.dst) in led}

    def _add_sa(self, sa):
        super()._add_sa(sa)
        assert sa.key not in self.used, f"SPI {sa.spi} to {sa.dst} begins anew under a key that was used"


class Node:
    def __init__(self):
        self.now, self.born = 1000.0, 0
        self.kernel = Kernel(lambda: self.now)

    def run(self, view, seconds=2.0):
        self.now += seconds
        report = reconcile(self.kernel, view, Options(), lambda: self.now, self.fresh, memory=Memory())
        self.kernel.use_all()
        return report

    def fresh(self):
        self.born += 1
        return f"fresh-{self.born}".ljust(36, "0")


def rebooted(view):
    return replace(view, peers=(replace(view.peers[0], node=mesh.node(2, boot="again")), *view.peers[1:]))


def flushed(node):
    node.kernel.policies.clear()


def robbed(node):
    node.kernel.sas.clear()
    node.kernel.usage.clear()


def nothing(node):
    pass


NEWER = mesh.view(spi=2, announced=1)
"""Peers hold another key, and so do we; we have not announced it yet, as nothing receives with it."""
BEFORE = {
    "a new key": (nothing, NEWER),
    "a new key, and a peer that boots": (nothing, rebooted(NEWER)),
    "a peer boots": (nothing, rebooted(mesh.view())),
    "a new key, without policies": (flushed, NEWER),
    "another incarnation": (robbed, mesh.view()),
}


@pytest.mark.parametrize("gone", ["what sends", "what sends with the newest", "nothing"])
@pytest.mark.parametrize("what", BEFORE)
def test_no_key_is_used_anew_whenever_the_daemon_is_killed_and_whichever_sas_go_then(what, gone):
    others, view = BEFORE[what]
    for after in range(200):
        node = Node()
        node.run(mesh.view())
        others(node)
        node.kernel.left = after
        try:
            node.run(view)
        except KilledError:
            node.kernel.use_all()
        else:
            assert after > 10
            break
        node.kernel.left = None
        for sa in node.kernel.outbound():
            if gone == "what sends" or (gone != "nothing" and sa.spi == max(view.keys)):
                node.kernel.sas.pop(sa.id)
                node.kernel.usage.pop(sa.id)
        halfway, born = node.kernel.halfway, node.kernel.remembered
        report = node.run(view)
        if gone == "nothing" and not halfway and view is NEWER:
            assert node.kernel.remembered == born, "what is all there costs nobody a change of keys"
        assert node.run(view).converged, report.drift
    else:
        pytest.fail("it never came to an end")


def test_killed_between_the_two_writes_it_becomes_another_once():
    node = Node()
    node.run(mesh.view())

    def die():
        raise KilledError

    node.kernel.between = die
    with pytest.raises(KilledError):
        node.run(NEWER)
    node.kernel.between = lambda: None
    assert node.kernel.peers[R].spi == 2
    assert node.run(NEWER).renewed
    assert not node.run(NEWER).renewed


@pytest.mark.parametrize("kind", [ops.AddSa, ops.SetPeer])
def test_of_an_sa_that_the_kernel_refuses_nothing_is_told_however_often_it_does(kind):
    node = Node()
    node.run(mesh.view())

    def refuse(operation):
        if kind is ops.AddSa:
            return KernelError("add SA", "x", errno.ENOMEM) if isinstance(operation, kind) and told(operation) else None
        return MapFullError("update", "x", "kmesh_peers4", 1) if isinstance(operation, kind) else None

    node.kernel.refuse = refuse
    for _ in range(3):
        report = node.run(NEWER)
        assert (report.converged, report.renewed) == (kind is ops.SetPeer, False)
    node.kernel.refuse = lambda _: None
    report = node.run(NEWER)
    assert (report.converged, report.renewed, node.kernel.peers[R].spi) == (True, False, 2)


def told(operation):
    return operation.told is not None


def test_what_sends_waits_for_what_receives_where_it_is_used_at_once():
    node = Node()
    node.run(mesh.view())
    node.kernel.refuse = lambda one: (
        KernelError("add SA", "x", errno.ENOMEM) if isinstance(one, ops.AddSa) and one.sa.mark else None
    )
    report = node.run(NEWER)
    assert not report.converged
    assert {sa.spi for sa in node.kernel.outbound()} == {1}
    assert node.kernel.peers[R].spi == 1
    assert not node.run(NEWER).renewed


def test_the_entry_stands_before_the_sa_and_as_it_was_where_that_is_in_the_way():
    node = Node()
    node.run(mesh.view())
    node.kernel.foreign_sas.add((R, 2))
    seen = []
    node.kernel.between = lambda: seen.append(node.kernel.peers[R].spi)
    report = node.run(NEWER)
    assert 2 in seen
    assert (node.kernel.peers[R].spi, report.renewed) == (1, False)
    assert {failure.operation.sa.dst for failure in report.failures} == {R}


def test_both_writes_are_in_the_command_line():
    node = Node()
    node.run(mesh.view())
    both = [one for one in node.run(NEWER).applied if isinstance(one, ops.AddSa) and told(one)]
    assert len(both) == 4, "two peers, two families"
    for one in both:
        first, second = node.kernel.render(one).split(" && ")
        assert first.startswith("bpftool map update")
        assert second.startswith("ip xfrm state add")

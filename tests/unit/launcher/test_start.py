# SPDX-License-Identifier: Apache-2.0
"""A daemon that starts anew: what it does before the cluster is known."""

import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest
from kmesh.errors import ClusterError

from kmesh_bpf import KernelError
from kmesh_bpf.core.mirror import Keys
from tests.unit.core import mesh
from tests.unit.launcher.standin import Node


class Start:
    """A daemon that is started again after its node was ready; the API server is away for so many reads."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, away: int, *problems: str) -> None:
        self.node, self.reads, self.attached, self.passes = node, 0, [], []
        node.key(1)
        node.steps()
        node.restart()
        read, attach, step = node.source.read, node.memory.attach_missing, node.daemon.step

        def reading():
            self.reads += 1
            whole = self.reads > away
            return replace(read(), complete=whole, problems=() if whole else problems)

        def attaching(addresses, uplinks):
            self.attached.append((self.reads, frozenset(addresses)))
            return attach(addresses, uplinks)

        def stepping() -> float:
            self.passes.append(self.reads)
            try:
                return step()
            finally:
                if len(self.passes) == 2:
                    node.daemon.stop()

        monkeypatch.setattr(node.source, "read", reading)
        monkeypatch.setattr(node.source, "changed", lambda: True)
        monkeypatch.setattr(node.memory, "attach_missing", attaching)
        monkeypatch.setattr(node.memory, "subscribe", lambda: ())
        monkeypatch.setattr(node.daemon, "step", stepping)
        monkeypatch.setattr("kmesh.launcher.daemon.FIRST_RETRY", 0.01)

    def run(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.node.daemon.run(theirs)


OWN = frozenset(map(ip_address, ("10.10.0.1", "fd00:10::1")))


def test_devices_that_came_while_no_daemon_ran_get_their_programs_though_the_cluster_is_away(node, monkeypatch):
    start = Start(node, monkeypatch, 99, "no answer")
    node.memory.links = (*node.memory.links, replace(mesh.LINKS[2], ifindex=9, name="late", far_addresses=()))
    start.run()
    assert start.attached[0] == (0, OWN)
    assert any(one.ifindex == 9 for one in node.memory.attachments)
    status, reasons = node.ready()
    assert (status, "the cluster is not known yet: no answer" in reasons[0]) == (503, True)


def test_and_so_do_those_that_come_while_it_is_waited_for(node, monkeypatch):
    start = Start(node, monkeypatch, 5)
    monkeypatch.setattr(node.memory, "changed", lambda: Keys(rest=start.reads == 3))
    start.run()
    assert [reads for reads, _ in start.attached[:2]] == [0, 3]
    assert {addresses for _, addresses in start.attached} == {OWN}
    assert start.passes[0] == 6, "the first pass comes when all is known"
    assert node.daemon.memory.announced == 1


def test_a_start_without_a_daemon_before_waits_all_the_same_and_attaches_nothing(node, monkeypatch):
    start = Start(node, monkeypatch, 2)
    node.memory.pods.clear()
    start.run()
    assert start.attached == []
    assert start.passes[0] == 3


@pytest.mark.parametrize("failure", [KernelError("dump", "it", 12), MemoryError(), ClusterError("x")])
def test_what_fails_there_is_told_by_the_first_pass(node, monkeypatch, failure):
    start = Start(node, monkeypatch, 0)
    observe, failures = node.memory.observe, [failure]

    def failing():
        if failures:
            raise failures.pop()
        return observe()

    monkeypatch.setattr(node.memory, "observe", failing)
    start.run()
    assert len(start.passes) == 2
    assert node.daemon.memory.announced == 1


def test_the_kernel_is_observed_once_for_the_start_and_the_first_pass(node, monkeypatch):
    start, observed = Start(node, monkeypatch, 0), []
    observe = node.memory.observe
    monkeypatch.setattr(node.memory, "observe", lambda: observed.append(start.reads) or observe())
    monkeypatch.setattr(node.memory, "changed", Keys)
    start.run()
    assert observed == [0]

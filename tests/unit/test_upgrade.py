# SPDX-License-Identifier: Apache-2.0
"""An upgrade from contract version 1, whose maps and SAs are taken over: nothing is made again, nothing accepted twice.

What version 1 has left is written down here as its planner made it, not by today's.
"""

import hashlib
from dataclasses import replace

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core import keys, marks
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.formers import DEPARTED_LINGER
from kmesh_bpf.core.incarnation import Announcement, Cause, Memory
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Direction, Mark, PeerEntry, PodFlags, Policy, Sa, SaUsage
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import Report, reconcile
from tests.unit.core import mesh

X = "x" * 36
VIEW = mesh.view(spi=2, node=replace(mesh.node(1), boot_id=X))
SHOWN = Announcement(X, tuple(map(str, VIEW.node.addresses)), "uid")
IDS = {"n2": 7, "n3": 3}
MASK = contract.NODE_MARK_MASK


class Node:
    """This node's kernel as version 1 has left it, the clock, and what a daemon keeps."""

    def __init__(self) -> None:
        self.now, self.memory, self.born = 5000.0, Memory(), 0
        self.kernel = FakeKernel(mesh.LINKS, lambda: self.now)
        self.kernel.remembered = X
        self.kernel.pods = {address: PodFlags.REMOTE for pod in VIEW.pods[1:] for address in pod.addresses}
        for peer in VIEW.peers:
            self.know(peer.node)

    def know(self, peer) -> None:
        text = "\0".join(("n1", X, peer.name, peer.boot_id, *map(str, peer.addresses)))
        fingerprint = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        node_mark = marks.node_mark(IDS[peer.name], MASK)
        for here, there, ours, theirs in zip(
            VIEW.node.addresses, peer.addresses, VIEW.node.pod_cidrs, peer.pod_cidrs, strict=True
        ):
            self.kernel.peers[there] = PeerEntry(IDS[peer.name], node_mark, 2, fingerprint)
            mark = Mark(node_mark | 0xD0, MASK | 0xFF)
            for spi in (1, 2):
                key = keys.derive(mesh.key(spi), there, here, peer.boot_id, X)
                self.add(Sa(there, here, spi, key, mark, Mark(0xD0, 0xFFFFFFFF), mesh.WINDOW, any_family=True))
            key = keys.derive(mesh.key(2), here, there, X, peer.boot_id)
            self.add(Sa(here, there, 2, key, replay_window=mesh.WINDOW, any_family=True))
            out = Policy(Direction.OUT, ours, theirs, Mark(0xE0, 0xFF), here, there, spi=2)
            self.kernel.policies[out.id] = out

    def add(self, sa: Sa) -> None:
        self.kernel.sas[sa.id] = sa
        self.kernel.usage[sa.id] = SaUsage(1000, 4999, 77, 7700)

    def run(self, view=VIEW) -> Report:
        known = {"shown": replace(SHOWN, boot_id=self.kernel.remembered), "memory": self.memory}
        report = reconcile(self.kernel, view, Options(), lambda: self.now, self.fresh, **known)
        self.memory = report.memory.announced(recreated=False)
        return report

    def fresh(self) -> str:
        self.born += 1
        return f"fresh-{self.born}".ljust(36, "0")

    def made(self):
        return [operation for operation in self.kernel.log if isinstance(operation, ops.AddSa | ops.ReplaceSa)]


def without(name: str, view=VIEW):
    return replace(
        view,
        peers=tuple(peer for peer in view.peers if peer.node.name != name),
        pods=tuple(pod for pod in view.pods if pod.node != name),
    )


def test_node_ids_sas_and_what_is_remembered_stay_and_nobody_becomes_another():
    node = Node()
    before, sas = dict(node.kernel.peers), dict(node.kernel.sas)
    report = node.run()
    assert (report.decision.cause, report.plan.lost, report.plan.returned) == (Cause.KEPT, (), frozenset())
    assert (report.converged, report.plan.ready_peers, node.kernel.formers) == (True, {"n2", "n3"}, {})
    assert (node.made(), node.kernel.sas) == ([], sas)
    # Only what version 1 did not keep is filled in.
    assert {address: replace(entry, pair=0) for address, entry in node.kernel.peers.items()} == before
    assert {address: entry.pair for address, entry in node.kernel.peers.items()} == {
        there: keys.pair(here, there, X, peer.node.boot_id)
        for peer in VIEW.peers
        for here, there in zip(VIEW.node.addresses, peer.node.addresses, strict=True)
    }
    assert node.run().applied == ()


def test_a_peer_that_is_away_while_we_are_upgraded_and_soon_back_is_as_it_was():
    node = Node()
    node.run(without("n3"))
    node.now += DEPARTED_LINGER - 1
    report = node.run()
    assert (report.decision.cause, node.made(), node.kernel.formers) == (Cause.KEPT, [], {})
    assert all(entry.pair for entry in node.kernel.peers.values())


def gone_for_good() -> Node:
    node = Node()
    node.run(without("n3"))
    node.now += DEPARTED_LINGER
    node.run(without("n3"))
    assert node.kernel.formers == {marks.UNKNOWN_PAIR: 2}
    assert node.made() == []
    assert node.run(without("n3")).applied == (), "who is there goes on as before"
    return node


FOURTH = mesh.view(nodes=4, spi=2, node=VIEW.node)


@pytest.mark.parametrize("back", [VIEW, FOURTH, without("n3", FOURTH)], ids=["who went", "it and another", "another"])
def test_whoever_comes_after_one_went_whose_pair_is_unknown_finds_us_another_once(back):
    node = gone_for_good()
    used = {sa.key for sa in Node().kernel.sas.values()}
    report = node.run(back)
    assert (report.decision.cause, report.converged, report.plan.returned) == (Cause.RETURNED, True, frozenset())
    assert report.plan.ready_peers == {peer.node.name for peer in back.peers}
    assert node.kernel.formers == {}
    assert used.isdisjoint(sa.key for sa in node.kernel.sas.values())
    assert node.run(FOURTH).decision.cause is Cause.KEPT


def test_who_has_rebooted_meanwhile_gets_new_keys_and_no_old_one_is_used_again():
    node = Node()
    used = {sa.key for sa in node.kernel.sas.values()}
    rebooted = replace(VIEW.peers[1], node=mesh.node(3, boot="another"))
    report = node.run(replace(VIEW, peers=(VIEW.peers[0], rebooted)))
    assert (report.decision.cause, report.converged) == (Cause.RETURNED, True)
    assert report.plan.ready_peers == {"n2", "n3"}
    added = {one.sa.key for one in node.kernel.log if isinstance(one, ops.AddSa)}
    added |= {one.new.key for one in node.kernel.log if isinstance(one, ops.ReplaceSa)}
    assert added
    assert added.isdisjoint(used)


def test_a_newer_key_lets_another_one_in_without_our_becoming_another():
    node = gone_for_good()
    newer = without("n3", mesh.view(nodes=4, spi=3, node=VIEW.node))
    node.run(replace(without("n3"), keys=newer.keys))
    report = node.run(newer)
    assert (report.decision.cause, report.converged, report.plan.ready_peers) == (Cause.KEPT, True, {"n2", "n4"})
    fourth = newer.peers[-1].node.addresses
    assert {sa.spi for sa in node.kernel.sas.values() if sa.src in fourth or sa.dst in fourth} == {3}

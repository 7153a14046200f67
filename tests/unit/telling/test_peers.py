# SPDX-License-Identifier: Apache-2.0
"""What there is to tell of each peer: remembered from pass to pass, it is what one finds who looks for the first time."""

import sys
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kmesh.cluster.holdings import digest
from kmesh.telling.peers import NOTED_USE, Direction, PeerRecord, Peers, Sums, summed_up
from kmesh.telling.totals import NO_TRAFFIC

from kmesh_bpf import Announcement, FakeKernel, KernelError, Options, Reconciler, View
from kmesh_bpf.core import operations as ops
from tests.unit.core import mesh
from tests.unit.launcher.standin import Clock


class World:
    """One node's passes over a cluster that changes, and what it tells of its peers."""

    def __init__(self, nodes: int = 4) -> None:
        self.refusing = False
        self.clock = Clock()
        self.kernel = FakeKernel(mesh.LINKS, self.clock)
        self.kernel.refuse = self._refuse
        self.view = mesh.view(nodes=nodes)
        self.passes = Reconciler(self.kernel, Options(), self.clock, lambda: "fresh".ljust(36, "0"))
        self.peers = Peers()

    def _refuse(self, operation) -> KernelError | None:
        kinds = (ops.SetPolicy, ops.AddSa)
        return KernelError("write", "it", 12) if self.refusing and isinstance(operation, kinds) else None

    def run(self, view: View | None = None):
        self.view = view or self.view
        self.clock.now += 1
        self.report = self.passes.run(self.view)
        self.peers.note(self.report)

    def told(self) -> dict[str, PeerRecord]:
        found, self.sums = self.peers.take(self.view, self.report, self.clock.now)
        return dict(found)

    def anew(self) -> dict[str, PeerRecord]:
        fresh = Peers()
        fresh.note(replace(self.report, touched=None))
        return dict(fresh.take(self.view, self.report, self.clock.now)[0])

    def with_peers(self, peers) -> None:
        peers = tuple(peers)
        pods = [pod for pod in self.all_pods if pod.node == "n1" or pod.node in {peer.node.name for peer in peers}]
        self.run(replace(self.view, peers=peers, pods=tuple(pods)))

    @property
    def all_pods(self):
        return mesh.view(nodes=4).pods


def without_traffic(peers: dict[str, PeerRecord]) -> dict[str, PeerRecord]:
    """What SAs counted that are gone, only those know who saw them."""
    return {
        name: replace(peer, ways={way: replace(one, traffic=NO_TRAFFIC) for way, one in peer.ways.items()})
        for name, peer in peers.items()
    }


def pod_moves(world: World, number: int) -> None:
    pods = world.view.pods
    moved = replace(pods[number % len(pods)], addresses=(ip_address(f"10.244.77.{number + 1}"),))
    world.run(replace(world.view, pods=tuple(moved if pod.name == moved.name else pod for pod in pods)))


def pod_comes(world: World, number: int) -> None:
    there = world.view.pods
    made = mesh.pod(2 + number % 3, 20 + number)
    if made not in there:
        world.run(replace(world.view, pods=(*there, made)))


def node_leaves_or_comes(world: World, number: int) -> None:
    every = mesh.view(nodes=4).peers
    gone = every[number % len(every)]
    there = {peer.node.name: peer for peer in world.view.peers}
    if gone.node.name in there:
        del there[gone.node.name]
    else:
        there[gone.node.name] = gone
    world.with_peers(there[name] for name in sorted(there))


def address_is_another_s(world: World, number: int) -> None:
    peers = list(world.view.peers)
    if len(peers) > 1:
        one, other = peers[0], peers[1]
        peers[0] = replace(one, node=replace(one.node, addresses=(ip_address(f"10.10.9.{number + 1}"),)))
        peers[1] = replace(other, node=replace(other.node, addresses=one.node.addresses))
        world.with_peers(peers)


def node_claims_another_s_address(world: World, number: int) -> None:
    peers = list(world.view.peers)
    if len(peers) > 1:
        thief, other = (0, 1) if number % 2 else (1, 0)
        node = peers[thief].node
        peers[thief] = replace(peers[thief], node=replace(node, addresses=peers[other].node.addresses))
        world.with_peers(peers)


def node_announces(world: World, number: int) -> None:
    peers = list(world.view.peers)
    if peers:
        peers[number % len(peers)] = replace(peers[number % len(peers)], spi=number % 3)
        world.with_peers(peers)


def key_is_replaced(world: World, number: int) -> None:
    newer = mesh.view(spi=2, announced=1 + number % 2, announced_at=900.0)
    world.run(replace(world.view, keys=newer.keys, announced=newer.announced, announced_at=newer.announced_at))


def sa_is_used(world: World, number: int) -> None:
    sas = sorted(world.kernel.sas, key=str)
    if sas:
        world.kernel.use(sas[number % len(sas)], int(world.clock.now), packets=1 + number)
        world.passes.forget()
        world.run()


def sa_is_used_and_nobody_looks(world: World, number: int) -> None:
    for identity in sorted(world.kernel.sas, key=str)[number:]:
        world.kernel.use(identity, int(world.clock.now), packets=1 + number)


def kernel_begins_or_ends_to_refuse(world: World, number: int) -> None:
    world.refusing = not world.refusing
    pod_comes(world, number)


def sa_is_deleted(world: World, number: int) -> None:
    sas = sorted(world.kernel.sas, key=str)
    if sas:
        del world.kernel.sas[sas[number % len(sas)]]
        world.passes.forget()
        world.run()


def somebody_flushes(world: World, number: int) -> None:
    if number % 2:
        world.kernel.sas.clear()
    world.kernel.policies.clear()
    world.passes.forget()
    world.run()


def a_little_later(world: World, number: int) -> None:
    world.clock.now += number
    world.run()


def much_later(world: World, number: int) -> None:
    world.clock.now += 60 * number
    world.run()


EVENTS = (
    pod_moves,
    pod_comes,
    node_leaves_or_comes,
    address_is_another_s,
    node_claims_another_s_address,
    node_announces,
    key_is_replaced,
    sa_is_used,
    sa_is_used_and_nobody_looks,
    sa_is_deleted,
    kernel_begins_or_ends_to_refuse,
    somebody_flushes,
    a_little_later,
    much_later,
)


@pytest.mark.parametrize("many", [0, 1000], ids=["read back as a whole", "read back one by one"])
@given(history=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 7), st.booleans()), max_size=12))
@example(history=[(key_is_replaced, 1, True), (sa_is_used_and_nobody_looks, 0, False), (much_later, 1, True)])
@example(
    history=[
        (key_is_replaced, 1, True),
        (node_announces, 2, True),
        (a_little_later, 4, True),
        (sa_is_used_and_nobody_looks, 0, False),
        (a_little_later, 4, True),  # the planner asks whether it is idle, and it is not
    ]
)
@example(history=[(node_claims_another_s_address, 0, True), (node_claims_another_s_address, 1, True)])
@example(history=[(kernel_begins_or_ends_to_refuse, 1, True), (kernel_begins_or_ends_to_refuse, 2, True)])
def test_what_is_remembered_is_what_one_finds_who_looks_for_the_first_time(many, history):
    with patch.object(sys.modules["kmesh_bpf.core.mirror"], "MANY", many):
        live(history)


def live(history) -> None:
    world = World()
    world.run()
    for event, number, tell in history:
        event(world, number)
        if tell:
            told = world.told()
            assert without_traffic(told) == without_traffic(world.anew()), event.__name__
            assert world.sums == summed_up(told)
    told = world.told()
    assert without_traffic(told) == without_traffic(world.anew())
    assert told.keys() == world.report.expected
    assert world.sums == summed_up(told)
    assert world.sums.ready == len(world.report.reachable)


def test_after_an_event_of_one_pod_only_its_node_is_looked_at(monkeypatch):
    world, looked = World(), []
    world.run()
    world.told()
    made = Peers._record
    monkeypatch.setattr(Peers, "_record", lambda self, name, *rest: looked.append(name) or made(self, name, *rest))
    pod_moves(world, 1)
    world.told()
    assert set(looked) == {world.view.pods[1].node}
    looked.clear()
    world.run()
    world.told()
    assert looked == []


def test_where_a_policy_leads_to_no_sa_it_cannot_be_told_what_is_sent_with():
    world = World(nodes=2)
    world.run()
    assert world.told()["n2"].ways["out"].used == 1
    (gone,) = [one for one in world.kernel.sas if one.mark is None and one.src.version == 6]
    world.refusing = True
    del world.kernel.sas[gone]
    policies = dict(world.kernel.policies)
    world.passes.forget()
    world.run()
    world.kernel.policies.update(policies)
    world.passes.forget()
    world.run()
    found = world.told()["n2"]
    assert (found.ready, found.ways["out"].used) == (False, 0)


def test_traffic_of_a_peer_goes_on_with_it_and_is_forgotten_with_it():
    world = World(nodes=2)
    world.run()
    (identity,) = [one for one in world.kernel.sas if one.mark and one.src.version == 4]
    world.kernel.use(identity, 1001, packets=5)
    world.passes.forget()
    world.run()
    assert world.told()["n2"].ways["in"].traffic.packets == 5
    somebody_flushes(world, 1)
    assert world.told()["n2"].ways["in"].traffic.packets == 5, "of an SA that is gone"
    world.with_peers(())
    assert world.told() == {}
    world.with_peers(mesh.view(nodes=2).peers)
    assert world.told()["n2"].ways["in"].traffic.packets == 0


def test_what_was_told_stays_what_it_was():
    world = World()
    world.run()
    told, sums = world.peers.take(world.view, world.report, world.clock.now)
    kept = dict(told), summed_up(told)
    world.with_peers(())
    world.told()
    assert (dict(told), sums, type(told)) == (*kept, MappingProxyType)


def test_sums_are_of_all_peers_and_of_the_worst_of_them():
    def way(*spis: int, used: int = 0, use: float = 0.0, since: int = 0) -> Direction:
        return Direction(spis, used, use, 0, since)

    peers = {
        "n2": PeerRecord(True, 2, {"in": way(1, 2, since=50), "out": way(1, 2, used=2, use=0.05, since=40)}),
        "n3": PeerRecord(True, 1, {"in": way(1, 2, since=60), "out": way(1, used=1, use=NOTED_USE, since=10)}),
        "n4": PeerRecord(False, 0),
    }
    found = summed_up(peers)
    assert (found.ready, found.oldest, found.newest, found.since, found.sequence_use) == (2, 1, 2, 40, NOTED_USE)
    assert found.sending == {2: {"n2"}, 1: {"n3"}, 0: {"n4"}}
    assert (found.receiving, found.noted) == ({1: 2, 2: 2}, {"n3", "n4"})
    assert summed_up({}) == Sums()


def held(world: World) -> int:
    world.told()
    return world.sums.holds


def all_of(world: World, *but: str) -> int:
    return digest((one.node.name, one.node.boot_id) for one in world.view.peers if one.node.name not in but)


def changed(world: World, index: int, **changes) -> None:
    peers = list(world.view.peers)
    name, node = peers[index].node.name, peers[index].node
    if "boot_id" in changes:
        changes["node"] = replace(node, boot_id=changes.pop("boot_id"))
    peers[index] = replace(peers[index], **changes)
    assert peers[index].node.name == name
    world.run(replace(world.view, peers=tuple(peers)))


def test_of_whom_the_kernel_holds_keys_both_ways_the_incarnation_is_told():
    world = World()
    world.run()
    assert held(world) == all_of(world)
    assert world.sums == summed_up(world.told())


def test_another_incarnation_counts_once_the_kernel_has_its_keys():
    world = World()
    world.run()
    before = all_of(world)
    assert held(world) == before
    world.refusing = True
    changed(world, 0, boot_id="boot-another".ljust(36, "0"))
    assert held(world) == all_of(world, "n2"), "neither the one before nor the one that is announced"
    world.refusing = False
    world.passes.forget()
    world.run()
    assert held(world) == all_of(world) != before


def test_when_this_node_becomes_another_one_nothing_counts_that_was_made_for_the_one_before():
    world = World()
    world.run()
    assert held(world) == all_of(world)
    world.refusing = True
    world.kernel.sas.clear()
    world.passes.forget()
    world.run()
    assert held(world) == 0


def test_a_peer_counts_not_before_the_announced_version_can_be_decrypted():
    world = World(nodes=2)
    world.run()
    newer = mesh.view(spi=2, announced=2, announced_at=900.0)
    world.kernel.refuse = lambda one: (
        KernelError("add SA", "it", 12) if isinstance(one, ops.AddSa) and one.sa.mark and one.sa.spi == 2 else None
    )
    world.run(replace(world.view, keys=newer.keys, announced=2, announced_at=900.0))
    assert held(world) == 0
    world.kernel.refuse = lambda one: None
    world.passes.forget()
    world.run()
    assert held(world) == all_of(world)


@pytest.mark.parametrize("changes", [{"alive": False}, {"spi": 0}])
def test_who_is_about_to_go_or_takes_no_key_is_not_counted(changes):
    world = World()
    changed(world, 1, **changes)
    assert held(world) == all_of(world, "n3")


def test_who_went_is_not_counted_any_more():
    world = World()
    world.run()
    held(world)
    node_leaves_or_comes(world, 0)
    assert len(world.view.peers) == 2
    assert held(world) == all_of(world)


def test_keys_of_an_earlier_incarnation_that_the_kernel_does_not_let_go_do_not_count():
    world = World()
    world.run()
    assert held(world) == all_of(world)
    world.kernel.refuse = lambda one: (
        KernelError("replace SA", "it", 12) if isinstance(one, ops.AddSa | ops.ReplaceSa | ops.DeleteSa) else None
    )
    changed(world, 0, boot_id="boot-another".ljust(36, "0"))
    assert held(world) == all_of(world, "n2")


def test_nor_do_those_made_for_an_earlier_incarnation_of_this_node_though_nothing_was_touched():
    world = World()
    world.run()
    world.kernel.refuse = lambda one: KernelError("write", "it", 12)
    shown = Announcement("somebody-elses".ljust(36, "0"), tuple(map(str, world.view.node.addresses)), "", 4096)
    world.passes.memory = replace(world.passes.memory, unseen="")
    world.passes._fresh_incarnation = lambda: "fresher".ljust(36, "0")
    world.report = world.passes.run(world.view, shown=shown)
    world.peers.note(replace(world.report, touched=frozenset()))
    assert world.report.renewed
    assert held(world) == 0

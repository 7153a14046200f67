# SPDX-License-Identifier: Apache-2.0
import errno
from dataclasses import replace
from ipaddress import ip_address

import pytest
from kmesh.telling.record import (
    APPLIED,
    BUCKETS,
    CONVERGED,
    FAILED,
    KINDS,
    UNFINISHED,
    KeyRecord,
    Record,
    after_error,
)

from kmesh_bpf import AddSa, Direction, FakeKernel, KernelError
from kmesh_bpf.core.operations import SetPolicy
from tests.unit.core import mesh
from tests.unit.launcher.standin import Passes

R = ip_address("10.10.0.2")


def sas_of(kernel: FakeKernel, peer=R):
    return [identity for identity in kernel.sas if peer in (identity.src, identity.dst)]


def test_a_converged_pass_is_told_with_its_peers_pods_and_times():
    passes = Passes()
    record = passes.run(mesh.view())
    assert record.succeeded == record.attempted == 1000.0
    assert set(record.peers) == {"n2", "n3"}
    assert (record.sums.ready, record.pods_local, record.pods_remote) == (2, 1, 2)
    assert record.peers["n2"].announced == 1
    assert {way: (one.newest, one.oldest) for way, one in record.peers["n2"].ways.items()} == {
        "in": (1, 1),
        "out": (1, 1),
    }
    assert record.statistics.passes == {CONVERGED: 1, UNFINISHED: 0, FAILED: 0}
    assert record.statistics.operations["add_sa", APPLIED] == len(passes.kernel.sas)
    assert record.statistics.operations["add_sa", FAILED] == 0


def test_a_node_that_holds_managed_pods_and_has_not_announced_itself_is_expected():
    view = mesh.view()
    record = Passes().run(replace(view, peers=view.peers[:1]))
    assert (record.sums.ready, len(record.peers)) == (1, 2)


def test_what_the_kernel_refused_counts_as_failed_and_not_as_applied():
    passes = Passes()
    passes.kernel.refuse = lambda op: KernelError("add SA", "x", errno.ENOMEM) if isinstance(op, AddSa) else None
    record = passes.run(mesh.view())
    numbers = record.statistics.operations
    assert (numbers["add_sa", APPLIED], numbers["add_sa", FAILED]) == (0, len(record.failures))
    assert record.failures[0].startswith("add SA x: ")
    assert numbers["set_policy", APPLIED] > 0
    assert record.statistics.passes[FAILED] == 1
    assert record.succeeded == 0.0


def refusing(passes: Passes, unwanted) -> None:
    passes.kernel.refuse = lambda op: KernelError("write", "x", errno.ENOMEM) if unwanted(op) else None


def outbound(kind: type, towards=None):
    """Tell of an operation whether it is of a kind, for what this node sends, to the nodes whose address it is."""

    def told(op) -> bool:
        if not isinstance(op, kind):
            return False
        if isinstance(op, SetPolicy):
            return op.policy.direction is Direction.OUT and towards in (None, op.policy.tunnel_dst)
        return op.sa.mark is None and towards in (None, op.sa.dst)

    return told


@pytest.mark.parametrize("kind", [AddSa, SetPolicy])
def test_a_peer_to_which_the_kernel_lets_us_not_send_is_not_ready_and_the_others_are(kind):
    passes = Passes()
    refusing(passes, outbound(kind, R))
    record = passes.run(mesh.view())
    assert {name: peer.ready for name, peer in record.peers.items()} == {"n2": False, "n3": True}
    assert (record.sums.ready, len(record.peers)) == (1, 2)
    refusing(passes, lambda op: False)
    assert passes.run(mesh.view()).sums.ready == 2


def test_a_peer_that_announces_no_key_of_ours_is_not_ready_unless_it_was_sent_to_before():
    view = mesh.view(nodes=2)
    silent = replace(view, peers=(replace(view.peers[0], spi=0),))
    assert Passes().run(silent).sums.ready == 0
    passes = Passes()
    passes.run(view)
    record = passes.run(silent)
    assert (record.peers["n2"].ways["out"].newest, record.sums.ready) == (1, 1)


def test_a_peer_without_pods_is_ready_with_its_sas_alone():
    view = mesh.view(nodes=2)
    bare = replace(view.peers[0], node=replace(view.peers[0].node, pod_cidrs=()))
    view = replace(view, peers=(bare,), pods=view.pods[:1])
    passes = Passes()
    refusing(passes, outbound(AddSa))
    assert passes.run(view).sums.ready == 0
    refusing(passes, lambda op: False)
    assert passes.run(view).sums.ready == 1
    assert not passes.kernel.policies


def test_in_a_replacement_a_peer_is_ready_as_long_as_there_is_an_sa_to_send_with():
    passes = Passes()
    passes.run(mesh.view())
    refusing(passes, outbound(AddSa))
    record = replacing(passes, 2, 2)
    assert record.sums.ready == 2
    assert all(peer.ways["out"].newest == 1 for peer in record.peers.values())


def test_a_pass_given_up_is_an_attempt_and_leaves_what_was_known():
    passes = Passes()
    before = passes.run(mesh.view())
    after = after_error(before, "the kernel sent nonsense", 1010.0)
    assert (after.attempted, after.succeeded, after.error) == (1010.0, 1000.0, "the kernel sent nonsense")
    assert after.statistics.passes == {CONVERGED: 1, UNFINISHED: 0, FAILED: 1}
    assert after.peers == before.peers
    passes.record = after
    assert passes.run(mesh.view()).error == ""


@pytest.mark.parametrize(("seconds", "slot"), [(0.0, 0), (0.005, 0), (0.006, 1), (30.0, 11), (31.0, 12)])
def test_a_duration_falls_into_the_first_bucket_that_is_not_below_it(seconds, slot):
    record = Passes().run(mesh.view(), seconds=seconds)
    assert [index for index, number in enumerate(record.statistics.durations) if number] == [slot]
    assert len(record.statistics.durations) == len(BUCKETS) + 1


def test_sequence_use_is_of_64_bits_with_esn_and_of_32_without():
    passes = Passes()
    view = mesh.view(nodes=2)
    passes.run(view)
    for identity in sas_of(passes.kernel):
        passes.kernel.usage[identity] = replace(passes.kernel.usage[identity], sequence=1 << 63, packets=1 << 31)
    assert passes.run(view).peers["n2"].ways["out"].sequence_use == 0.5
    other = Passes()
    view = replace(view, peers=(replace(view.peers[0], replay_window=0),))
    other.run(view)
    for identity in sas_of(other.kernel):
        other.kernel.usage[identity] = replace(other.kernel.usage[identity], packets=1 << 30)
    assert other.run(view).peers["n2"].ways["out"].sequence_use == 0.25


def test_traffic_and_last_use_are_told_by_direction():
    passes = Passes()
    passes.run(mesh.view(nodes=2))
    for identity in sas_of(passes.kernel):
        passes.kernel.use(identity, 1234.0, packets=5 if identity.src == R else 7)
    ways = passes.run(mesh.view(nodes=2)).peers["n2"].ways
    assert (ways["in"].traffic.packets, ways["out"].traffic.packets) == (5, 7)
    assert ways["in"].last_used == 1234


def test_the_age_of_a_key_outlives_the_daemon_by_its_sas():
    passes = Passes()
    passes.run(mesh.view())
    assert passes.record.key_since == 1000.0
    passes.clock.now = 5000.0
    passes.restart()
    assert passes.run(mesh.view()).key_since == 1000.0
    assert passes.run(mesh.view(spi=2)).key_since == 5000.0
    passes.clock.now = 6000.0
    assert passes.run(mesh.view(spi=2)).key_since == 5000.0


def test_without_a_key_there_is_no_age_and_nothing_settled():
    record = Passes().run(replace(mesh.view(), keys={}, announced=0))
    assert (record.key_since, record.settled, record.sums.ready) == (0.0, 0, 0)


def replacing(passes: Passes, announced: int, peers: int):
    view = mesh.view(spi=2, announced=announced, announced_at=900.0)
    return passes.run(replace(view, peers=tuple(replace(peer, spi=peers) for peer in view.peers)))


def test_a_key_is_settled_when_every_sa_is_of_it_and_it_is_announced():
    passes = Passes()
    assert passes.run(mesh.view()).settled == 1
    assert replacing(passes, 1, 1).settled == 1
    assert replacing(passes, 2, 2).settled == 1  # the old SAs are still there
    passes.clock.now += 60
    assert replacing(passes, 2, 2).settled == 2


def test_a_daemon_that_starts_in_mid_replacement_takes_the_oldest_spi_for_settled():
    passes = Passes()
    passes.run(mesh.view())
    replacing(passes, 1, 1)
    passes.restart()
    assert replacing(passes, 1, 1).settled == 1


def test_every_kind_of_operation_has_a_counter_from_the_start():
    assert {"add_sa", "install_nat_exemption", "set_policy", "attach"} <= set(KINDS)
    operations = Record("n1", 0.0).statistics.operations
    assert set(operations) == {(kind, result) for kind in KINDS for result in (APPLIED, FAILED)}


def test_the_key_s_record_is_told_as_given():
    assert Passes().run(mesh.view(), KeyRecord(4, 3, "why")).key == KeyRecord(4, 3, "why")

# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from kmesh.cluster.status import Drop, PeerStatus, from_lease, to_lease
from kmesh.telling.readiness import judged
from kmesh.telling.record import KeyRecord
from kmesh.telling.reporting import PEER_ROWS, delay, make_status

from kmesh_bpf import KernelError, Key, Node, Options, Peer, Pod, Problem, ProblemKind, View, __version__
from tests.unit.cluster.test_status import STATUS
from tests.unit.core import mesh
from tests.unit.launcher.standin import Passes

COUNTERS = {"marked": 9, "dropped_by_guard": 0, "dropped_clear_text": 0, "esp_unknown_peer": 2}


def node(index):
    return Node(f"n{index}", (ip_address(f"10.10.{index // 256}.{index % 256}"),), "b" * 36, ())


def view(peers=2, spi=1, held=(1,), announced=1):
    here = replace(node(1), pod_cidrs=(ip_network("10.244.0.0/24"),))
    others = tuple(
        Peer(replace(node(index), pod_cidrs=(ip_network(f"10.{index // 256}.{index % 256}.0/24"),)), spi, 4096)
        for index in range(2, peers + 2)
    )
    return View(
        here, others, keys={version: Key(bytes([version]) * 36) for version in held}, announced=announced, services=()
    )


class Daemon(Passes):
    """Passes, and what is reported of each."""

    def __post_init__(self):
        super().__post_init__()
        self.kernel.links = ()

    def report(self, seen, counters=COUNTERS, key=None):
        return make_status(self.run(seen, key, counters=counters))


@pytest.fixture
def daemon():
    return Daemon()


def test_a_node_on_which_all_is_well_says_so(daemon):
    status = daemon.report(view())
    assert (status.node, status.version, status.reported_at) == ("n1", __version__, 1000.0)
    assert (status.ready, status.reasons) == (True, ())
    assert (status.spi, status.newest_spi, status.spi_out) == (1, 1, (1, 1))
    assert (status.peers_ready, status.peers_expected, status.peers_on_newest) == (2, 2, 2)
    assert (status.old_inbound, status.replacing_since, status.last_drop) == (0, None, None)
    assert status.peers == ()
    assert status.nat_exemption
    assert from_lease(to_lease(status)) == status


def test_only_counters_that_tell_of_trouble_are_in_it(daemon):
    assert daemon.report(view()).counters == {"dropped_by_guard": 0, "dropped_clear_text": 0, "esp_unknown_peer": 2}


def test_without_a_key_no_peer_is_ready(daemon):
    status = daemon.report(view(held=(), announced=0))
    assert (status.spi_out, status.peers_ready, status.peers_expected) == (None, 0, 2)


def test_a_peer_whose_sas_the_kernel_refuses_is_not_ready(daemon):
    daemon.kernel.refuse = lambda operation: (
        KernelError("add SA", "x", 12) if type(operation).__name__ == "AddSa" else None
    )
    status = daemon.report(view())
    assert (status.peers_ready, status.peers[0].ready) == (0, False)


def test_the_daemon_s_reasons_come_first_and_what_else_should_be_known_makes_it_no_less_ready(daemon):
    refused = KeyRecord(1, 1, refused="no JSON")
    note = "the key in the Secret is refused: no JSON"
    assert (daemon.report(view(), key=refused).ready, make_status(daemon.record).reasons) == (True, (note,))
    old = judged(daemon.record, 1000.0, view_age=300.0)
    status = make_status(old)
    assert (status.ready, status.reasons) == (False, (*old.unready, note))
    assert "not been seen for 300 s" in old.unready[0]


def test_sentences_are_few_and_short(daemon):
    problems = tuple(Problem(ProblemKind.CONFLICT, f"{number} {'x' * 999}") for number in range(50))
    daemon.report(view())
    status = make_status(judged(replace(daemon.record, plan_problems=problems), 1000.0, 0.0))
    assert sum(map(len, status.reasons)) < 2000


def test_a_replacement_is_followed_from_its_start_to_its_end(daemon):
    assert daemon.report(view()).replacing_since is None
    daemon.clock.now = 1010.0
    started = daemon.report(view(spi=1, held=(1, 2), announced=1))
    assert (started.spi, started.newest_spi, started.spi_out) == (1, 2, (1, 1))
    assert (started.peers_on_newest, started.old_inbound, started.replacing_since) == (0, 2, 1010.0)
    daemon.clock.now = 1011.0
    seen = view(spi=2, held=(1, 2), announced=2)
    one_moved = replace(seen, peers=(seen.peers[0], replace(seen.peers[1], spi=1)), announced_at=1011.0)
    half = daemon.report(one_moved)
    assert (half.spi, half.spi_out, half.peers_on_newest, half.replacing_since) == (2, (1, 2), 1, 1010.0)
    assert half.peers == (PeerStatus("n3", True, 2, 1, 0.0),)
    daemon.clock.now = 1050.0
    daemon.report(replace(seen, announced_at=1011.0))
    daemon.clock.now = 1060.0
    done = daemon.report(replace(seen, announced_at=1011.0))
    assert (done.spi_out, done.peers_on_newest, done.old_inbound, done.replacing_since) == ((2, 2), 2, 0, None)


@pytest.mark.parametrize(("window", "share"), [(4096, 2.0**-33), (0, 0.5)])
def test_the_sequence_use_is_of_what_the_sa_can_count(daemon, window, share):
    seen = view(peers=1)
    seen = replace(seen, peers=(replace(seen.peers[0], replay_window=window),))
    daemon.report(seen)
    for identity in daemon.kernel.sas:
        if identity.mark is None:
            daemon.kernel.use(identity, 1000, 1 << 31)
    status = daemon.report(seen)
    assert status.sequence_use == share
    assert [peer.sequence_use for peer in status.peers] == ([share] if share > 0.1 else [])


def test_a_drop_is_remembered_with_its_time_until_the_next_one(daemon):
    daemon.report(view())
    daemon.clock.now = 1100.0
    assert daemon.report(view(), COUNTERS | {"dropped_clear_text": 5}).last_drop == Drop("dropped_clear_text", 1100.0)
    daemon.clock.now = 1200.0
    later = daemon.report(view(), COUNTERS | {"dropped_clear_text": 5, "esp_unknown_peer": 99})
    assert later.last_drop == Drop("dropped_clear_text", 1100.0)


def test_what_was_dropped_before_the_first_report_has_no_time(daemon):
    assert daemon.report(view(), COUNTERS | {"dropped_by_guard": 5}).last_drop is None


def test_of_many_peers_those_are_told_of_that_are_not_as_they_should_be(daemon):
    seen = view(peers=300)
    late = replace(seen.peers[200], spi=0)
    status = daemon.report(replace(seen, peers=(*seen.peers[:200], late, *seen.peers[201:])))
    assert (status.peers_ready, status.peers_expected) == (299, 300)
    assert status.peers == (PeerStatus(late.node.name, False, 1, 0, 0.0),)


def test_a_node_that_holds_managed_pods_and_announces_nothing_is_expected_and_told_of(daemon):
    silent = Pod("default/web", "n3", (ip_address("10.0.3.9"),))
    status = daemon.report(replace(view(peers=1), pods=(silent,)))
    assert (status.peers_ready, status.peers_expected) == (1, 2)
    assert status.peers == (PeerStatus("n3", False, 0, 0, 0.0),)


def test_a_peer_whose_policy_the_kernel_refuses_is_not_ready_though_its_sa_is_there(daemon):
    daemon.kernel.refuse = lambda operation: (
        KernelError("add policy", "x", 12) if type(operation).__name__ == "SetPolicy" else None
    )
    pods = tuple(Pod(f"p{index}", f"n{index}", (ip_address(f"10.0.{index}.5"),)) for index in (2, 3))
    status = daemon.report(replace(view(), pods=pods))
    assert (status.peers_ready, {peer.spi_out for peer in status.peers}) == (0, {1})


def test_a_peer_with_two_tunnels_is_on_the_version_of_the_one_that_is_behind(daemon):
    both = (ip_address("10.10.0.2"), ip_address("fd00::2"))
    seen = view(peers=1)
    here = replace(seen.node, addresses=(*seen.node.addresses, ip_address("fd00::1")))
    seen = replace(seen, node=here, peers=(replace(seen.peers[0], node=replace(node(2), addresses=both)),))
    daemon.report(seen)
    daemon.clock.now += 5
    newer = replace(seen, keys={1: Key(bytes([1]) * 36), 2: Key(bytes([2]) * 36)})
    daemon.kernel.refuse = lambda operation: (
        KernelError("add SA", "x", 12)
        if type(operation).__name__ == "AddSa" and operation.sa.dst == both[1] and operation.sa.spi == 2
        else None
    )
    status = daemon.report(replace(newer, peers=(replace(newer.peers[0], spi=2),)))
    assert (status.spi_out, status.peers_ready) == ((1, 1), 1)


def test_the_peers_that_are_selected_by_pod_cidr_are_named_the_first_of_many_and_counted(daemon):
    peers = PEER_ROWS + 8
    seen = view(peers=peers)
    pods = tuple(Pod(f"p{index}", f"n{index}", (ip_address(f"10.0.{index}.5"),)) for index in range(2, peers + 2))
    daemon.options = Options(max_exact=peers - 1)
    status = daemon.report(replace(seen, pods=pods))
    assert (len(status.by_cidr), status.by_cidr_count) == (PEER_ROWS, peers)
    assert from_lease(to_lease(status)) == status
    assert len(str(to_lease(status))) < 4096
    daemon.options = Options(max_exact=2 * peers)
    status = daemon.report(replace(seen, pods=pods))
    assert (status.by_cidr, status.by_cidr_count) == ((), 0)
    assert from_lease(to_lease(status)) == status


def test_the_kinds_of_the_plan_s_problems_are_told_each_once(daemon):
    kept = (replace(mesh.LINKS[1], xfrm_disabled=True), replace(mesh.LINKS[1], ifindex=9, name="eth9", unchecked=True))
    daemon.kernel.links = (mesh.LINKS[0], *kept)
    daemon.options = Options(uplinks=("eth7",))
    status = daemon.report(view())
    assert status.problems == ("UPLINK", "XFRM_DISABLED")
    assert from_lease(to_lease(status)) == status


def test_a_report_stays_small_even_when_every_peer_is_behind(daemon):
    daemon.report(view(peers=300))
    status = daemon.report(view(peers=300, held=(1, 2)))
    assert (status.peers_on_newest, status.spi_out) == (0, (1, 1))
    assert len(status.peers) == PEER_ROWS
    assert len(str(to_lease(status))) < 4096


NEWS = [{"ready": False}, {"spi": 3}, {"newest_spi": 3}, {"version": "9"}, {"strict": False}, {"incarnation": "x"}]
PROGRESS = [
    {"peers_ready": 1},
    {"peers_expected": 3},
    {"peers_on_newest": 2},
    {"spi_out": (2, 2)},
    {"problems": ("KEY",)},
    {"holds": 5},
]


@pytest.mark.parametrize("changes", NEWS + PROGRESS)
def test_what_an_operator_waits_for_is_published_at_once_and_never_twice_in_two_seconds(changes):
    new = replace(STATUS, **changes)
    assert delay(STATUS, new, STATUS.reported_at + 0.5, 0.0) == pytest.approx(1.5)
    assert 0.0 < delay(STATUS, new, STATUS.reported_at + 1.9, 0.0) <= 0.1 + 1e-6
    assert delay(STATUS, new, STATUS.reported_at + 2.0, 0.0) == 0.0


def test_what_changes_all_the_time_waits_for_the_next_minute_and_its_jitter():
    new = replace(STATUS, counters={}, sequence_use=0.5, reasons=("x",), peers=(), reported_at=9e9)
    assert delay(STATUS, new, STATUS.reported_at + 69.0, 10.0) == math.inf
    assert delay(STATUS, new, STATUS.reported_at + 70.0, 10.0) == 0.0


def test_the_first_report_and_one_after_the_clock_was_set_back_are_published():
    assert delay(None, STATUS, 0.0, 10.0) == 0.0
    assert delay(STATUS, STATUS, STATUS.reported_at - 1.0, 10.0) == 0.0


def test_in_a_large_cluster_progress_is_told_less_often_and_readiness_as_fast_as_ever():
    large = replace(STATUS, peers_expected=5000)
    progress, news = replace(large, peers_on_newest=7), replace(large, ready=False)
    another = replace(large, incarnation="another")  # whom others must hold keys for, before they are said to lack them
    assert delay(large, another, STATUS.reported_at + 2.0, 0.0) == 0.0
    assert delay(large, progress, STATUS.reported_at + 49.0, 0.0) == pytest.approx(1.0)
    assert delay(large, progress, STATUS.reported_at + 50.0, 0.0) == 0.0
    assert delay(large, news, STATUS.reported_at + 2.0, 0.0) == 0.0

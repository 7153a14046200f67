# SPDX-License-Identifier: Apache-2.0
"""All that the daemon says of itself is a view of one record, so it says one thing; and a pass does not wait for it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from kmesh.telling.conditions import conditions
from kmesh.telling.events import PATIENCE, notes
from kmesh.telling.peers import Direction, PeerRecord, summed_up
from kmesh.telling.readiness import answer, judged
from kmesh.telling.record import KeyRecord, Record, after_error, in_series
from kmesh.telling.reporting import REASON_LENGTH, REASONS, make_status

from kmesh_bpf import Problem, ProblemKind
from tests.unit.cluster import kube
from tests.unit.launcher.standin import BOUNDS, Node

spis = st.integers(0, 4)
directions = st.builds(
    Direction,
    st.lists(st.integers(1, 4), max_size=3).map(lambda found: tuple(sorted(found))),
    spis,
    st.floats(0, 1),
)
peers = st.builds(PeerRecord, st.booleans(), spis, st.fixed_dictionaries({"in": directions, "out": directions}))
records = st.builds(
    Record,
    st.just("n1"),
    st.just(1000.0),
    st.sampled_from([0.0, 990.0, 1000.0]),
    st.sampled_from(["", "the kernel sent nonsense"]),
    failures=st.sampled_from([(), ("write the map",)]),
    drift=st.integers(0, 2),
    key=st.builds(
        KeyRecord, spis, spis, st.sampled_from(["", "no JSON"]), st.integers(0, 2), st.sampled_from(["", "no"])
    ),
    plan_problems=st.lists(
        st.builds(Problem, st.sampled_from(ProblemKind), st.sampled_from(["a", "b"])), max_size=3
    ).map(tuple),
    bounds=st.just(BOUNDS),
    peers=st.dictionaries(st.sampled_from(["n2", "n3", "n4"]), peers),
)


def metrics(record: Record) -> dict[str, float]:
    lines = (line for line in answer("/metrics", record).body.splitlines() if not line.startswith("#"))
    return {
        name.removeprefix("kmesh_ipsec_"): float(value) for name, _, value in (one.rpartition(" ") for one in lines)
    }


@given(records, st.sampled_from([0.0, 61.0]))
def test_lease_metrics_readiness_events_and_conditions_agree(record, view_age):
    record = replace(record, sums=summed_up(record.peers))
    told = in_series(Record("n1", 0.0), judged(record, 1000.0, view_age))
    page, lease, samples = json.loads(answer("/readyz", told).body), make_status(told), metrics(told)
    later = replace(told, attempted=told.attempted + PATIENCE)
    condition, events = conditions(later, {})["EncryptionReady"], {note.reason for note in notes(told, later)}
    ready = not told.unready
    assert page["ready"] == lease.ready == bool(samples["ready"]) == (condition.status == "True") == ready
    assert answer("/readyz", told).status == (200 if ready else 503)
    assert ("EncryptionNotReady" in events) == (not ready)
    assert page["reasons"] == list(told.unready)
    assert list(lease.reasons)[: len(told.unready)] == [one[:REASON_LENGTH] for one in told.unready[:REASONS]]
    if not ready:
        assert condition.message == "; ".join(told.unready)
    assert samples["peers_ready"] == lease.peers_ready == sum(peer.ready for peer in told.peers.values())
    assert samples["peers_expected"] == lease.peers_expected == len(told.peers)
    assert samples["key_announced_spi"] == lease.spi
    for row in lease.peers:
        assert samples[f'peer_ready{{peer="{row.name}"}}'] == row.ready
    behind = {name for name, peer in told.peers.items() if not peer.ready or peer.ways["out"].used != lease.newest_spi}
    assert behind <= {row.name for row in lease.peers}
    if told.settled == told.key.spi > 0:
        assert conditions(told, {})["KeyReplaced"].status == "True"


def test_a_pass_that_fails_is_told_by_all_of_them_and_so_is_that_the_next_one_does_not(node):
    node.key(1)
    node.source.publish = counting(node.source.publish)
    node.steps(20)
    assert (node.ready(), node.report()["ready"], node.condition("EncryptionReady")) == ((200, []), True, "True")
    for _ in range(100):
        node.clock.now += 1
        node.recorder.failed("the kernel sent nonsense")
        if node.recorder.due() <= 0:
            node.recorder.tell()
    reasons = ["the last pass had to be given up: the kernel sent nonsense"]
    assert (node.ready(), node.report()["reasons"]) == ((503, reasons), reasons)
    assert (node.report()["ready"], node.condition("EncryptionReady")) == (False, "False")
    assert node.reasons()[-1] == "EncryptionNotReady"
    node.steps(20)
    assert (node.ready(), node.report()["ready"], node.condition("EncryptionReady")) == ((200, []), True, "True")


def test_what_sas_count_is_told_after_the_pass_that_observed_it(node):
    node.key(1)
    node.steps(5)
    for identity in node.memory.sas:
        node.memory.use(identity, 1001, packets=5)
    node.daemon.passes.forget()
    node.steps(1)
    page = node.recorder.answer("/metrics").body
    assert 'kmesh_ipsec_peer_packets_total{peer="n2",direction="in"} 10\n' in page


def test_a_daemon_that_never_made_a_whole_pass_reports_why(node):
    node.recorder.failed("the cluster is not known yet")
    node.recorder.tell()
    assert node.report()["ready"] is False
    assert node.report()["reasons"][0] == "the last pass had to be given up: the cluster is not known yet"


def counting(stored):
    return lambda info: stored({**info, "metadata": {**info["metadata"], "generation": 1}})


def test_a_cluster_that_is_not_seen_any_more_is_told_without_any_pass(node):
    node.key(1)
    node.steps(5)
    age = [0.0]
    node.recorder._view_age = lambda: age[0]
    assert node.recorder.due() > 1
    age[0] = 61.0
    node.clock.now += 2
    assert node.recorder.due() == 0
    node.recorder.tell()
    assert node.report()["ready"] is False


def test_a_pass_makes_nothing_of_what_there_is_to_tell(node, monkeypatch):
    node.key(1)
    node.steps()

    def never(*_):
        raise AssertionError("in the way of an event")

    monkeypatch.setattr(node.recorder, "tell", never)
    monkeypatch.setattr("kmesh.telling.reporting.make_status", never)
    monkeypatch.setattr(node.recorder._peers, "take", never)
    monkeypatch.setattr(node.memory, "counters", never)
    node.put(kube.pod("another", 2, 11))
    node.clock.now += 5
    node.daemon.step()
    assert node.recorder.due() == 0


def calls(action) -> int:
    """Count the calls of functions, Python's and C's, that an action takes."""
    number = 0

    def count(*_):
        nonlocal number
        number += 1

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return number


def test_taking_in_a_pass_takes_as_much_among_many_nodes_as_among_few(tmp_path: Path):
    counts = []
    for others in (3, 30):
        (tmp_path / str(others)).mkdir()
        node = Node(tmp_path / str(others), others)
        node.key(1)
        node.steps(5)
        done = []
        node.recorder.passed = done.append
        node.put(kube.pod("another", 2, 11))
        node.daemon.step()
        counts.append(calls(lambda done=done, node=node: type(node.recorder).passed(node.recorder, *done)))
    assert counts[0] == counts[1]


def test_an_error_leaves_what_is_known_of_peers():
    before = Record("n1", 1.0, peers={"n2": PeerRecord(True, 1)})
    assert after_error(before, "x", 2.0).peers == before.peers

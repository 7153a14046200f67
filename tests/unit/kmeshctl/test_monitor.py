# SPDX-License-Identifier: Apache-2.0
"""kmeshctl monitor: what a ring tells, as people and programs read it."""

import io
import json
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from kmesh.cluster.objects import ClusterObjects, NodeObject, PodObject
from kmesh.kmeshctl import cli, monitor

from kmesh_bpf.core.watched import Event
from kmesh_bpf.errors import ConflictError, UnsupportedError

WEB, API, NODE = map(ip_address, ("10.244.1.10", "10.244.2.10", "10.10.0.2"))


def event(decision, source=WEB, destination=API):
    return Event(decision, source, destination, 6, 3, 100, 0)


class Ring:
    """Gives what it was made with, look by look."""

    def __init__(self, *looks):
        self.looks, self.missed = list(looks), 0

    def take(self):
        return self.looks.pop(0) if self.looks else []

    def lost(self):
        return self.missed


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command over a ring; give status, output and what was said beside."""

    def running(ring, *arguments):
        @contextmanager
        def watching(pin_root, one_of):
            asked.append((pin_root, one_of))
            if isinstance(ring, Exception):
                raise ring
            yield ring

        asked = []
        monkeypatch.setattr(monitor, "watching", watching)
        monkeypatch.setattr(monitor.privileges, "need", lambda *_: None)
        out, err = io.StringIO(), io.StringIO()
        status = cli.main(["monitor", "--manifests", str(tmp_path), *arguments], io.StringIO(), out, err, {})
        return status, out.getvalue(), err.getvalue(), asked

    return running


def test_rows_say_who_what_and_why(run):
    ring = Ring([event("marked"), event("marked"), event("dropped_by_guard", API, WEB)])
    status, out, err, asked = run(ring, "--for", "1s", "--pin-root", "/sys/fs/bpf/other")
    assert status == 0
    first, second = out.splitlines()
    assert "DROPPED    10.244.2.10 -> 10.244.1.10  1 packets, 100 bytes: would have left in clear" in first
    assert "encrypted  10.244.1.10 -> 10.244.2.10  2 packets, 200 bytes: sent, to be encrypted" in second
    assert "every packet" in err
    assert [(str(root), one_of) for root, one_of in asked] == [("/sys/fs/bpf/other", 1)]


def test_only_one_fate_is_shown_where_that_is_asked_for(run):
    ring = Ring([event("marked"), event("dropped_by_guard", API, WEB)])
    assert len(run(ring, "--for", "1s", "--only", "dropped")[1].splitlines()) == 1


def test_json_is_a_line_a_row_and_a_sample_stands_for_all(run):
    ring = Ring([event("decrypted"), event("decrypted")])
    status, out, err, asked = run(ring, "--for", "1s", "--sample", "50", "-o", "json")
    (row,) = map(json.loads, out.splitlines())
    assert status == 0
    assert err == ""
    assert asked[0][1] == 50
    assert row.pop("time") > 0
    assert row == {
        "source": "10.244.1.10",
        "destination": "10.244.2.10",
        "sourceName": None,
        "destinationName": None,
        "fate": "encrypted",
        "decision": "decrypted",
        "packets": 100,
        "bytes": 10000,
    }


def test_events_that_found_no_room_are_told_with_the_way_out(run):
    ring = Ring([event("marked")])
    ring.missed = 7
    _, _, err, _ = run(ring, "--for", "1s", "--sample", "5")
    assert "7 events found no room" in err
    assert "--sample 50" in err


def test_pods_and_nodes_have_their_names():
    pods = [
        PodObject("shop", "web", {}, "n1", False, "Running", (WEB,), frozenset()),
        PodObject("kube-system", "proxy", {}, "n2", True, "Running", (NODE,), frozenset()),
    ]
    names = monitor.named(ClusterObjects(pods=pods, nodes=[NodeObject("n2", (NODE,), (), "boot-2")]))
    assert names == {WEB: "shop/web", NODE: "node/n2"}


def test_without_a_cluster_it_goes_on_by_address(run, tmp_path):
    status, out, err, _ = run(Ring([event("marked")]), "--for", "1s", "--manifests", str(tmp_path / "nowhere"))
    assert status == 0
    assert "10.244.1.10 -> 10.244.2.10" in out
    assert "pods are shown by address" in err


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedError("a build of the programs below /x", "is a daemon running?"),
        ConflictError("watch", "/x", 16, "somebody else does: stop that one first"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(run, error):
    status, out, err, _ = run(error)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert str(error) in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--sample", "0"], "--sample"), (["--for", "soon"], "--for"), (["--interval", "0s"], "--interval")],
)
def test_what_means_nothing_is_refused(run, arguments, named):
    status, _, err, asked = run(Ring(), *arguments)
    assert (status, asked) == (2, [])
    assert named in err

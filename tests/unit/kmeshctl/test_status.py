# SPDX-License-Identifier: Apache-2.0
import io
import json
from dataclasses import replace

import pytest
import yaml
from kmesh.cluster.endpoints import of_service
from kmesh.cluster.objects import collect, parse
from kmesh.cluster.snapshot import MODE_LABEL
from kmesh.cluster.status import Drop, PeerStatus, to_lease
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.health import Finding, examine
from kmesh.kmeshctl.output import printable, share, span, table
from kmesh.kmeshctl.status import render, run
from kmesh.kmeshctl.terminal import ENTER, HOME, LEAVE, Reader

from tests.unit.cluster import kube
from tests.unit.cluster.test_status import STATUS

NOW = 1795553100.0
WELL = replace(
    STATUS,
    reported_at=NOW - 12,
    spi=1,
    newest_spi=1,
    spi_out=(1, 1),
    peers_ready=1,
    peers_expected=1,
    peers_on_newest=1,
    old_inbound=0,
    replacing_since=None,
    sequence_use=0.0,
    counters={},
    last_drop=None,
    peers=(PeerStatus("n2", True, 1, 1, 0.0),),
)
OURS = {"kmesh.net/ipsec-replay-window": "4096"}
BASE = (
    kube.node(1),
    kube.node(2),
    kube.node_info(1, **OURS),
    kube.node_info(2, **OURS),
    kube.secret(kube.entry(1)),
)


REPORTS = (WELL, replace(WELL, node="n2"))


class Source:
    """A cluster in memory."""

    def __init__(self, manifests=BASE, reports=REPORTS, problems=(), deployed=None, slices=()):
        self.objects = collect([parse(one) for one in manifests], problems)
        self.deployed = deployed
        self.leases = tuple(map(to_lease, reports))
        self.asked = 0
        self.slices = slices

    def read(self):
        self.asked += 1
        return self.objects

    def statuses(self):
        return self.leases

    def daemons(self):
        return self.deployed

    def endpoint_slices(self, namespace, service):
        return tuple(one for one in self.slices if of_service(one, namespace, service))


def findings(now=NOW, **cluster):
    source = Source(**cluster)
    return [str(finding) for finding in examine(source.read(), source.statuses(), now).findings]


def said(**changes):
    """Give the findings when n1 reports something else."""
    return findings(reports=(replace(WELL, **changes), replace(WELL, node="n2")))


def status(*argv, source=None, out=None, **more):
    out = out or io.StringIO()
    code = run(parser().parse_args(["status", *argv]), source or Source(), out, clock=lambda: NOW, **more)
    return code, out.getvalue()


def test_a_cluster_that_is_well_is_one_table_and_exit_status_0():
    code, text = status()
    assert code == 0
    assert text.splitlines() == [
        "2 of 2 nodes ready, key SPI 1",
        "",
        "NODE   READY   SPI   PEERS   REPLACEMENT   SEQ USE   DROPS   VERSION   AGE",
        "n1     yes     1     1/1     done          0%        0       0.1.0     12s",
        "n2     yes     1     1/1     done          0%        0       0.1.0     12s",
        "",
        "all is as it should be",
    ]


def test_a_replacement_under_way_shows_its_progress_and_is_nothing_wrong():
    half = replace(WELL, spi_out=(1, 2), newest_spi=2, spi=2, peers_expected=3, peers_ready=3, peers_on_newest=2)
    half = replace(half, replacing_since=NOW - 20, old_inbound=3)
    manifests = (kube.node(1), kube.node_info(1, 2), kube.secret(kube.entry(2)))
    code, text = status("-o", "wide", source=Source(manifests, (half,)))
    assert code == 0
    row = text.splitlines()[4]
    assert row.startswith("n1 ")
    assert "2/3 peers on SPI 2" in row
    assert "1-2" in row
    moved = replace(half, peers_on_newest=3, spi_out=(2, 2))
    assert "3 old SAs left" in status(source=Source(manifests, (moved,)))[1]


def test_wide_adds_addresses_mode_and_the_last_drop():
    dropped = replace(
        WELL, counters={"dropped_by_guard": 5}, last_drop=Drop("dropped_by_guard", NOW - 200), strict=False
    )
    code, text = status("-o", "wide", source=Source(reports=(dropped, replace(WELL, node="n2"))))
    assert code == 0
    row = text.splitlines()[3]
    assert "10.10.0.1,fd00:10::1" in row
    assert "permissive" in row
    assert row.endswith("dropped_by_guard 3m ago")
    assert row.split()[6] == "5"


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_the_same_facts(form, load):
    code, text = status("-o", form)
    found = load(text)
    assert (code, found["healthy"], found["keySpi"], found["findings"]) == (0, True, 1, [])
    assert found["nodes"][0]["node"] == "n1"
    assert found["nodes"][0]["ready"] is True
    assert found["nodes"][0]["announcedSpi"] == 1
    assert found["nodes"][0]["reportAgeSeconds"] == 12.0
    assert found["nodes"][0]["report"]["peers"] == [
        {"name": "n2", "ready": True, "spiIn": 1, "spiOut": 1, "sequenceUse": 0.0}
    ]


def test_programs_get_the_findings_too():
    code, text = status("-o", "json", source=Source(reports=()))
    found = json.loads(text)
    assert (code, found["healthy"], found["nodes"][0]["ready"], found["nodes"][0]["report"]) == (1, False, None, None)
    assert found["findings"][0]["node"] == "n1"


def test_every_node_that_anything_knows_of_has_a_row():
    manifests = (kube.node(1), kube.node_info(2), kube.secret(kube.entry(1)))
    _, text = status(source=Source(manifests, (replace(WELL, node="n3"),)))
    assert [line.split()[0] for line in text.split("\n\n")[1].splitlines()] == ["NODE", "n2", "n1", "n3"]
    assert text.splitlines()[0] == "1 of 3 nodes ready, 2 unknown, key SPI 1"


def test_a_node_that_announces_itself_and_reports_nothing_is_told():
    assert findings(reports=(WELL,)) == ["n2: it announces itself, and there is no report of it; does its daemon run?"]


NOT_KNOWN = (
    "n2: a daemon of another make announces it (Go Kmesh?): whether it is ready, whom it can send to and what it drops "
    "is not known here (docs/migrating.md)"
)


def go_node(spi=1, **annotations):
    info = kube.node_info(2, spi, **annotations)
    info["spec"]["bootID"] = kube.BOOT_ID
    return info


@pytest.mark.parametrize("info", [kube.node_info(2), go_node(), go_node(**OURS)], ids=["bare", "Go", "Go after ours"])
def test_beside_a_go_node_it_is_said_what_cannot_be_known_and_nothing_is_wrong(info):
    source = Source((*BASE[:3], info, BASE[4]), (WELL,))
    code, text = status(source=source)
    assert code == 0
    assert text.splitlines()[4].split() == ["n2", "unknown", "1", *"------"]
    assert text.splitlines()[-2:] == ["all that is known is as it should be", NOT_KNOWN]
    found = json.loads(status("-o", "json", source=source)[1])
    assert (found["healthy"], found["findings"]) == (True, [])
    assert found["notes"] == [{"node": "n2", "sentence": NOT_KNOWN[4:]}]
    assert [node["foreign"] for node in found["nodes"]] == [False, True]
    assert [node["ready"] for node in found["nodes"]] == [True, None]


def test_what_can_be_known_of_a_go_node_is_judged_as_of_any_other():
    behind = (*BASE[:3], go_node(spi=1), kube.secret(kube.entry(2)))
    ours = replace(WELL, spi=2, newest_spi=2)
    code, text = status(source=Source((*behind[:2], kube.node_info(1, 2, **OURS), *behind[3:]), (ours,)))
    assert code == 1
    assert text.splitlines()[-2:] == ["n2: it announces SPI 1, the key in the Secret has 2", NOT_KNOWN]


def test_a_report_that_stayed_behind_on_a_node_that_went_back_to_go_is_told_with_the_way_to_delete_it():
    stale = replace(WELL, node="n2", reported_at=NOW - 7200)
    source = Source((*BASE[:3], go_node(**OURS), BASE[4]), (WELL, stale))
    code, text = status(source=source)
    assert code == 1
    assert text.splitlines()[-2:] == [
        "n2: a daemon of another make announces it now; the report of ours is 2h old and stayed behind: "
        "kubectl -n kmesh-system delete lease kmesh-ipsec-n2",
        NOT_KNOWN,
    ]


def test_a_daemon_of_ours_that_reports_counts_whatever_the_announcement_says_yet():
    code, text = status(source=Source((*BASE[:3], go_node(), BASE[4])))
    assert (code, text.splitlines()[-1]) == (0, "all is as it should be")


def test_a_report_that_is_too_old_is_told_and_no_longer_says_ready():
    assert findings(now=NOW + 168) == []
    assert findings(now=NOW + 200) == [
        "n1: its last report is 3m old; does its daemon run?",
        "n2: its last report is 3m old; does its daemon run?",
    ]
    source = Source()
    assert "n1     unknown" in render(examine(source.read(), source.statuses(), NOW + 200), "table")


def test_a_node_without_a_daemon_matters_only_where_managed_pods_run():
    bare = (*BASE, kube.node(3))
    assert findings(manifests=bare) == []
    pod = kube.pod("web", 3, labels={MODE_LABEL: "Kmesh"})
    assert findings(manifests=(*bare, pod)) == [
        "n3: 1 managed pods run there, and no daemon announces it: other nodes drop what they would send there"
    ]


def test_a_node_info_left_behind_is_told_with_the_way_to_delete_it():
    left = (kube.node(1), *BASE[2:])
    assert findings(manifests=left)[0] == (
        "n2: there is no such Node, yet a KmeshNodeInfo; if it has left for good: "
        "kubectl -n kmesh-system delete kmeshnodeinfo n2"
    )


def test_a_node_that_is_not_ready_says_why():
    assert said(ready=False, reasons=("add SA x: no memory", "the view is old")) == [
        "n1: not ready: add SA x: no memory",
        "n1: not ready: the view is old",
    ]
    assert said(ready=False) == ["n1: not ready"]
    assert said(reasons=("uplink eth9: there is no such device",)) == ["n1: uplink eth9: there is no such device"]


def test_peers_that_are_missing_are_named_but_not_by_the_hundred():
    rows = tuple(PeerStatus(f"m{index}", False, 0, 0, 0.0) for index in range(7))
    assert said(peers_ready=3, peers_expected=10, peers=rows) == [
        "n1: it can send to 3 of 10 peers only; not to m0, m1, m2, m3, m4 and 2 more"
    ]


def test_a_node_behind_or_ahead_of_the_secret_is_told():
    newer = (*BASE[:4], kube.secret(kube.entry(2)))
    assert findings(manifests=newer)[0] == "n1: it announces SPI 1, the key in the Secret has 2"
    ahead = (*BASE[:2], kube.node_info(1, 3), *BASE[3:])
    assert findings(manifests=ahead) == [
        "n1: it announces SPI 3, above that of the key in the Secret, 1: kmeshctl secret create"
    ]


def test_a_go_node_that_has_no_key_yet_is_told_apart_from_one_that_is_behind():
    without = (*BASE[:2], kube.node_info(1, 0), *BASE[3:])
    assert findings(manifests=without) == ["n1: it announces no key yet (SPI 0), the key in the Secret has 1"]


def test_two_pods_at_one_address_are_told_and_one_that_ended_is_none_of_them():
    here, there = (kube.pod(name, 1, labels={MODE_LABEL: "Kmesh"}) for name in ("a", "b"))
    assert findings(manifests=(*BASE, here, there))[0] == (
        "pods default/a of node n1 and default/b of node n1 both have 10.244.1.10: the first is managed there, "
        "default/b is not; delete the one that is gone"
    )
    there["status"]["phase"] = "Succeeded"
    assert findings(manifests=(*BASE, here, there)) == []


def test_a_node_that_announces_what_its_node_object_does_not_have_is_told():
    lying = kube.node_info(2)
    lying["spec"]["addresses"].append("10.244.1.10")
    assert findings(manifests=(*BASE[:3], lying, BASE[4])) == [
        "n2: it announces 10.244.1.10, which its Node object does not have as InternalIP: whoever else claims that has "
        "it; is its daemon up to date, and its own?"
    ]


@pytest.mark.parametrize(("seconds", "told"), [(30, False), (90, True)])
def test_where_the_api_server_says_when_the_secret_changed_nodes_get_a_minute_to_follow(seconds, told):
    newer = kube.secret(kube.entry(2))
    changed = {30: "2026-11-24T20:44:30Z", 90: "2026-11-24T20:43:30Z"}[seconds]
    newer["metadata"] |= {
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"time": "2026-02-01T00:00:00Z"}, {"time": changed}],
    }
    assert bool(findings(manifests=(*BASE[:4], newer))) == told


def test_a_secret_whose_times_cannot_be_read_gives_no_grace():
    newer = kube.secret(kube.entry(2))
    for odd in ("yesterday", 7):
        newer["metadata"]["creationTimestamp"] = odd
        assert len(findings(manifests=(*BASE[:4], newer))) == 2


def test_a_replacement_that_does_not_come_to_its_end_names_who_is_behind():
    stuck = {"replacing_since": NOW - 720, "peers_on_newest": 0, "newest_spi": 2, "spi": 2, "spi_out": (1, 1)}
    assert said(**stuck) == ["n1: the replacement takes 12m already: 0/1 peers on SPI 2; behind are n2"]


def test_sequence_numbers_that_run_out_call_for_a_new_key():
    assert said(sequence_use=0.5) == []
    assert said(sequence_use=0.6) == [
        "n1: 60.00% of an SA's sequence numbers are used up; new key: kmeshctl secret create"
    ]


def test_drops_show_and_are_no_finding_since_anybody_can_cause_them():
    assert said(counters={"dropped_clear_text": 9}, last_drop=Drop("dropped_clear_text", NOW)) == []


def test_a_cluster_without_a_usable_key_is_told():
    assert findings(manifests=BASE[:4]) == [
        "the cluster holds no key (Secret kmesh-system/kmesh-ipsec); make one: kmeshctl secret create"
    ]
    broken = (*BASE[:4], kube.secret(b"no JSON"))
    assert findings(manifests=broken) == [
        "Secret kmesh-ipsec: ipSec: it is not JSON; nodes keep using the key that they hold"
    ]


def test_what_could_not_be_read_is_told():
    assert findings(problems=("x.yaml: line 3: no",)) == ["x.yaml: line 3: no"]
    source = Source()
    source.leases[0]["spec"]["renewTime"] = "soon"
    found = examine(source.read(), source.statuses(), NOW).findings
    assert found[0] == Finding("", "Lease kmesh-ipsec-n1: spec.renewTime: 'soon' is no time (RFC 3339)")


class StopError(Exception):
    pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("argv", "seconds"), [(["--watch"], 2.0), (["-w", "0.5"], 0.5), (["--watch=10"], 10.0)])
def test_watching_shows_it_again_and_again_until_interrupted(argv, seconds):
    source, slept = Source(), []

    def sleep(length):
        slept.append(length)
        if len(slept) == 3:
            raise StopError

    for out in (io.StringIO(), Terminal()):
        slept.clear()
        with pytest.raises(StopError):
            status(*argv, source=source, out=out, sleep=sleep, reader=Reader(out.isatty()))
        assert slept == [seconds] * 3
        assert out.getvalue().count("NODE ") == 3
        assert out.getvalue().count(HOME) == (3 if out.isatty() else 0)
        assert out.getvalue().startswith(ENTER) == out.getvalue().endswith(LEAVE) == out.isatty()
    assert source.asked == 6


def test_what_a_node_writes_into_its_report_cannot_move_the_operator_s_cursor():
    found = status(source=Source(reports=(replace(WELL, version="\x1b[2J"), replace(WELL, node="n2"))))[1]
    assert "\x1b" not in found
    assert printable("a\x1b[2Jb\n") == "a?[2Jb\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.4, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172800, "2d")],
)
def test_lengths_of_time_are_short(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0%"), (1e-12, "<0.01%"), (0.0001, "0.01%"), (1.0, "100.00%")])
def test_shares_are_in_percent_and_the_smallest_is_not_nothing(value, text):
    assert share(value) == text


def test_columns_are_as_wide_as_they_must_be_and_an_empty_cell_is_a_dash():
    assert table(("A", "B"), [("long", ""), ("", "x")]) == "A      B\nlong   -\n-      x\n"

# SPDX-License-Identifier: Apache-2.0
"""What a node's kernel holds of others, by its last report, is compared with what they announce."""

from dataclasses import replace

import pytest
from kmesh.cluster import holdings
from kmesh.cluster.objects import collect, parse
from kmesh.cluster.status import PeerStatus
from kmesh.kmeshctl.agreement import PATIENCE, Agreement

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_explain import BASE as MANIFESTS
from tests.unit.kmeshctl.test_explain import V4, ask, verdicts
from tests.unit.kmeshctl.test_status import NOW, OURS, WELL, findings

BOOT = {index: parse(kube.node_info(index)).boot_id for index in range(1, 9)}
"""What nodes announce."""
LOST = (
    "n2: its kernel holds no keys for the present incarnation of n1 by its last report, 40s old: what they send "
    "each other is lost; does its daemon run, and see the cluster?"
)


def report(index, holds, incarnation=None, *, since=NOW - 1000, at=NOW - 40, **changes):
    """Give the report of a node that holds incarnations of others by their number."""
    held = holdings.digest((f"n{other}", one) for other, one in holds.items())
    return replace(
        WELL,
        node=f"n{index}",
        services=(),
        peers=(),
        reported_at=at,
        incarnation=incarnation or BOOT[index],
        incarnation_since=since,
        holds=held,
        **changes,
    )


ONE, OTHER = report(1, {2: BOOT[2]}), report(2, {1: BOOT[1]})
FORMER = report(2, {1: "before"})


def told(*reports, now=NOW, **more):
    return findings(now, reports=reports, **more)


def test_where_all_hold_what_the_others_announce_nothing_is_said():
    assert told(ONE, OTHER) == []
    assert verdicts("web", "api", reports=(ONE, OTHER))[1]["encrypted"]


@pytest.mark.parametrize("holds", [{1: "before"}, {}])
def test_a_node_that_holds_an_earlier_incarnation_is_told_and_explain_says_the_same(holds):
    dead = report(2, holds)
    assert told(ONE, dead) == [LOST]
    found, answer = verdicts("web", "api", reports=(ONE, dead))
    assert set(found.values()) == {"dropped"}
    assert {way["reason"] for way in answer["ways"]} == {LOST}
    assert ask("web", "api", reports=(ONE, dead))[0] == 1


def test_a_report_that_is_too_old_to_count_still_tells_what_the_kernel_was_left_with():
    old = replace(FORMER, reported_at=NOW - 4000)
    sentences = told(ONE, old)
    assert sentences[0] == "n2: its last report is 66m old; does its daemon run?"
    assert "n1 by its last report, 66m old" in sentences[1]
    assert set(verdicts("web", "api", reports=(ONE, old))[0].values()) == {"dropped"}
    well = replace(OTHER, reported_at=NOW - 4000)
    assert verdicts("web", "api", reports=(ONE, well))[1]["encrypted"]


@pytest.mark.parametrize("index", [0, 1])
def test_for_a_while_after_either_began_others_may_not_hold_it_yet(index):
    reports = [ONE, FORMER]
    reports[index] = replace(reports[index], incarnation_since=NOW - PATIENCE)
    assert told(*reports) == []
    assert verdicts("web", "api", reports=reports)[1]["encrypted"]
    assert told(*reports, now=NOW + 1) != []


def test_a_large_cluster_gets_longer():
    manifests = tuple(one for index in range(1, 241) for one in (kube.node(index), kube.node_info(index, **OURS)))
    objects = collect([parse(one) for one in manifests])
    all_of_them = {info.name: info.boot_id for info in objects.node_infos if info.name != "n2"}
    dead = replace(report(2, {}), holds=holdings.digest((all_of_them | {"n1": "before"}).items()))
    for age, found in ((12.0, frozenset()), (12.5, {"n1"})):
        one = replace(ONE, incarnation_since=NOW - age)
        assert Agreement.of(objects, {"n1": one, "n2": dead}, NOW).strangers("n2") == found


def test_a_node_that_does_not_tell_what_it_is_or_holds_is_not_judged():
    silent = replace(FORMER, holds=None, incarnation="", incarnation_since=0.0)
    assert told(ONE, silent) == []
    assert told(replace(ONE, holds=None, incarnation="", incarnation_since=0.0), FORMER) == []


def test_what_the_node_tells_itself_is_not_said_twice():
    refused = replace(FORMER, peers=(PeerStatus("n1", False, 1, 0, 0.0),), peers_ready=0)
    assert told(ONE, refused) == ["n2: it can send to 0 of 1 peers only; not to n1"]


def test_others_that_went_or_announce_no_key_or_are_about_to_go_are_none_of_whom_it_should_hold():
    base = MANIFESTS[:4]
    gone = kube.node_info(3, **OURS)
    keyless = (kube.node(4), kube.node_info(4, 0, **OURS))
    objects = collect([parse(one) for one in (*base, gone, *keyless)])
    assert Agreement.of(objects, {"n1": ONE, "n2": OTHER}, NOW).strangers("n1") == frozenset()


def test_a_node_that_holds_who_has_gone_meanwhile_misses_nobody():
    assert told(ONE, report(2, {1: BOOT[1], 7: "went"})) == []


def test_what_a_node_announces_is_what_its_kernel_uses():
    other = replace(ONE, incarnation="another")
    (sentence,) = told(other, OTHER)
    assert sentence.startswith("n1: it announces another incarnation than its kernel uses by its last report, 40s old")
    assert set(verdicts("web", "api", reports=(other, OTHER))[0].values()) == {"dropped"}
    assert told(replace(other, reported_at=NOW - 5), OTHER) == [], "it may be writing"


def test_where_too_many_differ_it_is_said_and_nobody_is_named():
    manifests = [one for index in range(1, 200) for one in (kube.node(index), kube.node_info(index, **OURS))]
    objects = collect([parse(one) for one in manifests])
    reports = {"n1": report(1, dict.fromkeys(range(2, 200), "before")), "n2": OTHER}
    agreement = Agreement.of(objects, reports, NOW)
    assert agreement.strangers("n1") is None
    (sentence,) = agreement.sentences("n1")
    assert "many nodes" in sentence
    assert agreement.apart("n1", "n5") == ""
    assert agreement.doubt("n5", "n1") == f"n1: {sentence}"


def test_where_it_cannot_be_said_of_whom_explain_leaves_it_open(monkeypatch):
    monkeypatch.setattr(Agreement, "strangers", lambda self, here: None if here == "n2" else frozenset())
    found, answer = verdicts("10.244.1.10", "api", reports=(ONE, OTHER))
    assert found == {V4: "unknown", "10.244.2.11 -> 10.244.1.10": "unknown"}
    assert "many nodes" in answer["ways"][0]["reason"]


def test_a_node_whose_announcement_was_deleted_while_its_daemon_is_away_is_told():
    manifests = (*MANIFESTS[:2], MANIFESTS[2], MANIFESTS[4])
    assert "n2: it reports, and no KmeshNodeInfo announces it: other nodes drop what they would send there" in told(
        ONE, OTHER, manifests=manifests
    )


def test_where_all_agree_names_are_not_looked_through(monkeypatch):
    monkeypatch.setattr(holdings, "differing", lambda *_: pytest.fail("each of thousands of nodes would cost as much"))
    objects = collect([parse(one) for one in MANIFESTS])
    agreement = Agreement.of(objects, {"n1": ONE, "n2": OTHER}, NOW)
    assert [agreement.strangers(name) for name in ("n1", "n2", "n9")] == [frozenset()] * 3

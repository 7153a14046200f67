# SPDX-License-Identifier: Apache-2.0
import io
import json
from dataclasses import replace

import pytest
import yaml
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.snapshot import MODE_LABEL
from kmesh.cluster.status import Drop, PeerStatus
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.explain import run

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_status import BASE, NOW, WELL, Source

NAMESPACE = kube.namespace(**{MODE_LABEL: "Kmesh"})
WEB, API = kube.pod("web", 1, 10), kube.pod("api", 2, 11)
V4, V6 = "10.244.1.10 -> 10.244.2.11", "fd00:244:1::a -> fd00:244:2::b"
ONE, OTHER = replace(WELL, services=()), replace(WELL, node="n2", services=(), peers=(PeerStatus("n1", True, 1, 1, 0),))


def ask(*argv, manifests=(*BASE, NAMESPACE, WEB, API), reports=(ONE, OTHER)):
    out = io.StringIO()
    source = Source(manifests, reports)
    code = run(parser().parse_args(["explain", *argv]), source, out, clock=lambda: NOW)
    return code, out.getvalue()


def verdicts(*argv, **cluster):
    """Give the verdicts by direction; the exit status must agree with them."""
    code, text = ask(*argv, "-o", "json", **cluster)
    found = json.loads(text)
    assert found["encrypted"] == (code == 0)
    return {f"{way['source']} -> {way['destination']}": way["verdict"] for way in found["ways"]}, found


def pod(name, index, number, /, **changes):
    return kube.pod(name, index, number, **changes)


def test_between_managed_pods_of_ready_nodes_the_answer_is_yes_each_way_with_all_its_reasons():
    assert ask("web", "api") == (
        0,
        """\
default/web (10.244.1.10, fd00:244:1::a) on n1: managed, the label of namespace default says 'Kmesh'
default/api (10.244.2.11, fd00:244:2::b) on n2: managed, the label of namespace default says 'Kmesh'

10.244.1.10 -> 10.244.2.11: ENCRYPTED with SPI 1
  both are managed, and the destination's node is a ready peer of the sending node
  policy 0.0.0.0/0 -> 10.244.2.11/32, tunnel 10.10.0.1 -> 10.10.0.2
10.244.2.11 -> 10.244.1.10: ENCRYPTED with SPI 1
  both are managed, and the destination's node is a ready peer of the sending node
  policy 0.0.0.0/0 -> 10.244.1.10/32, tunnel 10.10.0.2 -> 10.10.0.1
fd00:244:1::a -> fd00:244:2::b: ENCRYPTED with SPI 1
  both are managed, and the destination's node is a ready peer of the sending node
  policy ::/0 -> fd00:244:2::b/128, tunnel fd00:10::1 -> fd00:10::2
fd00:244:2::b -> fd00:244:1::a: ENCRYPTED with SPI 1
  both are managed, and the destination's node is a ready peer of the sending node
  policy ::/0 -> fd00:244:1::a/128, tunnel fd00:10::2 -> fd00:10::1
""",
    )


@pytest.mark.parametrize(
    "ends", [("default/web", "default/api"), ("10.244.1.10", "api"), ("fd00:244:1::a", "fd00:244:2::b")]
)
def test_ends_may_be_named_in_several_ways(ends):
    assert ask(*ends)[0] == 0


def test_an_address_asks_for_that_address_only():
    assert list(verdicts("10.244.1.10", "api")[0]) == [V4, "10.244.2.11 -> 10.244.1.10"]


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_the_whole_answer(form, load):
    found = load(ask("web", "api", "-o", form)[1])
    assert found["encrypted"] is True
    assert found["ends"][0] == {
        "name": "default/web",
        "kind": "pod",
        "node": "n1",
        "addresses": ["10.244.1.10", "fd00:244:1::a"],
        "managed": True,
        "reason": "the label of namespace default says 'Kmesh'",
    }
    assert found["ways"][0] == {
        "source": "10.244.1.10",
        "destination": "10.244.2.11",
        "verdict": "encrypted",
        "reason": "both are managed, and the destination's node is a ready peer of the sending node",
        "spi": 1,
        "selector": ["0.0.0.0/0", "10.244.2.11/32"],
        "tunnel": ["10.10.0.1", "10.10.0.2"],
    }
    assert found["notes"] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {MODE_LABEL: "none"}}, "its own label says 'none'"),
        ({"hostNetwork": True, "addresses": ["10.10.0.2"]}, "it shares its node's network (hostNetwork)"),
        ({"containers": ["istio-proxy"]}, "it has an Istio sidecar"),
    ],
)
def test_a_pod_that_is_not_managed_is_told_with_the_reason_and_gets_no_encryption(changes, reason):
    other = pod("api", 2, 11, **changes)
    found, answer = verdicts("web", "api", manifests=(*BASE, NAMESPACE, WEB, other))
    assert set(found.values()) == {"clear"}
    assert (answer["ends"][1]["managed"], answer["ends"][1]["reason"]) == (False, reason)


def test_a_pod_whose_address_is_another_s_is_told_so():
    thief = pod("zzz", 2, 11)
    _, answer = verdicts("web", "zzz", manifests=(*BASE, NAMESPACE, WEB, API, thief))
    assert answer["ends"][1]["reason"].endswith(
        "but pods default/api of node n2 and default/zzz of node n2 both have fd00:244:2::b: the first is managed there, "
        "default/zzz is not; delete the one that is gone"
    )
    assert verdicts("web", "10.244.2.11", manifests=(*BASE, NAMESPACE, WEB, API, thief))[1]["ends"][1]["name"] == (
        "default/api"
    )


def test_on_one_node_nothing_is_encrypted():
    found, answer = verdicts("web", "near", manifests=(*BASE, NAMESPACE, WEB, pod("near", 1, 12)))
    assert set(found.values()) == {"clear"}
    assert answer["ways"][0]["reason"].startswith("both are on the same node")


def test_where_a_node_announces_nothing_strict_drops():
    bare = (*BASE[:3], *BASE[4:], NAMESPACE, WEB, API)
    found, answer = verdicts("web", "api", manifests=bare, reports=(ONE,))
    assert set(found.values()) == {"dropped"}
    assert (
        answer["ways"][0]["reason"] == "the destination's node is no ready peer of the sending node: dropped (strict)"
    )
    assert answer["ways"][1]["reason"].startswith("no daemon runs on the sending node")
    assert "n2 announces no key: no KmeshNodeInfo" in answer["notes"]
    loose = replace(ONE, strict=False)
    assert set(verdicts("web", "api", manifests=bare, reports=(loose,))[0].values()) == {"clear"}


def test_a_node_that_the_cluster_has_lost_is_named():
    _, answer = verdicts("web", "api", manifests=(BASE[0], *BASE[2:], NAMESPACE, WEB, API))
    assert "the cluster has no Node 'n2'; is NODE_NAME right?" in answer["notes"]


def test_a_replacement_under_way_is_answered_with_what_the_sender_reports():
    manifests = (
        *BASE[:2],
        kube.node_info(1, 2),
        kube.node_info(2, 2),
        kube.secret(kube.entry(2, bytes([2]) * 36), [kube.entry(1)]),
        NAMESPACE,
        WEB,
        API,
    )
    moved = replace(ONE, peers=(PeerStatus("n2", True, 2, 2, 0.0),))
    assert [way["spi"] for way in verdicts("web", "api", manifests=manifests, reports=(moved, OTHER))[1]["ways"]] == [
        2,
        1,
        2,
        1,
    ]


def test_a_peer_that_the_sender_cannot_send_to_is_not_encrypted_whatever_the_plan_says():
    behind = replace(ONE, peers=(PeerStatus("n2", False, 1, 0, 0.0),))
    found, answer = verdicts("10.244.1.10", "api", reports=(behind, OTHER))
    assert found == {V4: "dropped", "10.244.2.11 -> 10.244.1.10": "encrypted"}
    assert answer["ways"][0]["reason"] == "n1 reports that it cannot send to n2 yet"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("XFRM_DISABLED", "a device that leads out is kept from encryption, or from its policies"),
        ("INTERFERENCE", "a rule of somebody else stands in the way"),
        ("UPLINK", "an uplink is missing"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_what_keeps_the_kernel_of_either_node_from_its_plan_leaves_it_open_each_way(kind, words, index):
    reports = [ONE, OTHER]
    sentence = "the sentence of the node"
    reports[index] = replace(reports[index], ready=False, reasons=(sentence,), problems=("CLAIM", kind))
    found, answer = verdicts("web", "api", reports=reports)
    assert set(found.values()) == {"unknown"}
    assert {(way["reason"], way["spi"]) for way in answer["ways"]} == {
        (f"n{index + 1} reports that {words}: {sentence}", 0)
    }
    assert ask("web", "api", reports=reports)[0] == 1


def test_what_keeps_a_node_from_encrypting_changes_no_answer_that_it_cannot_send_and_counts_while_its_report_does():
    hindered = replace(ONE, problems=("INTERFERENCE",), peers=(PeerStatus("n2", False, 1, 0, 0.0),))
    assert verdicts("10.244.1.10", "api", reports=(hindered, OTHER))[0] == {
        V4: "dropped",
        "10.244.2.11 -> 10.244.1.10": "unknown",
    }
    stale = replace(hindered, reported_at=NOW - 400)
    assert set(verdicts("web", "api", reports=(stale, OTHER))[0].values()) == {"encrypted"}


@pytest.mark.parametrize("kind", ["BRIDGED", "QUARANTINE", "INVENTED"])
def test_a_problem_that_drops_packets_or_is_another_s_leaves_the_answer(kind):
    assert set(verdicts("web", "api", reports=(replace(ONE, problems=(kind,)), OTHER))[0].values()) == {"encrypted"}


def test_without_a_usable_key_nobody_can_tell():
    loose = tuple(replace(report, strict=False) for report in (ONE, OTHER))
    for secret in ((), (kube.secret(b"no JSON"),)):
        for reports in ((ONE, OTHER), loose):
            manifests = (*BASE[:4], *secret, NAMESPACE, WEB, API)
            found, answer = verdicts("web", "api", manifests=manifests, reports=reports)
            assert set(found.values()) == {"unknown"}
            assert any("nodes go on with the" in note for note in answer["notes"])


def test_without_a_usable_key_a_pod_that_is_not_managed_still_is_in_clear():
    plain = pod("plain", 2, 12, labels={MODE_LABEL: "none"})
    found, _ = verdicts("web", "plain", manifests=(*BASE[:4], NAMESPACE, WEB, plain))
    assert set(found.values()) == {"clear"}


def test_a_service_address_is_open_on_the_way_there_and_needs_its_cidr_known():
    found, answer = verdicts("web", "10.96.0.10", "--service-cidr", "10.96.0.0/12")
    assert found == {"10.244.1.10 -> 10.96.0.10": "unknown", "10.96.0.10 -> 10.244.1.10": "unknown"}
    assert answer["ways"][1]["reason"].startswith("what answers is the pod that DNAT has chosen")
    assert answer["ends"][1]["kind"] == "service"
    reported = (replace(ONE, services=("10.96.0.0/12",)), OTHER)
    assert verdicts("web", "10.96.0.10", reports=reported)[0] == found
    assert verdicts("web", "10.96.0.10")[1]["ends"][1]["kind"] == "unknown"


def test_a_node_s_own_address_is_none_of_a_pod():
    found, answer = verdicts("web", "10.10.0.2")
    assert set(found.values()) == {"clear"}
    assert (answer["ends"][1]["kind"], answer["ends"][1]["node"]) == ("node", "n2")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"ready": False, "reasons": ("add SA x: no",)}, "n1 is not ready; add SA x: no"),
        ({"reported_at": NOW - 400}, "n1: its last report is 6m old and does not count"),
        ({"nat_exemption": False}, "n1: masquerade rules there are not kept from packets"),
        (
            {"last_drop": Drop("dropped_by_guard", NOW - 30)},
            "n1: packets were dropped 30s ago, whosoever they were (dropped_by_guard)",
        ),
    ],
)
def test_what_a_report_tells_beside_is_noted(changes, note):
    _, answer = verdicts("web", "api", reports=(replace(ONE, **changes), OTHER))
    assert len(answer["notes"]) == 1
    assert answer["notes"][0].startswith(note)


def test_without_reports_the_plans_answer_and_it_is_said():
    found, answer = verdicts("web", "api", reports=())
    assert set(found.values()) == {"encrypted"}
    assert answer["notes"] == [
        f"{name}: no report of its daemon, so what its kernel holds is not known" for name in ("n1", "n2")
    ]


def test_pods_that_a_node_selects_by_pod_cidr_are_told_of():
    found, answer = verdicts("web", "api", reports=(replace(ONE, by_cidr=("n2",), by_cidr_count=1), OTHER))
    assert set(found.values()) == {"encrypted"}
    assert [way["selector"][1] for way in answer["ways"][:2]] == ["10.244.2.0/24", "10.244.1.10/32"]
    (note,) = answer["notes"]
    assert note.startswith("n1 selects pods of n2 by pod CIDR")


def test_every_problem_of_the_two_nodes_plans_is_told():
    twin = kube.node_info(3)
    twin["spec"]["addresses"] = ["10.10.0.2"]
    _, answer = verdicts("web", "api", manifests=(*BASE, NAMESPACE, WEB, API, twin))
    (note,) = [note for note in answer["notes"] if "n3" in note]
    assert note.startswith("n1: peer n3 claims 10.10.0.2, which is of peer n2; quarantined, nothing is sent to n3: ")


def test_pod_cidrs_that_another_node_announces_mean_nothing():
    twin = kube.node_info(3)
    twin["spec"]["podCIDRS"] = ["10.244.2.0/24"]
    manifests = (*BASE, NAMESPACE, WEB, API)
    assert verdicts("web", "api", manifests=(*manifests, twin)) == verdicts("web", "api", manifests=manifests)


def test_a_pod_without_an_address_has_no_traffic():
    code, text = ask("web", "new", manifests=(*BASE, NAMESPACE, WEB, pod("new", 2, 1, addresses=[], phase="Pending")))
    assert code == 1
    assert "default/new on n2: not managed, it has no address" in text
    assert text.endswith("default/new: no address\n")


def test_two_of_different_families_have_no_traffic():
    code, text = ask("10.244.1.10", "fd00:244:2::b")
    assert code == 1
    assert text.endswith("the two have no address family in common\n")


@pytest.mark.parametrize("end", ["nothing", "other/web", "a/b/c"])
def test_an_end_that_names_nothing_is_refused(end):
    with pytest.raises(
        ConfigError, match=r"no pod .* is known; give POD, NAMESPACE/POD, svc/NAME, node/NAME or an address"
    ):
        ask("web", end)


def test_the_default_namespace_can_be_another():
    flags = parser().parse_args(["explain", "web", "api"])
    flags.namespace = "shop"
    with pytest.raises(ConfigError, match="no pod shop/web"):
        run(flags, Source((*BASE, NAMESPACE, WEB, API)), io.StringIO(), clock=lambda: NOW)


def test_no_key_shows_even_where_its_derivation_would_be_needed(tmp_path):
    material = bytes(range(100, 136))
    for number, manifest in enumerate((*BASE[:4], NAMESPACE, WEB, API, kube.secret(kube.entry(1, material)))):
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(manifest))
    for form in ("text", "json", "yaml"):
        out = io.StringIO()
        flags = parser().parse_args(["explain", "web", "api", "-o", form])
        assert run(flags, FolderCluster(tmp_path), out, clock=lambda: NOW) == 0
        assert material.hex()[:8] not in out.getvalue()

# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.telling.conditions import (
    LONGEST_MESSAGE,
    REPLACEMENT_PATIENCE,
    SOONEST,
    TYPES,
    Condition,
    conditions,
    delay,
    manifest,
)
from kmesh.telling.events import PATIENCE
from kmesh.telling.record import KeyRecord, Record

from kmesh_bpf import KmeshBpfError, Operation, Problem, ProblemKind
from kmesh_bpf.core.operations import InstallNatExemption
from kmesh_bpf.errors import UnsupportedError
from tests.unit.launcher.standin import Node

READY = Record("n1", 1000.0, been_ready=True, key=KeyRecord(1, 1, generation=1), key_since=900.0, settled=1)
CONFLICT = Problem(ProblemKind.CONFLICT, "peer n3: 10.244.9.0/24 is claimed by another peer too; ignored")
QUARANTINE = Problem(ProblemKind.QUARANTINE, "peer n4: its address 10.10.0.2 is n2's; quarantined, not ready")
WELL = dict.fromkeys(TYPES, "True")


def statuses(found: dict[str, Condition]) -> dict[str, str]:
    return {name: one.status for name, one in found.items()}


def test_a_node_that_is_well_says_so_in_all_conditions():
    found = conditions(READY, {})
    assert statuses(found) == WELL
    assert {one.since for one in found.values()} == {1000.0}


@pytest.mark.parametrize(
    ("wrong", "name", "reason"),
    [
        ({"key": KeyRecord(1, 1, "no JSON", 1)}, "KeyAccepted", "Refused"),
        ({"plan_problems": (CONFLICT,)}, "PeersAccepted", "Conflict"),
        ({"plan_problems": (CONFLICT, QUARANTINE)}, "PeersAccepted", "Quarantined"),
        ({"unready": ("there is no key",), "unready_since": 1000.0 - PATIENCE}, "EncryptionReady", "NotReady"),
        ({"settled": 0, "key_since": 1000.0 - REPLACEMENT_PATIENCE}, "KeyReplaced", "Replacing"),
    ],
)
def test_what_is_wrong_is_false_with_a_reason_and_its_words_and_the_rest_stays_true(wrong, name, reason):
    found = conditions(replace(READY, attempted=1001.0, **wrong), conditions(replace(READY, attempted=500.0), {}))
    assert statuses(found) == WELL | {name: "False"}
    assert (found[name].reason, found[name].since) == (reason, 1001.0)
    assert found[name].message
    assert {one.since for other, one in found.items() if other != name} == {500.0}


def test_of_many_problems_with_peers_the_one_that_is_quarantined_is_not_cut_off():
    found = conditions(replace(READY, plan_problems=(CONFLICT,) * 99 + (QUARANTINE,)), {})
    assert QUARANTINE.sentence in found["PeersAccepted"].message


def test_what_is_under_way_for_a_moment_leaves_the_condition_and_its_generation_as_they_were():
    before = conditions(READY, {})
    moment = replace(
        READY,
        attempted=1010.0,
        key=KeyRecord(2, 1, generation=2),
        key_since=1009.0,
        unready=("the key with SPI 2 is not announced yet",),
        unready_since=1009.0,
    )
    found = conditions(moment, before)
    for name in ("EncryptionReady", "KeyReplaced"):
        assert found[name] == before[name]
    assert (found["KeyAccepted"].status, found["KeyAccepted"].generation) == ("True", 2)
    done = conditions(replace(moment, settled=2, unready=()), found)
    assert {one.generation for one in done.values()} == {2}
    assert {one.since for one in done.values()} == {1000.0}, "the status never changed"


def test_a_daemon_that_starts_says_that_it_does_not_know_yet():
    starting = Record(
        "n1", 1000.0, unready=("no pass has reached its plan yet",), unready_since=1000.0, key_since=999.0
    )
    found = conditions(starting, {})
    assert statuses(found) == {"EncryptionReady": "Unknown", "PeersAccepted": "True"}
    late = conditions(replace(starting, attempted=1000.0 + 2 * REPLACEMENT_PATIENCE), found)
    assert "KeyReplaced" not in late, "without a key there is none to replace"
    first = replace(starting, attempted=2000.0, key=KeyRecord(1, 1, generation=1), key_since=2000.0)
    assert conditions(first, late)["KeyReplaced"].status == "Unknown"


def test_other_words_are_no_reason_to_write_but_a_status_and_a_generation_are():
    before = conditions(READY, {})
    words = {name: replace(one, message="other") for name, one in before.items()}
    assert delay({}, before, 0.0, 1000.0) == 0
    assert delay(before, words, 0.0, 1000.0) == math.inf
    for change in ({"status": "False"}, {"reason": "Other"}, {"generation": 2}):
        other = before | {"KeyAccepted": replace(before["KeyAccepted"], **change)}
        assert delay(before, other, 1000.0, 1000.0 + SOONEST) == 0
        assert delay(before, other, 1000.0, 1000.0 + SOONEST / 4) == SOONEST * 3 / 4
        assert delay(before, other, 5000.0, 1000.0) == 0, "the clock was set back"


@given(
    st.lists(st.builds(Problem, st.sampled_from(ProblemKind), st.text(max_size=900)), max_size=5),
    st.text(max_size=3000),
)
def test_the_api_server_takes_whatever_they_say(problems, refused):
    record = replace(READY, plan_problems=tuple(problems), key=KeyRecord(1, 1, refused, 1))
    for one in manifest(conditions(record, {}), "n1")["status"]["conditions"]:
        assert len(one["message"]) <= LONGEST_MESSAGE
        assert one["status"] in {"True", "False", "Unknown"}
        assert one["reason"].isalpha()


def test_the_manifest_is_the_object_with_nothing_but_its_status():
    found = manifest({"KeyAccepted": Condition("True", "Accepted", "SPI 1", 1_700_000_000.5, 3)}, "n1")
    assert found == {
        "apiVersion": "kmesh.net/v1alpha1",
        "kind": "KmeshNodeInfo",
        "metadata": {"name": "n1", "namespace": "kmesh-system"},
        "status": {
            "conditions": [
                {
                    "type": "KeyAccepted",
                    "status": "True",
                    "reason": "Accepted",
                    "message": "SPI 1",
                    "lastTransitionTime": "2023-11-14T22:13:20Z",
                    "observedGeneration": 3,
                }
            ]
        },
    }


def counting(node: Node) -> Node:
    """Let the cluster count the changes of the spec, as an API server does."""
    stored = node.source.publish

    def publish(info):
        stored({**info, "metadata": {**info["metadata"], "generation": info["spec"]["spi"]}})

    node.source.publish = publish
    return node


def test_a_daemon_writes_them_for_the_generation_that_stands_in_the_cluster_and_seldom(tmp_path):
    node = counting(Node(tmp_path))
    node.steps()
    assert node.written == [], "nothing is announced, so there is no object whose status it could be"
    node.key(1)
    node.steps(60)
    written = [{one["type"]: one for one in found["status"]["conditions"]} for found in node.written]
    assert {one["status"] for one in written[-1].values()} == {"True"}
    assert {one["observedGeneration"] for one in written[-1].values()} == {1}
    assert len(written) <= 2


def without_nftables(operation: Operation) -> KmeshBpfError | None:
    return UnsupportedError("nft", "install nftables") if isinstance(operation, InstallNatExemption) else None


def test_without_nftables_all_else_is_in_place_and_the_node_is_not_ready_until_it_works(tmp_path):
    node = counting(Node(tmp_path))
    node.memory.refuse = without_nftables
    node.key(1)
    node.steps(30)
    assert (node.recorder.record.sums.ready, node.recorder.record.key.announced) == (2, 1)
    page = node.recorder.answer("/readyz")
    assert (page.status, "nft is not available: install nftables" in page.body) == (503, True)
    (ready,) = [one for one in node.written[-1]["status"]["conditions"] if one["type"] == "EncryptionReady"]
    assert (ready["status"], "nft is not available" in ready["message"]) == ("False", True)
    node.memory.refuse = lambda _: None
    node.steps(30)
    assert node.recorder.answer("/readyz").status == 200
    assert {one["status"] for one in node.written[-1]["status"]["conditions"]} == {"True"}


def test_one_that_somebody_deleted_is_announced_and_told_anew(tmp_path):
    node = counting(Node(tmp_path))
    node.key(1)
    node.steps(60)
    before = len(node.written)
    node.source.withdraw("n1")
    node.steps(30)
    assert len(node.written) == before + 1
    assert node.written[-1] == node.written[-2]


def test_a_cluster_that_counts_no_generations_is_given_none(tmp_path):
    node = Node(tmp_path)
    node.key(1)
    node.steps(30)
    assert node.written == []

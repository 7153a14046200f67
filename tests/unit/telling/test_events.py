# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.telling.events import BURST, LONGEST_MESSAGE, PATIENCE, REFILL, Note, admit, manifest, notes
from kmesh.telling.record import KeyRecord, Record

from kmesh_bpf import Problem, ProblemKind

READY = Record("n1", 1000.0, been_ready=True, key=KeyRecord(1, 1), settled=1)
UNREADY = replace(READY, unready=("there is no key",), unready_since=1000.0)


def reasons(before: Record, after: Record) -> list[str]:
    return [note.reason for note in notes(before, after)]


def test_what_lasts_is_no_news():
    lasting = replace(
        READY,
        key=KeyRecord(1, 1, "bad"),
        plan_problems=(Problem(ProblemKind.CONFLICT, "x"),),
        unready=("y",),
        unready_since=1.0,
    )
    assert notes(lasting, lasting) == ()
    assert notes(READY, replace(READY, attempted=2000.0)) == ()


def test_a_refused_key_is_told_and_another_one_again():
    refused = replace(READY, key=KeyRecord(1, 1, "its SPI 1 goes backwards"))
    note = Note("Warning", "KeyRefused", "the key in the Secret is refused: its SPI 1 goes backwards")
    assert notes(READY, refused) == (note,)
    assert reasons(refused, replace(READY, key=KeyRecord(1, 1, "no JSON"))) == ["KeyRefused"]
    assert notes(refused, READY) == ()


def test_a_problem_that_names_a_peer_is_told_and_others_are_not():
    problems = (
        Problem(ProblemKind.CONFLICT, "peer n3: 10.244.9.0/24 is claimed by another peer too; ignored"),
        Problem(ProblemKind.QUARANTINE, "peer n4: its address 10.10.0.2 is n2's; quarantined, not ready"),
        Problem(ProblemKind.UPLINK, "uplink eth9: no such device"),
        Problem(ProblemKind.KEY, "no key is known"),
    )
    found = notes(READY, replace(READY, plan_problems=problems))
    assert found == (
        Note("Warning", "PeerConflict", problems[0].sentence),
        Note("Warning", "PeerQuarantined", problems[1].sentence),
    )


def test_lost_sas_are_told_with_the_new_incarnation():
    (note,) = notes(READY, replace(READY, renewals=1, incarnation="fresh"))
    assert note.reason == "SecurityAssociationsLost"
    assert "fresh" in note.message


def test_a_replacement_is_finished_when_a_newer_spi_has_settled_and_the_first_key_is_none():
    assert reasons(READY, replace(READY, settled=2)) == ["KeyReplaced"]
    assert reasons(replace(READY, settled=0), READY) == []


def later(record: Record, seconds: float) -> Record:
    return replace(record, attempted=1000.0 + seconds)


def test_a_node_that_is_unready_for_a_moment_is_no_news():
    assert notes(READY, UNREADY) == ()
    assert notes(UNREADY, later(UNREADY, PATIENCE - 1)) == ()
    assert notes(later(UNREADY, PATIENCE - 1), later(READY, PATIENCE)) == ()


def test_a_node_that_stays_unready_is_told_once_and_so_is_that_it_is_ready_again():
    (note,) = notes(later(UNREADY, 1), later(UNREADY, PATIENCE))
    assert note == Note("Warning", "EncryptionNotReady", "there is no key")
    assert notes(later(UNREADY, PATIENCE), later(UNREADY, PATIENCE + 30)) == ()
    assert reasons(later(UNREADY, PATIENCE + 30), later(READY, PATIENCE + 31)) == ["EncryptionReady"]


def test_the_first_time_ready_is_told_however_soon():
    assert reasons(replace(UNREADY, been_ready=False), READY) == ["EncryptionReady"]


def many(number: int, reason: str = "PeerQuarantined") -> tuple[Note, ...]:
    return tuple(Note("Warning", reason, f"peer n{index}: x") for index in range(number))


def test_a_flood_is_cut_and_the_next_one_told_says_how_many_were_not():
    allowances, told = admit({}, many(BURST + 7), 0.0)
    assert told == many(BURST)
    allowances, told = admit(allowances, many(1), REFILL)
    assert told[0].message == "peer n0: x (7 events like this were not told)"
    assert admit(allowances, many(1), REFILL + 1)[1] == ()
    assert admit(allowances, many(1, "KeyRefused"), REFILL + 1)[1] != ()


@given(st.lists(st.tuples(st.floats(0, 300), st.integers(0, 12)), max_size=20), st.integers(0, 19))
def test_no_span_of_time_has_more_of_a_reason_than_the_burst_and_the_refill(arrivals, start):
    now, allowances, moments = 0.0, {}, []
    for pause, number in arrivals:
        now += pause
        allowances, told = admit(allowances, many(number), now)
        moments += [now] * len(told)
    for first in range(len(moments)):
        for last in range(first, len(moments)):
            assert last - first + 1 <= BURST + (moments[last] - moments[first]) / REFILL + 1e-6


@given(st.text(max_size=3000), st.integers(1, 10**9))
def test_no_message_is_longer_than_the_api_server_takes(text, withheld):
    allowances, _ = admit({}, many(BURST + 1), 0.0)
    allowances = {reason: replace(one, withheld=withheld) for reason, one in allowances.items()}
    _, told = admit(allowances, (Note("Warning", "PeerQuarantined", text),), 2 * REFILL)
    assert len(told[0].message) <= LONGEST_MESSAGE
    assert told[0].message.endswith("were not told)")


def test_the_event_is_about_the_node_as_a_kubelet_s_is():
    event = manifest(Note("Normal", "KeyReplaced", "m"), "n1", 1_700_000_000.25, 2)
    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "KeyReplaced", "m")
    assert event["source"] == {"component": "kmesh-daemon", "host": "n1"}
    assert event["metadata"] == {"name": f"n1.{1_700_000_000_250_000:x}-2", "namespace": "default"}
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("node", ["n1", "a" * 253, "a" * 219 + "." + "b" * 33])
def test_an_event_s_name_is_a_name_that_kubernetes_takes(node):
    name = manifest(Note("Normal", "R", "m"), node, 1_700_000_000.0, 0)["metadata"]["name"]
    assert len(name) <= 253
    assert ".." not in name
    assert "-." not in name

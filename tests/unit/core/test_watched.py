# SPDX-License-Identifier: Apache-2.0
"""Events as the programs lay them out, and their sums."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core.watched import DECISIONS, EVENT_BYTES, PASSED_CLEAR, Event, EventTotals, PacketFate, decode

A, B, C = (ip_address(f"10.244.1.{number}") for number in (1, 2, 3))


def record(decision, family, source, destination):
    pad = bytes(16)
    return struct.pack(
        "=BBBBIII16s16s", decision, family, 17, 0, 3, 98, 0xE0, (source + pad)[:16], (destination + pad)[:16]
    )


def test_every_decision_of_the_contract_has_its_meaning():
    assert set(DECISIONS) == {*contract.COUNTERS, PASSED_CLEAR}


@pytest.mark.parametrize("texts", [("10.244.1.1", "10.244.2.1"), ("fd00:1::1", "fd00:2::1")])
def test_an_event_is_read_as_it_was_laid_out(texts):
    source, destination = map(ip_address, texts)
    content = record(contract.COUNTERS.index("dropped_by_guard"), source.version, source.packed, destination.packed)
    assert len(content) == EVENT_BYTES
    assert decode(content) == Event("dropped_by_guard", source, destination, 17, 3, 98, 0xE0)


def test_what_is_no_ip_packet_has_no_addresses_and_clear_no_counter():
    assert decode(record(contract.DECISION_CLEAR, 0, b"", b"")) == Event(PASSED_CLEAR, None, None, 17, 3, 98, 0xE0)


def event(decision, source=A, destination=B, length=100):
    return Event(decision, source, destination, 17, 3, length, 0)


def test_sums_are_by_pair_and_decision_what_was_dropped_first():
    totals = EventTotals()
    totals.add([event("marked"), event("marked", length=50), event("decrypted", B, A), event("dropped_by_guard", A, C)])
    rows = totals.taken()
    assert [(pair.decision, total.packets, total.bytes) for pair, total in rows] == [
        ("dropped_by_guard", 1, 100),
        ("marked", 2, 150),
        ("decrypted", 1, 100),
    ]
    assert rows[0][0].fate is PacketFate.DROPPED
    assert totals.taken() == []


EVENTS = st.lists(
    st.builds(event, st.sampled_from(sorted(DECISIONS)), st.sampled_from([A, B, C]), st.sampled_from([A, B, None]))
)


@given(EVENTS, st.integers(1, 1000))
def test_nothing_told_is_counted_twice_or_left_out(events, one_of):
    totals = EventTotals(one_of)
    totals.add(events)
    rows = totals.taken()
    assert sum(total.packets for _, total in rows) == one_of * len(events)
    assert len({pair for pair, _ in rows}) == len(rows)
    fates = [pair.fate is PacketFate.DROPPED for pair, _ in rows]
    assert fates == sorted(fates, reverse=True)

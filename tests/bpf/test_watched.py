# SPDX-License-Identifier: Apache-2.0
"""What the programs tell of packets, read out of the ring as kmeshctl monitor does."""

import time
from ipaddress import ip_address

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.core.watched import PASSED_CLEAR
from kmesh_bpf.errors import ConflictError, UnsupportedError
from kmesh_bpf.kernel import bpf, events
from kmesh_bpf.kernel.events import watching
from tests.bpf.node import ADDRESSES, FAR, LOCAL, POD_DEVICE, REMOTE, STRANGER, UPLINK
from tests.bpf.packets import frame

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@VERSIONS
def test_each_decision_is_told_with_its_packet(strict, version):
    named = ADDRESSES[version]
    sent = [
        (Program.MARK_ENCRYPT, LOCAL, REMOTE, "marked"),
        (Program.MARK_ENCRYPT, LOCAL, STRANGER, PASSED_CLEAR),
        (Program.MARK_ENCRYPT, REMOTE, LOCAL, "dropped_spoofed"),
        (Program.MARK_DECRYPT, REMOTE, LOCAL, "dropped_clear_text"),
        (Program.LEAK_GUARD, LOCAL, FAR, "dropped_by_guard"),
    ]
    with watching(strict.root) as ring:
        assert list(ring.take()) == []
        for program, source, destination, _ in sent:
            strict.run(program, frame(version, named[source], named[destination]))
        told = list(ring.take())
        assert ring.lost() == 0
    assert [event.decision for event in told] == [decision for *_, decision in sent]
    for event, (program, source, destination, _) in zip(told, sent, strict=True):
        assert (event.source, event.destination) == (ip_address(named[source]), ip_address(named[destination]))
        device = POD_DEVICE if program is Program.MARK_ENCRYPT else UPLINK
        assert event.ifindex == strict.devices.ifindex[device]
        assert event.length == len(frame(version, named[source], named[destination]))
    assert told[0].mark == 0xE0


def test_what_is_no_ip_packet_has_no_addresses(strict):
    cut = frame(4, ADDRESSES[4][LOCAL], ADDRESSES[4][REMOTE])[:14] + b"\x30" + bytes(60)  # IP version 3
    with watching(strict.root) as ring:
        list(ring.take())
        strict.run(Program.MARK_ENCRYPT, cut)
        (event,) = ring.take()
    assert (event.decision, event.source, event.destination) == ("parse_failure", None, None)


def test_nobody_is_told_before_he_asks_nor_afterwards(strict):
    packet = frame(4, ADDRESSES[4][LOCAL], ADDRESSES[4][REMOTE])
    strict.run(Program.MARK_ENCRYPT, packet)
    with watching(strict.root) as ring:
        strict.run(Program.MARK_ENCRYPT, packet)  # not asked for yet
        assert list(ring.take()) == []
        strict.run(Program.MARK_ENCRYPT, packet)
        assert len(list(ring.take())) == 1
    strict.run(Program.MARK_ENCRYPT, packet)
    with watching(strict.root) as ring:
        assert list(ring.take()) == []


def test_who_was_killed_is_told_no_more(strict, monkeypatch):
    packet = frame(4, ADDRESSES[4][LOCAL], ADDRESSES[4][REMOTE])
    monkeypatch.setattr(events, "ASKED_SECONDS", 0.0)
    with watching(strict.root) as ring:
        list(ring.take())
        time.sleep(0.001)
        strict.run(Program.MARK_ENCRYPT, packet)
        assert list(ring.take()) == []


def test_a_full_ring_loses_events_and_says_how_many(strict):
    packet = frame(4, ADDRESSES[4][FAR], ADDRESSES[4][LOCAL])  # spoofed, whatever device it comes by
    with watching(strict.root) as ring:
        list(ring.take())
        total = 6000  # of 48 bytes and a header of 8, in 256 KiB
        bpf.test_run(strict.build.path(Program.MARK_ENCRYPT), packet, repeat=total)
        told = len(list(ring.take()))
        assert 0 < told < total
        assert told + ring.lost() == total
        bpf.test_run(strict.build.path(Program.MARK_ENCRYPT), packet)
        assert len(list(ring.take())) == 1


def test_of_a_sample_about_one_in_so_many_is_told(strict):
    packet = frame(4, ADDRESSES[4][FAR], ADDRESSES[4][LOCAL])
    with watching(strict.root, one_of=10) as ring:
        list(ring.take())
        bpf.test_run(strict.build.path(Program.MARK_ENCRYPT), packet, repeat=2000)
        told = len(list(ring.take()))
    assert 100 < told < 320  # six standard deviations and more


def test_one_at_a_time_is_told(strict):
    with watching(strict.root), pytest.raises(ConflictError, match="somebody else does"), watching(strict.root):
        pass


def test_without_a_build_it_says_what_to_look_for(root):
    with pytest.raises(UnsupportedError, match="is a daemon of this version running"), watching(root):
        pass

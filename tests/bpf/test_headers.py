# SPDX-License-Identifier: Apache-2.0
"""What stands in front of a packet, between its headers and in place of them: each program finds its way, or says that it cannot."""

import pytest

from kmesh_bpf.core.state import Program
from tests.bpf.model import SHOT, UNSPEC
from tests.bpf.node import (
    ADDRESSES,
    LOCAL,
    OURSELVES,
    PEER,
    REMOTE,
)
from tests.bpf.packets import (
    ARP,
    DESTINATION_OPTIONS,
    ESP,
    FRAGMENT,
    HOP_BY_HOP,
    IPV4,
    IPV6,
    LATER_FRAGMENT,
    LLDP,
    MORE_FRAGMENTS,
    ROUTING,
    TCP,
    ethernet,
    frame,
    ip4,
    ip6,
)

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PROGRAMS = pytest.mark.parametrize("program", list(Program), ids=lambda program: program.value)


@pytest.mark.parametrize(
    "more",
    [
        {"options": b"\x01" * 8},
        {"options": b"\x07" * 40},
        {"fragment": MORE_FRAGMENTS},
        {"fragment": LATER_FRAGMENT},
        {"fragment": LATER_FRAGMENT, "payload": b""},
    ],
)
def test_ip_options_and_fragments_change_nothing(strict, more):
    named = ADDRESSES[4]
    assert strict.run(Program.MARK_ENCRYPT, frame(4, named[LOCAL], named[REMOTE], **more))[1] == 0xE0
    assert strict.run(Program.MARK_DECRYPT, frame(4, PEER[4], OURSELVES[4], ESP, **more))[2] == "esp_known_peer"
    assert strict.run(Program.MARK_DECRYPT, frame(4, named[REMOTE], named[LOCAL], **more))[0] == SHOT
    assert strict.run(Program.LEAK_GUARD, frame(4, named[LOCAL], named[REMOTE], **more))[0] == SHOT


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ([HOP_BY_HOP], True),
        ([ROUTING, DESTINATION_OPTIONS], True),
        ([FRAGMENT], True),
        ([HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS], True),
        ([DESTINATION_OPTIONS] * 6, True),
        ([DESTINATION_OPTIONS] * 7, False),
    ],
)
def test_esp_is_found_behind_ipv6_extension_headers_up_to_six(strict, chain, found):
    packet = frame(6, PEER[6], OURSELVES[6], ESP, chain=chain)
    assert strict.run(Program.MARK_DECRYPT, packet)[2] == ("esp_known_peer" if found else None)


def test_esp_is_found_in_later_ipv6_fragments_whose_payload_is_not_taken_for_headers(strict):
    esp = frame(6, PEER[6], OURSELVES[6], ESP, chain=[HOP_BY_HOP, FRAGMENT], offset=LATER_FRAGMENT)
    assert strict.run(Program.MARK_DECRYPT, esp)[2] == "esp_known_peer"
    options = frame(6, PEER[6], OURSELVES[6], ESP, chain=[FRAGMENT, DESTINATION_OPTIONS], offset=LATER_FRAGMENT)
    assert strict.run(Program.MARK_DECRYPT, options)[2] is None


@pytest.mark.parametrize("reserved", [1, 3, 255])
def test_the_reserved_byte_of_a_fragment_header_is_no_length(strict, reserved):
    """RFC 8200 section 4.5: it is ignored. Every other extension header has its length there."""
    esp = frame(6, PEER[6], OURSELVES[6], ESP, chain=[FRAGMENT, DESTINATION_OPTIONS], reserved=reserved)
    assert strict.run(Program.MARK_DECRYPT, esp)[2] == "esp_known_peer"


def test_a_long_ipv6_extension_header_is_stepped_over_and_one_that_is_cut_ends_the_walk(strict):
    named, long = ADDRESSES[6], bytes([ESP, 2]) + bytes(22) + bytes(32)
    stepped_over = frame(6, PEER[6], OURSELVES[6], ROUTING, payload=long)
    assert strict.run(Program.MARK_DECRYPT, stepped_over)[2] == "esp_known_peer"
    for length in range(8):
        cut = long[:length]
        from_peer = frame(6, PEER[6], OURSELVES[6], ROUTING, payload=cut)
        assert strict.run(Program.MARK_DECRYPT, from_peer, 0x12) == (UNSPEC, 0x12, None)
        clear = frame(6, named[REMOTE], named[LOCAL], ROUTING, payload=cut)
        assert strict.run(Program.MARK_DECRYPT, clear)[0] == SHOT


@VERSIONS
def test_a_packet_that_is_yet_to_be_segmented_is_treated_like_its_segments(strict, version):
    named, more = ADDRESSES[version], {"protocol": TCP, "payload": bytes(3000)}
    out = frame(version, named[LOCAL], named[REMOTE], **more)
    back = frame(version, named[REMOTE], named[LOCAL], **more)
    assert strict.run(Program.MARK_ENCRYPT, out, segment=1000)[1:] == (0xE0, "marked")
    assert strict.run(Program.LEAK_GUARD, out, segment=1000)[0] == SHOT
    assert strict.run(Program.MARK_DECRYPT, back, segment=1000)[0] == SHOT


@PROGRAMS
@pytest.mark.parametrize("ethertype", [ARP, LLDP])
def test_what_is_not_ip_passes_untouched(strict, program, ethertype):
    assert strict.run(program, ethernet(ethertype, bytes(60)), 0x12) == (UNSPEC, 0x12, None)


@PROGRAMS
def test_a_wrong_version_or_header_length_is_a_parse_failure(strict, program):
    for ethertype, first, body in (
        (IPV4, 0x55, ip4("10.0.0.1", "10.0.0.2")),
        (IPV4, 0x44, ip4("10.0.0.1", "10.0.0.2")),
        (IPV6, 0x50, ip6("fd00::1", "fd00::2")),
    ):
        packet = ethernet(ethertype, bytes([first]) + body[1:])
        assert strict.run(program, packet, 0x12) == (UNSPEC, 0x12, "parse_failure")

# SPDX-License-Identifier: Apache-2.0
"""Packets that quote or carry packets, and packets behind tags: ICMP errors, tunnels, VLANs, MPLS labels, sessions."""

import struct
from ipaddress import ip_address

import pytest

from kmesh_bpf.core.state import Program
from tests.bpf.model import SHOT, UNSPEC
from tests.bpf.node import ADDRESSES, FAR, LOCAL, OURSELVES, PEER, REMOTE, STRANGER
from tests.bpf.packets import (
    DESTINATION_OPTIONS,
    ERRORS,
    ESP,
    FRAGMENT,
    HOP_BY_HOP,
    IPV4,
    IPV6,
    LABELS,
    LATER_FRAGMENT,
    NO_ERRORS,
    PROVIDER_VLAN,
    ROUTING,
    SESSION,
    TCP,
    TYPES,
    UDP,
    VLAN,
    error,
    ethernet,
    ip4,
    ip6,
    packet,
    tagged,
)

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PROGRAMS = pytest.mark.parametrize("program", list(Program), ids=lambda program: program.value)
PASSED, DROPPED = (UNSPEC, 0, None), (SHOT, 0, "dropped_by_guard")


def quoting(version, one, other):
    named = ADDRESSES[version]
    return packet(version, named[one], named[other], TCP)


@VERSIONS
@pytest.mark.parametrize("pair", [(LOCAL, REMOTE), (REMOTE, LOCAL), (LOCAL, FAR), (FAR, LOCAL)])
def test_the_guards_drop_an_error_that_tells_of_a_managed_pair_whoever_is_told(strict, permissive, version, pair):
    quoted, named = quoting(version, *pair), ADDRESSES[version]
    for kind in ERRORS[version]:
        for target in (named[REMOTE], named[STRANGER], PEER[version]):
            told = ethernet(TYPES[version], error(version, OURSELVES[version], target, quoted, kind))
            for guard in (Program.LEAK_GUARD, Program.INNER_GUARD):
                assert strict.run(guard, told) == DROPPED
                lenient = (UNSPEC, 0, "allowed_clear_text") if FAR in pair else DROPPED
                assert permissive.run(guard, told) == lenient


@VERSIONS
def test_an_error_to_a_pod_of_this_node_stays_on_the_node_and_passes_the_inner_guard_only(strict, version):
    """Path MTU: the node tells a pod behind a bridge that its packet was too large; on an uplink it would leave."""
    quoted, local = quoting(version, LOCAL, REMOTE), ADDRESSES[version][LOCAL]
    told = ethernet(TYPES[version], error(version, OURSELVES[version], local, quoted))
    assert strict.run(Program.INNER_GUARD, told) == PASSED
    assert strict.run(Program.LEAK_GUARD, told) == DROPPED


@VERSIONS
@pytest.mark.parametrize("pair", [(LOCAL, REMOTE), (FAR, LOCAL)])
def test_an_error_in_clear_that_tells_a_pod_of_a_managed_pair_is_dropped(strict, permissive, version, pair):
    quoted, named = quoting(version, *pair), ADDRESSES[version]
    for kind in ERRORS[version]:
        told = ethernet(TYPES[version], error(version, PEER[version], named[LOCAL], quoted, kind))
        assert strict.run(Program.MARK_DECRYPT, told) == (SHOT, 0, "dropped_clear_text")
        assert permissive.run(Program.MARK_DECRYPT, told, 0x40E0) == (UNSPEC, 0x4000, "allowed_clear_text")
    elsewhere = ethernet(TYPES[version], error(version, PEER[version], named[STRANGER], quoted))
    assert strict.run(Program.MARK_DECRYPT, elsewhere) == PASSED


@VERSIONS
def test_other_messages_and_errors_on_other_pairs_pass(strict, version):
    named = ADDRESSES[version]
    kinds = [(kind, (LOCAL, REMOTE)) for kind in NO_ERRORS[version]]
    for kind, pair in [*kinds, *((None, pair) for pair in [(LOCAL, LOCAL), (REMOTE, FAR), (LOCAL, STRANGER)])]:
        body = error(version, OURSELVES[version], named[LOCAL], quoting(version, *pair), kind)
        for program in (Program.LEAK_GUARD, Program.INNER_GUARD, Program.MARK_DECRYPT):
            assert strict.run(program, ethernet(TYPES[version], body)) == PASSED


def test_a_quoted_packet_is_found_behind_options_and_extension_headers_and_with_options_of_its_own(strict):
    quoted4 = ip4(ADDRESSES[4][LOCAL], ADDRESSES[4][REMOTE], options=bytes(40))
    behind = error(4, OURSELVES[4], ADDRESSES[4][STRANGER], quoted4, options=b"\x01" * 40)
    assert strict.run(Program.LEAK_GUARD, ethernet(IPV4, behind)) == DROPPED
    quoted6 = ip6(ADDRESSES[6][REMOTE], ADDRESSES[6][LOCAL], chain=[HOP_BY_HOP, ROUTING])
    chain = [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT]
    behind = error(6, OURSELVES[6], ADDRESSES[6][STRANGER], quoted6, chain=chain)
    assert strict.run(Program.LEAK_GUARD, ethernet(IPV6, behind)) == DROPPED


@VERSIONS
def test_what_looks_like_an_error_and_is_none(strict, version):
    """A later fragment has no ICMP header, a quote that is cut tells nothing, and other protocols quote nothing."""
    named, quoted = ADDRESSES[version], quoting(version, LOCAL, REMOTE)
    ethertype = TYPES[version]
    later = {"fragment": LATER_FRAGMENT} if version == 4 else {"chain": [FRAGMENT], "offset": LATER_FRAGMENT}
    short = error(version, OURSELVES[version], named[STRANGER], quoted[: len(quoted) - 33])
    udp = packet(version, OURSELVES[version], named[STRANGER], UDP, payload=b"\x03" + bytes(7) + quoted)
    for body in (error(version, OURSELVES[version], named[STRANGER], quoted, **later), short, udp):
        assert strict.run(Program.LEAK_GUARD, ethernet(ethertype, body)) == PASSED


GRE, CARRIES_ETHERNET, BRIDGED = 47, 143, 0x6558
CARRIERS = {
    "as it is": lambda version, body: ({4: 4, 6: 41}[version], body),
    "GRE": lambda version, body: (GRE, struct.pack("!HH", 0, TYPES[version]) + body),
    "GRE with all fields": lambda version, body: (GRE, struct.pack("!HHIII", 0xB000, TYPES[version], 1, 2, 3) + body),
    "GRE with a frame": lambda version, body: (GRE, struct.pack("!HH", 0, BRIDGED) + ethernet(TYPES[version], body)),
    "a frame": lambda version, body: (CARRIES_ETHERNET, ethernet(TYPES[version], body)),
}


def carrying(outer, carrier, version, body, **more):
    protocol, payload = CARRIERS[carrier](version, body)
    source, target = OURSELVES[outer], ADDRESSES[outer][STRANGER]
    return ethernet(TYPES[outer], packet(outer, source, target, protocol, payload=payload, **more))


@pytest.mark.parametrize("outer", [4, 6])
@VERSIONS
@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_a_route_has_wrapped_before_xfrm_saw_it_does_not_leave(strict, permissive, outer, version, carrier):
    """As the kernel's `encap seg6` and `encap bpf` do: no device of that tunnel has a guard."""
    named = ADDRESSES[version]
    for target in (REMOTE, FAR):
        wrapped = carrying(outer, carrier, version, packet(version, named[LOCAL], named[target]))
        assert strict.run(Program.LEAK_GUARD, wrapped, 0x40E0) == (SHOT, 0x40E0, "dropped_by_guard")
        lenient = (UNSPEC, 0, "allowed_clear_text") if target == FAR else DROPPED
        assert permissive.run(Program.LEAK_GUARD, wrapped) == lenient
        assert strict.run(Program.INNER_GUARD, wrapped) == PASSED
    for pair in ((LOCAL, LOCAL), (LOCAL, STRANGER), (STRANGER, REMOTE), (REMOTE, LOCAL)):
        other = carrying(outer, carrier, version, quoting(version, *pair))
        assert strict.run(Program.LEAK_GUARD, other) == PASSED


def test_a_carried_packet_is_found_behind_options_and_extension_headers_and_not_in_a_later_fragment(strict):
    inner = packet(4, ADDRESSES[4][LOCAL], ADDRESSES[4][REMOTE])
    assert strict.run(Program.LEAK_GUARD, carrying(4, "GRE", 4, inner, options=b"\x01" * 40)) == DROPPED
    chain = [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT]
    assert strict.run(Program.LEAK_GUARD, carrying(6, "as it is", 4, inner, chain=chain)) == DROPPED
    assert strict.run(Program.LEAK_GUARD, carrying(4, "as it is", 4, inner, fragment=LATER_FRAGMENT)) == PASSED
    cut = carrying(4, "a frame", 4, inner)[: 14 + 20 + 14 + 19]
    assert strict.run(Program.LEAK_GUARD, cut) == PASSED


LABEL_IN_GRE = (GRE, struct.pack("!HHI", 0, LABELS, 0x100))


def test_what_carries_no_packet_that_can_be_read_passes(strict):
    for protocol, payload in (LABEL_IN_GRE, (CARRIES_ETHERNET, ethernet(0x0806, bytes(28))), (4, b"\x50" + bytes(60))):
        body = packet(4, OURSELVES[4], ADDRESSES[4][STRANGER], protocol, payload=payload)
        assert strict.run(Program.LEAK_GUARD, ethernet(IPV4, body)) == PASSED


def routed(source, first, segments, *, kind, left):
    """An IPv6 packet with a routing header: of kind 4 (RFC 8754) the last segment comes first, else (RFC 5095) last."""
    listed = b"".join(ip_address(one).packed for one in segments)
    header = struct.pack("!BBBBI", UDP, len(listed) // 8, kind, left, 0) + listed
    return ethernet(IPV6, ip6(source, first, ROUTING, payload=header + bytes(32)))


@pytest.mark.parametrize("kind", [0, 2, 4])
def test_where_a_routing_header_leads_at_last_decides_too(strict, kind):
    named = ADDRESSES[6]

    def run(source, last, left=1, first=STRANGER):
        segments = [last, named[STRANGER]]
        packet_ = routed(named[source], named[first], segments if kind == 4 else segments[::-1], kind=kind, left=left)
        return strict.run(Program.LEAK_GUARD, packet_)

    assert run(LOCAL, named[REMOTE]) == run(LOCAL, named[FAR]) == DROPPED
    assert run(LOCAL, named[STRANGER], first=REMOTE) == DROPPED
    assert run(LOCAL, named[REMOTE], left=0) == PASSED  # it has been there
    assert run(STRANGER, named[REMOTE]) == run(LOCAL, named[STRANGER]) == PASSED


def test_a_routing_header_hides_no_packet_behind_it_nor_the_other_way_round(strict):
    named = ADDRESSES[6]

    def both(last, inner):
        header = struct.pack("!BBBBI", 41, 2, 4, 1, 0) + ip_address(last).packed
        return ethernet(IPV6, ip6(named[LOCAL], named[STRANGER], ROUTING, payload=header + inner))

    assert strict.run(Program.LEAK_GUARD, both(named[REMOTE], quoting(6, STRANGER, STRANGER))) == DROPPED
    assert strict.run(Program.LEAK_GUARD, both(named[STRANGER], quoting(6, LOCAL, REMOTE))) == DROPPED
    assert strict.run(Program.LEAK_GUARD, both(named[STRANGER], quoting(6, LOCAL, LOCAL))) == PASSED


TAGS = [
    {"vlans": [VLAN]},
    {"vlans": [PROVIDER_VLAN, VLAN]},
    {"vlans": [0x9100, 0x9200, 0x9300]},
    {"labels": 1},
    {"labels": 8},
    {"session": "plain"},
    {"session": "compressed"},
    {"session": "plain", "labels": 2},
    {"vlans": [PROVIDER_VLAN, VLAN], "session": "plain", "labels": 5},
]
TOO_MANY = [{"vlans": [VLAN] * 9}, {"labels": 9}, {"vlans": [VLAN] * 2, "session": "plain", "labels": 6}]


@VERSIONS
@pytest.mark.parametrize("tags", TAGS, ids=str)
def test_tags_hide_nothing(strict, version, tags):
    named = ADDRESSES[version]
    quoted = quoting(version, LOCAL, REMOTE)
    out = tagged(version, packet(version, named[LOCAL], named[REMOTE]), **tags)
    back = tagged(version, packet(version, named[REMOTE], named[LOCAL]), **tags)
    told = tagged(version, error(version, OURSELVES[version], named[STRANGER], quoted), **tags)
    esp = tagged(version, packet(version, PEER[version], OURSELVES[version], ESP), **tags)
    assert strict.run(Program.MARK_ENCRYPT, out)[1:] == (0xE0, "marked")
    assert strict.run(Program.MARK_DECRYPT, back) == (SHOT, 0, "dropped_clear_text")
    assert strict.run(Program.MARK_DECRYPT, esp)[2] == "esp_known_peer"
    for guard in (Program.LEAK_GUARD, Program.INNER_GUARD):
        assert strict.run(guard, out) == DROPPED
        assert strict.run(guard, told) == DROPPED


@VERSIONS
@pytest.mark.parametrize("tags", TOO_MANY, ids=str)
def test_more_tags_than_are_looked_through_are_dropped_where_packets_leave_and_come(strict, permissive, version, tags):
    named = ADDRESSES[version]
    packet_ = tagged(version, packet(version, named[STRANGER], named[STRANGER]), **tags)
    for program in (Program.MARK_DECRYPT, Program.LEAK_GUARD, Program.INNER_GUARD, Program.POD_GUARD):
        assert strict.run(program, packet_) == (SHOT, 0, "parse_failure")
        assert permissive.run(program, packet_) == (UNSPEC, 0, "parse_failure")
    assert strict.run(Program.MARK_ENCRYPT, packet_) == (UNSPEC, 0, "parse_failure")


@PROGRAMS
@pytest.mark.parametrize(
    "behind",
    [
        ethernet(VLAN, b"\x00\x05\x08\x06" + bytes(28)),  # ARP
        ethernet(VLAN, b"\x00\x05\x00\x26" + b"\x42\x42\x03" + bytes(35)),  # a length: LLC
        ethernet(LABELS, b"\x00\x01\x01\x40" + bytes(40)),  # a pseudowire's control word
        ethernet(SESSION, b"\x11\x00\x00\x01\x00\x0a\xc0\x21" + bytes(40)),  # LCP
    ],
)
def test_what_is_not_ip_behind_its_tags_passes_untouched(strict, program, behind):
    assert strict.run(program, behind, 0x12) == (UNSPEC, 0x12, None)


@PROGRAMS
@pytest.mark.parametrize("tags", [{"vlans": [VLAN, VLAN]}, {"labels": 2}, {"session": "plain"}], ids=str)
def test_tags_cut_before_their_end_are_a_parse_failure(strict, program, tags):
    whole = tagged(4, packet(4, ADDRESSES[4][STRANGER], ADDRESSES[4][STRANGER]), **tags)
    header = len(whole) - 52
    for length in range(15, header + 1):
        assert strict.run(program, whole[:length], 0x12) == (UNSPEC, 0x12, "parse_failure")

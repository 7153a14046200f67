# SPDX-License-Identifier: Apache-2.0
"""Packets as bytes, built by hand: just what the programs on TC look at, checksums left out."""

import struct
from ipaddress import ip_address

ICMP, TCP, UDP, ESP, ICMPV6 = 1, 6, 17, 50, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
IPV4, IPV6, ARP, VLAN, LLDP = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88CC
PROVIDER_VLAN, LABELS, MULTICAST_LABELS, SESSION = 0x88A8, 0x8847, 0x8848, 0x8864
MORE_FRAGMENTS = 0x2000
LATER_FRAGMENT = 185  # offset in units of 8 bytes
HEADER_BYTES = {4: 20, 6: 40}
TYPES = {4: IPV4, 6: IPV6}
PPP = {IPV4: 0x21, IPV6: 0x57, LABELS: 0x281, MULTICAST_LABELS: 0x283}
ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}
NO_ERRORS = {4: (0, 8, 13), 6: (0, 128, 135, 137)}


def ip4(src, dst, protocol=UDP, options=b"", fragment=0, payload=bytes(32)):
    length = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | (5 + len(options) // 4), 0, length, 1, fragment, 64, protocol, 0)
    return head + ip_address(src).packed + ip_address(dst).packed + options + payload


def ip6(src, dst, protocol=UDP, chain=(), offset=0, reserved=0, payload=bytes(32)):
    """``chain``: extension headers before the protocol; ``offset``, ``reserved``: of a fragment header among them."""
    extensions = b""
    for number, following in zip(chain, [*chain, protocol][1:], strict=True):
        rest = struct.pack("!HI", offset << 3, 1) if number == FRAGMENT else bytes(6)
        extensions += bytes([following, reserved if number == FRAGMENT else 0]) + rest
    first = chain[0] if chain else protocol
    head = struct.pack("!IHBB", 0x60000000, len(extensions) + len(payload), first, 64)
    return head + ip_address(src).packed + ip_address(dst).packed + extensions + payload


def packet(version, src, dst, protocol=UDP, **more):
    return (ip4 if version == 4 else ip6)(src, dst, protocol, **more)


def ethernet(ethertype, body):
    return bytes(12) + ethertype.to_bytes(2, "big") + body


def frame(version, src, dst, protocol=UDP, **more):
    return ethernet(TYPES[version], packet(version, src, dst, protocol, **more))


def error(version, src, dst, quoted, kind=None, **more):
    """An ICMP message that quotes a packet: an error, unless ``kind`` is the type of another one."""
    kind = ERRORS[version][0] if kind is None else kind
    payload = struct.pack("!BBHI", kind, 0, 0, 0) + quoted
    return packet(version, src, dst, ICMP if version == 4 else ICMPV6, payload=payload, **more)


def tagged(version, body, vlans=(), session=None, labels=0, label_type=LABELS):
    """A frame with tags in band: VLANs by their types, a PPPoE session ("plain", "compressed": PPP's number), labels."""
    ethertype = TYPES[version]
    for left in range(labels):
        body, ethertype = struct.pack("!I", 16 << 12 | (0x100 if left == 0 else 0) | 64) + body, label_type
    if session:
        number = PPP[ethertype].to_bytes(2, "big")
        number = number[1:] if session == "compressed" else number
        body, ethertype = struct.pack("!BBHH", 0x11, 0, 7, len(number + body)) + number + body, SESSION
    for vlan in reversed(vlans):
        body, ethertype = struct.pack("!HH", 5, ethertype) + body, vlan
    return ethernet(ethertype, body)

"""Packets as bytes, built by hand: just what the programs on TC look at, checksums left out."""

import struct
from ipaddress import ip_address

TCP, UDP, ESP = 6, 17, 50
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
IPV4, IPV6, ARP, VLAN, LLDP = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88CC
MORE_FRAGMENTS = 0x2000
LATER_FRAGMENT = 185  # offset in units of 8 bytes
HEADER_BYTES = {4: 20, 6: 40}


def ip4(src, dst, protocol=UDP, options=b"", fragment=0, payload=bytes(32)):
    length = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | (5 + len(options) // 4), 0, length, 1, fragment, 64, protocol, 0)
    return head + ip_address(src).packed + ip_address(dst).packed + options + payload


def ip6(src, dst, protocol=UDP, chain=(), offset=0, payload=bytes(32)):
    """``chain``: extension headers before the protocol; ``offset``: that of a fragment header among them."""
    extensions = b""
    for number, following in zip(chain, [*chain, protocol][1:], strict=True):
        rest = struct.pack("!HI", offset << 3, 1) if number == FRAGMENT else bytes(6)
        extensions += bytes([following, 0]) + rest
    first = chain[0] if chain else protocol
    head = struct.pack("!IHBB", 0x60000000, len(extensions) + len(payload), first, 64)
    return head + ip_address(src).packed + ip_address(dst).packed + extensions + payload


def packet(version, src, dst, protocol=UDP, **more):
    return (ip4 if version == 4 else ip6)(src, dst, protocol, **more)


def ethernet(ethertype, body):
    return bytes(12) + ethertype.to_bytes(2, "big") + body


def frame(version, src, dst, protocol=UDP, **more):
    return ethernet(IPV4 if version == 4 else IPV6, packet(version, src, dst, protocol, **more))

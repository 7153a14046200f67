# SPDX-License-Identifier: Apache-2.0
"""Which addresses can be a pod's or a node's, whatever anybody writes. Pure.

Private, shared, documentation and reserved ranges (240.0.0.0/4 among them, which clouds give to pods) are: people use
them, and the kernel routes them.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from kmesh_bpf.core.view import Address

BROADCAST = (1 << 32) - 1


def impossible(address: Address) -> str | None:
    """Say what an address is that no pod or node can be reached at from another node; None: it can be one's.

    The kernel's own kinds (RFC 1122 section 3.2.1.3, RFC 4291 section 2), which kubelet refuses for a node as well.
    """
    if isinstance(address, IPv4Address):
        return _impossible4(int(address))
    if address.scope_id is not None:
        return "an address with a zone, which means nothing on another node"
    if address.ipv4_mapped is not None:
        return f"the IPv4 address {address.ipv4_mapped} written as an IPv6 address"
    first = int(address) >> 112
    if first >> 8 == 0xFF:
        return "a multicast address"
    if first & 0xFFC0 == 0xFE80:
        return "a link-local address"
    return {0: "the unspecified address", 1: "a loopback address"}.get(int(address))


def _impossible4(value: int) -> str | None:
    first = value >> 24
    if first == 127:
        return "a loopback address"
    if first & 0xF0 == 0xE0:
        return "a multicast address"
    if value >> 16 == 0xA9FE:
        return "a link-local address"
    return {0: "the unspecified address", BROADCAST: "the broadcast address"}.get(value)

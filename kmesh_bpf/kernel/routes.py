# SPDX-License-Identifier: Apache-2.0
"""Which devices routes lead out by, and which routes wrap packets: read cheaply, for an overlay has thousands."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.state import Detour
from kmesh_bpf.errors import DecodeError, KernelError
from kmesh_bpf.kernel.netlink import NetlinkSocket, align, attributes, message

HEADER = ffi.sizeof("struct rtmsg")
FAMILY, LENGTH, TYPE = (ffi.offsetof("struct rtmsg", name) for name in ("rtm_family", "rtm_dst_len", "rtm_type"))
HOST = {int(socket.AF_INET): 32, int(socket.AF_INET6): 128}
"""Prefix lengths of one address, by family; routes of other families (MPLS, multicast) count for nothing."""
BY_OBJECT = 0
"""Stands for the devices of a nexthop object that the kernel names by its number only: no device has this ifindex."""


WRAPPING = {
    lib.LWTUNNEL_ENCAP_ILA: "ila",
    lib.LWTUNNEL_ENCAP_SEG6: "seg6",
    lib.LWTUNNEL_ENCAP_BPF: "bpf",
    lib.LWTUNNEL_ENCAP_SEG6_LOCAL: "seg6local",
    lib.LWTUNNEL_ENCAP_RPL: "rpl",
}
"""What a route may do to a packet that is forwarded before its policy is looked up (LWTUNNEL_STATE_INPUT_REDIRECT)."""


@dataclass(frozen=True, slots=True)
class Routes:
    """What all routes tell. ``leading``: devices (ifindex) by which one leads out; ``detours``: those that wrap."""

    leading: frozenset[int] = frozenset()
    detours: frozenset[Detour] = frozenset()


def read(sock: NetlinkSocket) -> Routes:
    """Read the routes of all tables.

    Raises:
        DecodeError, KernelError: the kernel's answer is not whole, or it refused.

    """
    request = message(lib.RTM_GETROUTE, 0, bytes(HEADER))
    leading: set[int] = set()
    detours = set()
    for _, body in sock.dump(request):
        leading.update(devices_out(body))
        if detour := wrapping(body):
            detours.add(detour)
    if BY_OBJECT in leading:
        leading.discard(BY_OBJECT)
        leading.update(_of_nexthops(sock))
    return Routes(frozenset(leading), frozenset(detours))


def wrapping(body: bytes) -> Detour | None:
    """Give a route (the body of its message) that does something to packets before XFRM sees them; None: it does not.

    Raises:
        DecodeError: it is cut short, or a length in it points elsewhere.

    """
    try:
        return _wrapping(body)
    except (IndexError, TypeError, ValueError) as error:  # what is read by offset and cast
        raise DecodeError(f"a route of {len(body)} bytes that cannot be read") from error


def _wrapping(body: bytes) -> Detour | None:
    family = body[FAMILY]
    if family not in HOST:
        return None
    found = dict(_attributes(body))
    kind = WRAPPING.get(int.from_bytes(found.get(lib.RTA_ENCAP_TYPE, b""), sys.byteorder))
    if kind is None:
        return None
    packed = found.get(lib.RTA_DST, bytes(HOST[family] // 8))
    destination = ip_network((packed, body[LENGTH]), strict=False)
    command = f"ip -{6 if family == socket.AF_INET6 else 4} route del {destination}"
    return Detour(f"route to {destination}", f"it wraps packets (encap {kind})", command, destination=destination)


def devices_out(body: bytes) -> tuple[int, ...]:
    """Give the devices by which a route (the body of its message) leads out; none: it leads to one host, or nowhere.

    It leads out if it has a gateway, or its destination is wider than one address; destinations that are no
    unicast addresses, or link-local ones, do not count.

    Raises:
        DecodeError: it is cut short, or a length in it points elsewhere.

    """
    try:
        return _devices_out(body)
    except (IndexError, TypeError, ValueError) as error:  # what is read by offset and cast
        raise DecodeError(f"a route of {len(body)} bytes that cannot be read") from error


def _devices_out(body: bytes) -> tuple[int, ...]:
    family = body[FAMILY]
    if body[TYPE] != lib.RTN_UNICAST or family not in HOST:
        return ()
    found = dict(_attributes(body))
    if lib.RTA_MULTIPATH in found:
        return tuple(_nexthops(found[lib.RTA_MULTIPATH]))
    leads = lib.RTA_GATEWAY in found or lib.RTA_VIA in found
    if not leads and (body[LENGTH] == HOST[family] or _stays(found.get(lib.RTA_DST, b""), family)):
        return ()
    if lib.RTA_OIF in found:
        return (int.from_bytes(found[lib.RTA_OIF], sys.byteorder),)
    return (BY_OBJECT,) if lib.RTA_NH_ID in found else ()


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Do as kmesh_bpf.kernel.netlink.attributes, five times as fast: a length too long is not doubted here."""
    halves, offset = memoryview(body).cast("H"), HEADER
    while offset < len(body):
        length = halves[offset // 2]
        if length < 4:  # its own header
            return
        yield halves[offset // 2 + 1], body[offset + 4 : offset + length]
        offset += align(length)


def _stays(destination: bytes, family: int) -> bool:
    """Tell whether a destination is link-local or multicast."""
    if not destination:
        return False
    first, second = destination[0], destination[1]
    if family == socket.AF_INET6:
        return first == 0xFF or (first, second & 0xC0) == (0xFE, 0x80)  # ff00::/8, fe80::/10
    return first & 0xF0 == 0xE0 or (first, second) == (169, 254)  # 224/4


def _nexthops(payload: bytes) -> Iterator[int]:
    size, offset = ffi.sizeof("struct rtnexthop"), 0
    while offset + size <= len(payload):
        hop = ffi.from_buffer("struct rtnexthop *", payload[offset : offset + size])
        yield int(hop.rtnh_ifindex)
        offset += max(align(hop.rtnh_len), size)


def _of_nexthops(sock: NetlinkSocket) -> Iterator[int]:
    """Give the devices of all nexthop objects (ip nexthop)."""
    header = ffi.sizeof("struct nhmsg")
    try:
        bodies = sock.dump(message(lib.RTM_GETNEXTHOP, 0, bytes(header)))
    except KernelError:  # before 5.3, which has none
        return
    for _, body in bodies:
        found = dict(attributes(body[header:]))
        if lib.NHA_OIF in found:
            yield int.from_bytes(found[lib.NHA_OIF], sys.byteorder)

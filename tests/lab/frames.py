# SPDX-License-Identifier: Apache-2.0
"""Frames built by hand, and sent into a node from the wire: what an attacker there could do."""

from __future__ import annotations

import socket
import time

from tests.lab.network import WIRE, inside

UDP = 17
SETTLE = 0.3
"""Seconds after the last frame, until what becomes of it shows."""


def mac_of(index: int) -> bytes:
    """Give the hardware address of a node's uplink (tests.lab.network)."""
    return bytes([2, 0, 0, 0, 0, index])


def ethernet(target: bytes, body: bytes, kind: bytes = b"\x08\x00", vlan: int | None = None) -> bytes:
    """Put a packet into a frame to a hardware address."""
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    return target + b"\x02\0\0\0\0\x09" + tag + kind + body


def ipv4(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    """Give an IPv4 packet, its header's checksum right."""
    header = bytes([0x45, 0]) + (20 + len(payload)).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, protocol, 0, 0])
    header += socket.inet_aton(src) + socket.inet_aton(dst)
    words = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (words & 0xFFFF) + (words >> 16)
    return header[:10] + (~total & 0xFFFF).to_bytes(2, "big") + header[12:] + payload


def udp(src: str, dst: str, port: int, payload: bytes = bytes(8), source_port: int = 7) -> bytes:
    """Give an IPv4 packet with a datagram, without a checksum of its own."""
    ports = source_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    return ipv4(src, dst, UDP, ports + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload)


def vxlan(outer_src: str, outer_dst: str, vni: int, frame: bytes) -> bytes:
    """Give the packet that carries a frame (RFC 7348) to port 4789."""
    return udp(outer_src, outer_dst, 4789, b"\x08\0\0\0" + (vni << 8).to_bytes(4, "big") + frame)


def inject(index: int, frame: bytes, times: int) -> None:
    """Send a frame from the wire into a node's uplink."""
    with inside(WIRE), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((f"u{index}", 0))
        for _ in range(times):
            raw.send(frame)
    time.sleep(SETTLE)

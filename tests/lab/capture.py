# SPDX-License-Identifier: Apache-2.0
"""What crosses the wire: every frame that a node's uplink emits, classified."""

from __future__ import annotations

import functools
import socket
import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType

from tests.lab.listening import Listening
from tests.lab.network import WIRE, Network, inside

ETH_P_ALL = 3
ESP = 50
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23  # linux/if_packet.h
LAST = 0.2
"""Seconds that frames already under way are given at the end: others may go on talking."""


@dataclass(frozen=True)
class Frame:
    """An IP packet on the wire; ``spi`` of ESP, None for others."""

    src: str
    dst: str
    protocol: int
    spi: int | None


def classify(data: bytes) -> Frame | None:
    kind = data[12:14]
    if kind == b"\x08\x00" and len(data) >= 34:
        header, protocol, addresses = (data[14] & 15) * 4, data[23], data[26:34]
    elif kind == b"\x86\xdd" and len(data) >= 54:
        header, protocol, addresses = 40, data[20], data[22:54]
    else:
        return None
    payload = data[14 + header : 14 + header + 4]
    spi = int.from_bytes(payload, "big") if protocol == ESP and len(payload) == 4 else None
    return Frame(*_written(addresses), protocol, spi)


@functools.cache
def _written(addresses: bytes) -> tuple[str, str]:
    half = len(addresses) // 2
    return str(ip_address(addresses[:half])), str(ip_address(addresses[half:]))


class Capture:
    """Listens on all ports of the wire's bridge while the block runs; each frame counts once, where it enters.

    ``also``: further ports, of nodes with several uplinks.
    """

    def __init__(self, network: Network, also: tuple[str, ...] = ()) -> None:
        self.frames: Counter[Frame] = Counter()
        sockets = []
        with inside(WIRE):
            for port in (*(f"u{node.index}" for node in network.nodes), *also):
                listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
                listener.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
                listener.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
                listener.bind((port, ETH_P_ALL))
                sockets.append(listener)
        self._listening = Listening(sockets, self._take)

    def __enter__(self) -> Capture:
        self._listening.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        time.sleep(LAST)
        self._listening.end()

    def _take(self, listener: socket.socket) -> None:
        if frame := classify(listener.recv(128)):
            self.frames[frame] += 1

    def clear(self, a: str, b: str) -> int:
        """Count packets between two pod addresses that crossed in clear, either way."""
        return sum(count for one, count in self.frames.items() if {one.src, one.dst} == {a, b})

    def esp(self, src: str, dst: str) -> dict[int, int]:
        """Count ESP packets of a direction by SPI."""
        found: Counter[int] = Counter()
        for one, count in self.frames.items():
            if one.spi is not None and (one.src, one.dst) == (src, dst):
                found[one.spi] += count
        return dict(found)

    def pods_in_clear(self) -> int:
        """Count all packets between pod addresses in clear: what the leak check looks for."""
        pods = ("10.244.", "fd00:244:")
        return sum(n for one, n in self.frames.items() if one.src.startswith(pods) and one.dst.startswith(pods))

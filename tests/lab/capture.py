"""What crosses the wire: every frame that a node's uplink emits, classified."""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType

from tests.lab.network import WIRE, Network, inside

ETH_P_ALL = 3
ESP = 50
PACKET_OUTGOING = 4
LAST = 0.5
"""Seconds that frames already under way are given at the end."""


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
        header, protocol = (data[14] & 15) * 4, data[23]
        src, dst = str(ip_address(data[26:30])), str(ip_address(data[30:34]))
    elif kind == b"\x86\xdd" and len(data) >= 54:
        header, protocol = 40, data[20]
        src, dst = str(ip_address(data[22:38])), str(ip_address(data[38:54]))
    else:
        return None
    payload = data[14 + header :]
    spi = struct.unpack("!I", payload[:4])[0] if protocol == ESP and len(payload) >= 4 else None
    return Frame(src, dst, protocol, spi)


class Capture:
    """Listens on all ports of the wire's bridge while the block runs; each frame counts once, where it enters."""

    def __init__(self, network: Network) -> None:
        self.frames: Counter[Frame] = Counter()
        self._sockets = []
        with inside(WIRE):
            for node in network.nodes:
                listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
                listener.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
                listener.bind((f"u{node.index}", ETH_P_ALL))
                listener.settimeout(0.1)
                self._sockets.append(listener)
        self._end = math.inf
        self._threads = [threading.Thread(target=self._listen, args=(one,)) for one in self._sockets]

    def __enter__(self) -> Capture:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end = time.monotonic() + LAST  # others may go on talking: what is under way, not silence, is waited for
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            if time.monotonic() > self._end:
                return
            try:
                data, address = listener.recvfrom(128)
            except TimeoutError:
                if self._end < math.inf:
                    return
                continue
            if address[2] != PACKET_OUTGOING and (frame := classify(data)):
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

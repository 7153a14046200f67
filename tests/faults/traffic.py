# SPDX-License-Identifier: Apache-2.0
"""Constant traffic in all directions, and what crosses the wire, in a process of its own: what a row does must not disturb it.

Runs as ``python -m tests.faults.traffic`` with the pods as JSON on its first line of input; answers each further line,
``[start, end]`` in seconds of the monotonic clock, with a line: the :class:`Span`. Ends with its input.
"""

from __future__ import annotations

import heapq
import json
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from itertools import pairwise, permutations
from typing import Any, TextIO

from tests.faults.flows import MAGIC, Numbered, Span, Stream, measure
from tests.lab.capture import ETH_P_ALL, PACKET_IGNORE_OUTGOING, SOL_PACKET, classify
from tests.lab.listening import AT_ONCE
from tests.lab.network import WIRE, Pod, inside, socket_in
from tests.lab.traffic import FAMILY

RATE = 10.0
"""Datagrams a second and flow: 12 flows between three nodes; more is more than emulated processors send without a stop."""
PINGS = 2.0
PORT, TCP_PORT = 7777, 7778
BLOCKS = 5.0
"""How often a second a TCP connection is given a block."""
PAYLOAD = MAGIC * 256
ECHO = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
TCP_INFO_RETRANSMITS = 100
"""Where tcpi_total_retrans is in struct tcp_info, linux/tcp.h."""
HEADER = struct.Struct("!8sHQ")
NAMES = ("n1", "n2", "n3")


def checksum(data: bytes) -> int:
    """RFC 1071; 0 in the place of the sum itself."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Wire:
    """What nodes' uplinks emit: when something was in clear, and how many ESP packets there were, by tenths of a second."""

    def __init__(self) -> None:
        self.esp: Counter[int] = Counter()
        self.clear: list[tuple[float, str]] = []
        with inside(WIRE):
            # Of all devices: a node that reboots comes with another port.
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)

    def take(self, one: socket.socket) -> None:
        data, (device, *_) = one.recvfrom(160)
        frame = classify(data) if device.startswith(("u", "w")) else None
        if frame is None:
            return
        now = time.monotonic()
        if frame.spi is not None:
            self.esp[int(now * 10)] += 1
        elif MAGIC in data or _is_pods(frame.src, frame.dst):
            self.clear.append((now, f"{frame.src} > {frame.dst} protocol {frame.protocol}"))


def _is_pods(*addresses: str) -> bool:
    """As the leak check of e2e: whatever is between pods, an empty TCP segment too."""
    return all(one.startswith(("10.244.", "fd00:244:")) for one in addresses)


class Loop:
    """One thread for everything: emulated processors are slow, and threads that wait for each other make them slower."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, float, Callable[[float], object]]] = []

    def reads(self, one: socket.socket, take: Callable[[socket.socket], object]) -> None:
        """Call ``take`` with a socket, which must not block, as long as it has something."""
        one.setblocking(False)
        self._selector.register(one, selectors.EVENT_READ, take)

    def forget(self, one: socket.socket) -> None:
        self._selector.unregister(one)
        one.close()

    def each(self, interval: float, call: Callable[[float], object]) -> None:
        """Call ``call`` with the time, each ``interval`` seconds from now on."""
        place = len(self._timers)
        due = time.monotonic() + interval * (place % 12) / 12  # not all at the same moment
        heapq.heappush(self._timers, (due, place, interval, call))

    def run(self, questions: TextIO, answer: Callable[[str], object]) -> None:
        """Go on until the questions end."""
        self._selector.register(questions, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(max(0.0, self._timers[0][0] - time.monotonic())):
                if key.data is None:
                    line = questions.readline()
                    if not line:
                        return
                    answer(line)
                else:
                    self._drain(key.fileobj, key.data)
            self._ring()

    def _ring(self) -> None:
        now = time.monotonic()
        while self._timers[0][0] <= now:
            due, place, interval, call = heapq.heappop(self._timers)
            call(now)
            # After a stall of the machine's the rate is as before: what was missed is not made up for.
            heapq.heappush(self._timers, (max(due + interval, now + interval / 2), place, interval, call))

    def _drain(self, one: Any, take: Callable[[socket.socket], object]) -> None:
        for _ in range(AT_ONCE):
            try:
                take(one)
            except BlockingIOError:
                return
            except OSError:  # of a packet sent before, which did not arrive: it is counted as lost
                continue


class Connection:
    """A TCP connection that is given bytes for as long as it lives, and made anew where it breaks."""

    def __init__(self, loop: Loop, source: Pod, target: Pod, version: int) -> None:
        self.name = f"TCP IPv{version} {source.name} > {target.name}"
        self.nodes = source.node, target.node
        self._loop, self._version = loop, version
        self._source, self._to = source, (target.address(version), TCP_PORT)
        self.arrivals: list[tuple[float, int]] = []
        self.breaks: list[float] = []
        self.retransmits: list[tuple[float, int]] = []
        self._before = 0
        listener = socket_in(target.name, FAMILY[version], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self._to)
        listener.listen()
        loop.reads(listener, lambda one: loop.reads(one.accept()[0], self._receive))
        self._client = self._connect()
        loop.each(1 / BLOCKS, self._send)

    def _connect(self) -> socket.socket:
        client = socket_in(self._source.name, FAMILY[self._version], socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex(self._to)
        return client

    def _send(self, now: float) -> None:
        try:
            self._client.send(PAYLOAD)
        except BlockingIOError:  # it waits: for an answer to its first packet, or for what was sent to arrive
            pass
        except OSError:
            self.breaks.append(now)
            self._before = self.retransmits[-1][1] if self.retransmits else 0
            self._client.close()
            self._client = self._connect()
            return
        info = self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_RETRANSMITS + 4)
        total = self._before + struct.unpack_from("=I", info, TCP_INFO_RETRANSMITS)[0]
        if not self.retransmits or self.retransmits[-1][1] != total:
            self.retransmits.append((now, total))

    def _receive(self, connection: socket.socket) -> None:
        try:
            size = len(connection.recv(65536))
        except BlockingIOError:
            raise
        except OSError:
            size = 0
        if size:
            self.arrivals.append((time.monotonic(), size))
        else:
            self._loop.forget(connection)
            raise BlockingIOError

    def span(self, start: float, end: float) -> Stream:
        inside = [(at, size) for at, size in self.arrivals if start <= at < end]
        known = [total for at, total in self.retransmits if at < end]
        before = [total for at, total in self.retransmits if at < start]
        return Stream(
            self.name,
            self.nodes,
            sum(size for _, size in inside),
            sum(start <= at < end for at in self.breaks),
            round(1000 * max(after - one for one, after in pairwise([start, *(at for at, _ in inside), end]))),
            (known[-1] if known else 0) - (before[-1] if before else 0),
        )


class Traffic:
    """Everything at once: UDP from each node's pod a to each other's, pings between pods b, two TCP connections."""

    def __init__(self, pods: dict[str, Pod]) -> None:
        self.loop = Loop()
        self.wire = Wire()
        self.loop.reads(self.wire.socket, self.wire.take)
        self.flows: list[Numbered] = []
        for version in FAMILY:
            for node in NAMES:
                self._udp_receiver(pods[f"p{node[1]}a"], version)
            for here, there in permutations(NAMES, 2):
                self._udp(pods[f"p{here[1]}a"], pods[f"p{there[1]}a"], version)
            for here, there in permutations(NAMES, 2):
                self._ping(pods[f"p{here[1]}b"], pods[f"p{there[1]}b"], version)
        self.connections = [
            Connection(self.loop, pods["p1b"], pods["p3b"], 4),
            Connection(self.loop, pods["p2b"], pods["p1b"], 6),
        ]

    def _udp_receiver(self, pod: Pod, version: int) -> None:
        receiver = socket_in(pod.name, FAMILY[version], socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind((pod.address(version), PORT))

        def take(one: socket.socket) -> None:
            magic, flow, number = HEADER.unpack_from(one.recv(512))
            if magic == MAGIC:
                self.flows[flow].take(number, time.monotonic())

        self.loop.reads(receiver, take)

    def _flow(self, kind: str, source: Pod, target: Pod, version: int) -> tuple[int, Numbered]:
        flow = Numbered(f"{kind} IPv{version} {source.name} > {target.name}", source.node, target.node)
        self.flows.append(flow)
        return len(self.flows) - 1, flow

    def _udp(self, source: Pod, target: Pod, version: int) -> None:
        index, flow = self._flow("UDP", source, target, version)
        sender = socket_in(source.name, FAMILY[version], socket.SOCK_DGRAM)
        sender.bind((source.address(version), 0))
        to = target.address(version), PORT

        def send(now: float) -> None:
            flow.sent.append(now)
            _sent(sender, HEADER.pack(MAGIC, index, len(flow.sent) - 1), to)

        self.loop.each(1 / RATE, send)

    def _ping(self, source: Pod, target: Pod, version: int) -> None:
        index, flow = self._flow("ICMP", source, target, version)
        protocol, request, answer = ECHO[version]
        raw = socket_in(source.name, FAMILY[version], socket.SOCK_RAW, protocol)
        raw.bind((source.address(version), 0))
        head = 20 if version == 4 else 0  # of IPv4 a raw socket gives the header too
        to = target.address(version), 0

        def send(now: float) -> None:
            flow.sent.append(now)
            number = len(flow.sent) - 1
            body = struct.pack("!HH", index, number & 0xFFFF) + HEADER.pack(MAGIC, index, number)
            # Of ICMPv6 the kernel writes the sum itself.
            total = checksum(bytes([request, 0, 0, 0]) + body) if version == 4 else 0
            _sent(raw, bytes([request, 0]) + total.to_bytes(2, "big") + body, to)

        def take(one: socket.socket) -> None:
            data = one.recv(512)[head:]
            if len(data) < 8 + HEADER.size or data[0] != answer:
                return
            magic, number_of, number = HEADER.unpack_from(data, 8)
            if magic == MAGIC and number_of == index:
                flow.take(number, time.monotonic())

        self.loop.reads(raw, take)
        self.loop.each(1 / PINGS, send)

    def answer(self, line: str) -> None:
        """Print the span of a question."""
        print(json.dumps(self.span(*json.loads(line)).plain()), flush=True)

    def span(self, start: float, end: float) -> Span:
        return measure(
            self.flows,
            (one.span(start, end) for one in self.connections),
            start,
            end,
            sum(count for tenth, count in self.wire.esp.items() if start * 10 <= tenth < end * 10),
            (what for at, what in self.wire.clear if start <= at < end),
        )


def _sent(one: socket.socket, data: bytes, to: tuple[str, int]) -> None:
    with suppress(OSError):  # counts as sent: a refusal is a loss
        one.sendto(data, to)


def main() -> None:
    told = json.loads(sys.stdin.readline())
    pods = {
        one["name"]: Pod(one["name"], one["node"], tuple(map(ip_address, one["addresses"])), one["device"])
        for one in told
    }
    traffic = Traffic(pods)
    print(json.dumps("running"), flush=True)
    traffic.loop.run(sys.stdin, traffic.answer)


if __name__ == "__main__":
    main()

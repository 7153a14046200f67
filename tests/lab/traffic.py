# SPDX-License-Identifier: Apache-2.0
"""Traffic between pods, counted: UDP echo with sequence numbers, and TCP transfers with a digest."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from tests.lab.listening import Listening
from tests.lab.network import Pod, socket_in

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 7
LAST = 0.5
"""Seconds that the last answers are waited for at most."""
Option = tuple[int, int, bytes] | None
"""Level, name and value of a socket option."""


@dataclass
class Count:
    """Packets of a flow: sent, and answered by the echo."""

    sent: int = 0
    received: int = 0

    @property
    def lost(self) -> int:
        return self.sent - self.received


class Echo:
    """UDP echo servers of a pod, on the families that it has."""

    def __init__(self, pod: Pod) -> None:
        sockets = []
        for address in pod.addresses:
            server = socket_in(pod.name, FAMILY[address.version], socket.SOCK_DGRAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((str(address), PORT))
            sockets.append(server)
        self._listening = Listening(sockets, lambda server: server.sendto(*server.recvfrom(65536)))
        self._listening.start()

    def close(self) -> None:
        self._listening.end()


class Flow:
    """Sends numbered datagrams at a rate from one pod to an address, in the background, until the block ends."""

    def __init__(self, source: Pod, target: str, rate: float = 100.0, size: int = 64, options: Option = None) -> None:
        version = 6 if ":" in target else 4
        self.count = Count()
        self._socket = socket_in(source.name, FAMILY[version], socket.SOCK_DGRAM)
        self._socket.bind((source.address(version), 0))
        if options:
            self._socket.setsockopt(*options)
        self._target, self._interval, self._size = (target, PORT), 1 / rate, size
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send)
        self._seen: set[int] = set()
        self._listening = Listening([self._socket], self._receive)

    def __enter__(self) -> Count:
        self._listening.start()
        self._sender.start()
        return self.count

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._sender.join()
        last = time.monotonic() + LAST
        while self.count.lost and time.monotonic() < last:
            time.sleep(0.02)
        self._listening.end()

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            with suppress(OSError):  # counts as sent: a refusal is a loss
                self._socket.sendto(self.count.sent.to_bytes(8, "big") + bytes(self._size - 8), self._target)
            self.count.sent += 1
            due += self._interval
            time.sleep(max(0.0, due - time.monotonic()))

    def _receive(self, one: socket.socket) -> None:
        number = int.from_bytes(one.recv(65536)[:8], "big")
        if number not in self._seen:
            self._seen.add(number)
            self.count.received += 1


def exchange(
    source: Pod, target: str, packets: int = 20, rate: float = 100.0, size: int = 64, options: Option = None
) -> Count:
    """Send so many datagrams and count the answers."""
    with Flow(source, target, rate, size, options) as count:
        while count.sent < packets:
            time.sleep(0.01)
    return count


def transfer(
    source: Pod,
    target: Pod,
    version: int,
    size: int = 1 << 20,
    port: int = 9,
    halfway: Callable[[], object] = lambda: None,
) -> bool:
    """Send bytes by TCP, calling ``halfway`` in the middle; tell whether they arrived whole."""
    listener = socket_in(target.name, FAMILY[version], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((target.address(version), port))
    listener.listen()
    listener.settimeout(20)
    digest = []

    def receive() -> None:
        connection, _ = listener.accept()
        connection.settimeout(20)
        found = hashlib.sha256()
        while data := connection.recv(65536):
            found.update(data)
        digest.append(found.digest())
        connection.close()

    thread = threading.Thread(target=receive)
    thread.start()
    payload = os.urandom(size)
    client = socket_in(source.name, FAMILY[version], socket.SOCK_STREAM)
    client.bind((source.address(version), 0))
    client.settimeout(20)
    client.connect((target.address(version), port))
    client.sendall(payload[: size // 2])
    halfway()
    client.sendall(payload[size // 2 :])
    client.close()
    thread.join(30)
    listener.close()
    return digest == [hashlib.sha256(payload).digest()]

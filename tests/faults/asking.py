# SPDX-License-Identifier: Apache-2.0
"""A flow of a row's own beside the constant traffic: a pod asks an address, an echo answers (:mod:`tests.lab.traffic`)."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

from tests.faults.flows import MAGIC, Numbered
from tests.lab.listening import Listening
from tests.lab.network import Pod, socket_in
from tests.lab.traffic import FAMILY

RATE = 10.0
"""Datagrams a second."""
LAST = 10.0
"""Seconds that the last answers are waited for at most: a busy emulated machine takes that long."""


class Asking:
    """Asks while the block runs; ``flow`` has what was sent, and what was answered.

    ``source`` may be a node too, as a pod of that name. ``node``: of who answers, for the page.
    """

    def __init__(self, source: Pod, node: str, address: str, port: int) -> None:
        version = 6 if ":" in address else 4
        self.flow = Numbered(f"UDP {source.name} asks {address} port {port}", source.node, node)
        self._socket = socket_in(source.name, FAMILY[version], socket.SOCK_DGRAM)
        self._socket.bind((source.address(version), 0))
        self._to = address, port
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._listening = Listening([self._socket], self._receive)

    def __enter__(self) -> Self:
        self._listening.start()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join()
        last = time.monotonic() + LAST
        while len(self.flow.arrived) < len(self.flow.sent) and time.monotonic() < last:
            time.sleep(0.02)
        self._listening.end()

    def _send(self) -> None:
        while not self._stop.wait(1 / RATE):
            number = len(self.flow.sent)
            self.flow.sent.append(time.monotonic())
            with suppress(OSError):  # counts as sent: a refusal is a loss
                self._socket.sendto(MAGIC + number.to_bytes(8, "big"), self._to)

    def _receive(self, one: socket.socket) -> None:
        data = one.recv(512)
        self.flow.take(int.from_bytes(data[len(MAGIC) : len(MAGIC) + 8], "big"), time.monotonic())

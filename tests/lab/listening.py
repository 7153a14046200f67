# SPDX-License-Identifier: Apache-2.0
"""A thread that takes what arrives on sockets, and costs nothing while nothing does: emulated processors are slow."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterable

AT_ONCE = 1000
"""So many are taken of a socket before the others have their turn, and the bell its own."""


class Listening:
    """Calls ``take`` with each socket that has something to read, until :meth:`end`; the sockets do not block."""

    def __init__(self, sockets: Iterable[socket.socket], take: Callable[[socket.socket], object]) -> None:
        self._sockets, self._take = list(sockets), take
        self._bell = os.eventfd(0)
        for one in self._sockets:
            one.setblocking(False)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Take what has arrived, then close the sockets."""
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        os.close(self._bell)
        for one in self._sockets:
            one.close()

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one in self._sockets:
                selector.register(one, selectors.EVENT_READ, one)
            selector.register(self._bell, selectors.EVENT_READ)
            rung = False
            while not rung:
                for key, _ in selector.select():
                    if key.data is None:
                        rung = True
                    else:
                        self._drain(key.data)

    def _drain(self, one: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                self._take(one)
            except BlockingIOError:
                return
            except OSError:  # of a packet sent before, which did not arrive: it is counted as lost
                continue

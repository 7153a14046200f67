# SPDX-License-Identifier: Apache-2.0
"""A cable between clients and a server on loopback, which can be pulled, cut for a moment, or made to swallow all."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

LOOPBACK = "127.0.0.1"


class Cable:
    """Forwards TCP from ``port`` to the server; a context manager."""

    def __init__(self, server_port: int) -> None:
        self._server = LOOPBACK, server_port
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._pulled = self._stalled = self._closed = False
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Cable:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.cut()
        # Wakes the accept; shutting down a listener does not do so everywhere.
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1):
            pass
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Reset every connection there is; new ones are let through."""
        with self._lock:
            for pair in self._pairs:
                for one in pair:
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    def pull(self) -> None:
        """Cut, and refuse new connections until :meth:`plug`."""
        self._pulled = True
        self.cut()

    def plug(self) -> None:
        """Let connections and what they carry through again."""
        self._pulled = self._stalled = False

    def stall(self) -> None:
        """Keep connections, and accept new ones, but pass nothing on until :meth:`plug`."""
        self._stalled = True

    def _accept(self) -> None:
        while not self._closed:
            client, _ = self._listener.accept()
            try:
                if self._pulled or self._closed:
                    raise OSError
                pair = client, socket.create_connection(self._server, 5)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append(pair)
            thread = threading.Thread(target=self._forward, args=pair)
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            while not self._closed:
                ready = select.select([client, server], [], [], 0.1)[0]
                if self._stalled:
                    threading.Event().wait(0.05)
                    continue
                try:
                    for one in ready:
                        data = one.recv(1 << 16)
                        if not data:
                            return
                        (server if one is client else client).sendall(data)
                except OSError:
                    return

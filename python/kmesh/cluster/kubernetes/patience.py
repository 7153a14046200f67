# SPDX-License-Identifier: Apache-2.0
"""Connections to whoever takes for ever: urllib3's timeouts are for the next bytes, and some send a byte at a time.

What goes on too long is ended from another thread, by shutting the socket down.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

HEAD_SECONDS = 30.0
"""For a connection to be made, TLS and a proxy's part in it, and once more for the head of an answer."""
BODY_SECONDS = 120.0
"""For the body of an answer that is no watch; a page of a list has 500 objects."""


class Limit:
    """Ends what a thread waits for; ``over`` tells whether it did."""

    def __init__(self, seconds: float, end: Callable[[], object]) -> None:
        self.over = False
        self._end = end
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """End nothing any more."""
        self._timer.cancel()

    def _ring(self) -> None:
        self.over = True
        with suppress(OSError, ValueError, RuntimeError):  # it has come to its end by itself
            self._end()


@contextmanager
def limited(seconds: float, end: Callable[[], object]) -> Iterator[None]:
    """Have what is done inside end in time.

    Raises:
        TimeoutError: it had to be ended.

    """
    limit, broken = Limit(seconds, end), None
    try:
        yield
    except Exception as error:
        if not limit.over:
            raise
        broken = error
    finally:
        limit.cancel()
    if limit.over:  # also without an error: what is shut down looks like an answer that has come to its end
        raise TimeoutError(f"not done within {seconds:g} s") from broken


class _Impatient(HTTPConnection):
    """A connection whose making, and whose answers' heads, end in time."""

    def connect(self) -> None:
        """Connect, by TLS and a proxy where that is wanted."""
        with limited(HEAD_SECONDS, self._hang_up):
            try:
                super().connect()
            finally:
                self._let_go()

    def getresponse(self) -> Any:
        """Wait for the head of an answer."""
        # The socket of now: the head may say that it is to be closed.
        sock = self.sock
        with limited(HEAD_SECONDS, lambda: sock.shutdown(socket.SHUT_RDWR)):
            return super().getresponse()

    _held: socket.socket | None = None
    """Another descriptor of the connection: TLS takes the first one for itself until it is done."""

    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        self._held = made.dup()
        return made

    def _hang_up(self) -> None:
        if self._held is not None:
            self._held.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()


class _ImpatientTls(_Impatient, HTTPSConnection):
    """Likewise, by TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Impatient


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _ImpatientTls


def make_impatient(pools: urllib3.PoolManager) -> urllib3.PoolManager:
    """Have the connections that these pools will make be such; by SOCKS they stay as they are."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pools

# SPDX-License-Identifier: Apache-2.0
"""The health server: a page a path over HTTP, on threads of its own, in the network namespace it was made in."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv6Address
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self

from kmesh.errors import ServerError
from kmesh.telling.listening import HostPort
from kmesh.telling.readiness import TEXT, Page

MAX_SECONDS = 5.0
"""A connection is cut after so long, however slowly its client reads or writes."""
MAX_CONNECTIONS = 32
"""Beyond these the oldest is cut: slow clients cannot keep a probe out."""
LOOK_SECONDS = 0.5
"""Seconds between looks at how long connections have been open, and at whether the server should end."""

log = logging.getLogger("kmesh")


class HealthServer:
    """Serves ``answer``'s pages from ``__enter__`` to ``__exit__``. An empty host is every address, of both families.

    Raises:
        ServerError: nobody can listen there: the port is in use, or the address is not of this node.

    """

    def __init__(self, where: HostPort, answer: Callable[[str], Page]) -> None:
        try:
            self._server = _Server(where, answer)
        except OSError as error:
            raise ServerError(
                f"cannot listen on {where} for health and metrics: {error.strerror}; "
                "choose another one with --health-address, or none with --health-address="
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK_SECONDS,), name="health", daemon=True
        )

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    block_on_close = False  # a slow client must not hold the daemon's end
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, where: HostPort, answer: Callable[[str], Page]) -> None:
        self.answer = answer
        self._open: dict[Any, float] = {}
        self._lock = threading.Lock()
        host, port = str(where.host or ""), where.port
        ipv6 = socket.has_dualstack_ipv6() if where.host is None else isinstance(where.host, IPv6Address)
        self.address_family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self._both = ipv6 and where.host is None
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        if self._both:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)  # not HTTPServer's: it asks the name service for our name, which may take long

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic()
            crowd = list(self._open)[:-MAX_CONNECTIONS]
        for one in crowd:
            _cut(one)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut what has been open for too long; called each ``LOOK_SECONDS``, and after each new connection."""
        now = time.monotonic()
        with self._lock:
            late = [one for one, since in self._open.items() if now - since > MAX_SECONDS]
        for one in late:
            _cut(one)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 # the base class's signature
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR  # a client that went away is no news
        log.log(level, "health server: a request was not answered: %r", error)


def _cut(connection: socket.socket) -> None:
    """End a connection under its thread, which then finds it closed."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = MAX_SECONDS

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.command in ("GET", "HEAD"):
            return True
        self._send(Page(405, TEXT, "only GET and HEAD are served\n"), Allow="GET, HEAD")
        return False

    def do_GET(self) -> None:
        self._send(self.server.answer(self.path))

    def do_HEAD(self) -> None:
        self._send(self.server.answer(self.path))

    def _send(self, page: Page, **headers: str) -> None:
        body = page.body.encode()
        self.send_response(page.status)
        for name, value in {"Content-Type": page.content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "kmesh-daemon"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base class's name
        log.debug("health server: %s", format % args)

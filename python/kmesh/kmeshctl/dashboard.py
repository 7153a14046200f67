# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl dashboard``: one page for a browser, served on loopback, from what status and explain know."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, TextIO
from urllib.parse import parse_qs, urlsplit

from kmesh import unexpected
from kmesh.cluster.source import ClusterSource
from kmesh.errors import ServerError
from kmesh.kmeshctl.commands import LOOPBACK
from kmesh.text import one_line
from kmesh_bpf import KmeshBpfError, __version__

LOOK_SECONDS = 2.0
LONGEST_QUERY = 2048
"""Characters: two names and a namespace are far less."""
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    # Nothing from elsewhere, nothing written into the page, and in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Observer:
    """Looks at the cluster again and again; what was seen is kept as it goes to the page."""

    def __init__(self, source: ClusterSource, clock: Callable[[], float] = time.time) -> None:
        from kmesh.kmeshctl import overview  # noqa: PLC0415 # brings all that judges a cluster

        self._source, self._clock = source, clock
        self._drops = overview.Drops()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._seen: dict[str, Any] = {}
        self._trouble, self._at = "", 0.0

    def look(self) -> None:
        """Look once; what goes wrong is what there is to be seen."""
        from kmesh.kmeshctl import overview, status  # noqa: PLC0415 # likewise

        now = self._clock()
        try:
            health = status.look(self._source, now)
            self._drops.take(health, now)
            seen = overview.overview(health, self._drops, now)
        except Exception as error:  # noqa: BLE001 # a thread that ends would leave the page as it is for ever
            with self._lock:
                self._trouble = unexpected.sentence(error)
            return
        with self._lock:
            self._seen, self._trouble, self._at = seen, "", now

    def state(self) -> dict[str, Any]:
        """Give what was seen last, how long ago, and why not since."""
        with self._lock:
            age = max(0.0, self._clock() - self._at) if self._at else None
            return {**self._seen, "version": __version__, "trouble": self._trouble, "ageSeconds": age}

    def explain(self, ends: tuple[str, str], namespace: str) -> dict[str, Any]:
        """Answer as explain does, one question at a time: each is a plan of two nodes."""
        from kmesh.kmeshctl import explain, traffic  # noqa: PLC0415 # likewise

        try:
            with self._asking:
                _, answer = explain.asked(self._source, ends, namespace, (), self._clock())
            return {**traffic.plain(answer), "text": explain.render(answer)}
        except KmeshBpfError as error:
            return {"error": one_line(str(error))}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kmeshctl", ""
    timeout = 20
    server: Dashboard

    def do_GET(self) -> None:
        """Answer."""
        # A page of another name that leads to loopback (DNS rebinding) has that name in Host.
        if self.headers.get_all("Host") not in [[name] for name in self.server.names]:
            self._send(403, "text/plain; charset=utf-8", b"only this machine's own names for loopback are answered\n")
            return
        parts = urlsplit(self.path)
        if parts.path in PAGES and not parts.query:
            name, kind = PAGES[parts.path]
            self._send(200, kind, (files("kmesh.kmeshctl") / "page" / name).read_bytes())
        elif parts.path == "/state.json":
            self._json(self.server.observer.state())
        elif parts.path == "/explain.json" and len(parts.query) <= LONGEST_QUERY:
            asked = parse_qs(parts.query)
            one, other, namespace = (asked.get(name, [""])[0] for name in ("one", "other", "namespace"))
            self._json(self.server.observer.explain((one, other), namespace or self.server.namespace))
        else:
            self._send(404, "text/plain; charset=utf-8", b"there is nothing of that name\n")

    def _json(self, value: dict[str, Any]) -> None:
        self._send(200, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, text in HEADERS.items():
            self.send_header(name, text)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Tell nobody."""


class Dashboard(ThreadingHTTPServer):
    """The server of the page, on loopback only.

    Raises:
        ServerError: nobody can listen there.

    """

    daemon_threads = True

    def __init__(self, observer: Observer, port: int, namespace: str) -> None:
        self.observer, self.namespace = observer, namespace
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise ServerError(f"cannot listen at {LOOPBACK}:{port}: {error.strerror}; give another --port") from error
        self.names = [f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")]
        self.over = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Tell nobody: a browser that hangs up is none."""

    def watch(self) -> None:
        """Look until it is over."""
        while not self.over.wait(LOOK_SECONDS):
            self.observer.look()


def run(flags: argparse.Namespace, source: ClusterSource, stdout: TextIO) -> int:
    """Serve until interrupted; give the exit status.

    Raises:
        ClusterError: the cluster cannot be asked.
        ServerError: nobody can listen there.

    """
    observer = Observer(source)
    with Dashboard(observer, flags.port, getattr(flags, "namespace", None) or "default") as server:
        observer.look()
        print(f"http://{LOOPBACK}:{server.server_port}/ until Ctrl-C", file=stdout, flush=True)
        looking = threading.Thread(target=server.watch, daemon=True)
        looking.start()
        try:
            server.serve_forever(poll_interval=0.2)
        finally:
            server.over.set()
    return 0

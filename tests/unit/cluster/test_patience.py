# SPDX-License-Identifier: Apache-2.0
"""Whoever sends a byte now and then is not waited for: neither for TLS, nor for an answer's head, nor for its body."""

import socket
import ssl
import threading
import time

import pytest
from kmesh.cluster.kubernetes import connection, patience
from kmesh.cluster.kubernetes.access import Access
from kmesh.cluster.kubernetes.connection import Connection
from kmesh.cluster.kubernetes.kubeconfig import Target
from kmesh.errors import ApiError

LIMIT = 0.4
GAP = 0.05
HEAD = b"HTTP/1.1 200 OK\r\n"
NEVER = 100
"""Seconds that a reader would have to wait for all the rest."""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", LIMIT)
    monkeypatch.setattr(connection, "BODY_SECONDS", LIMIT)
    monkeypatch.setattr(connection, "REASON_SECONDS", LIMIT)


@pytest.fixture
def dripping():
    """Serve what is said at once, and then a byte now and then; give the port."""
    stop = threading.Event()
    listeners = []

    def serve(listener, at_once, drop):
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(client, at_once, drop), daemon=True).start()

    def drip(client, at_once, drop):
        with client:
            try:
                client.recv(65536)
                client.sendall(at_once)
                for _ in range(int(NEVER / GAP)):
                    if stop.wait(GAP):
                        return
                    client.sendall(drop)
            except OSError:
                return

    def start(at_once: bytes, drop: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, at_once, drop), daemon=True).start()
        return listener.getsockname()[1]

    yield start
    stop.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def asked(port: int, scheme: str = "http", **target: str) -> str:
    tls = ssl.create_default_context() if scheme == "https" else None
    access = Access(Target("a test", f"{scheme}://127.0.0.1:{port}", **target), tls, lambda: "")
    one = Connection(lambda: access)
    began = time.monotonic()
    try:
        with pytest.raises(ApiError) as caught:
            one.call("list", "nodes", "GET", "/api/v1/nodes", kinds={"NodeList"})
        assert time.monotonic() - began < NEVER / 4
        return str(caught.value)
    finally:
        one.close()


@pytest.mark.parametrize(("at_once", "drop"), [(HEAD + b"X: ", b"y"), (b"", b"H"), (b"", b"HTTP/1.1 100 C\r\n\r\n")])
def test_the_head_of_an_answer(dripping, at_once, drop):
    port = dripping(at_once, drop)
    assert asked(port) == f"the API server http://127.0.0.1:{port} cannot be reached: it does not answer"


@pytest.mark.parametrize(
    ("more", "drop"),
    [
        (b"Content-Length: 100000\r\n\r\n", b" "),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"\r\n", b"{"),
    ],
)
def test_its_body(dripping, more, drop):
    port = dripping(HEAD + more, drop)
    whole = f"the answer of http://127.0.0.1:{port} does not come to its end within {LIMIT} s"
    assert asked(port) == f"cannot list nodes: {whole}"


def test_why_it_is_none(dripping):
    port = dripping(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100000\r\n\r\n", b"n")
    assert asked(port).startswith("may not list nodes")


def test_tls(dripping):
    port = dripping(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x03")
    assert "cannot be reached: it does not answer" in asked(port, "https")


def test_a_proxy(dripping):
    port = dripping(HEAD + b"X: ", b"y")
    assert "cannot be reached by the proxy 127.0.0.1: it does not answer" in asked(
        1, "https", proxy=f"http://127.0.0.1:{port}"
    )

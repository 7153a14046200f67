# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
import socket
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPConnection
from ipaddress import ip_address

import pytest
from kmesh.errors import ServerError
from kmesh.launcher import cli
from kmesh.telling import health
from kmesh.telling.health import HealthServer
from kmesh.telling.listening import HostPort
from kmesh.telling.readiness import Page, answer, judged
from kmesh.telling.record import KeyRecord, Record

from tests.unit.launcher.standin import BOUNDS

LOOPBACK = HostPort(ip_address("127.0.0.1"), 0)
GOOD = Record("n1", 1000.0, succeeded=1000.0, key=KeyRecord(1, 1), bounds=BOUNDS)


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.05)


@pytest.fixture
def server():
    with HealthServer(LOOPBACK, page) as running:
        yield running


def ask(server: HealthServer, path: str, method: str = "GET", host: str = "127.0.0.1"):
    with closing(HTTPConnection(host, server.port, timeout=10)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read().decode()


def test_every_path_answers_with_its_type(server):
    for path, status, kind in (
        ("/healthz", 200, "text/plain; charset=utf-8"),
        ("/readyz", 200, "application/json"),
        ("/status/metric", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("/metrics?x=1", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("/", 404, "text/plain; charset=utf-8"),
        ("/healthz/", 404, "text/plain; charset=utf-8"),
    ):
        response, body = ask(server, path)
        assert (response.status, response.headers["Content-Type"]) == (status, kind), path
        assert response.headers["Content-Length"] == str(len(body))
        assert body.endswith("\n")


def test_head_gives_the_same_without_a_body(server):
    response, body = ask(server, "/status/metric", "HEAD")
    assert (response.status, body) == (200, "")
    assert int(response.headers["Content-Length"]) > 1000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
def test_other_methods_are_refused(server, method):
    response, _ = ask(server, "/healthz", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_the_answer_does_not_tell_which_python_runs(server):
    response, _ = ask(server, "/healthz")
    assert response.headers["Server"] == "kmesh-daemon"


def test_requests_are_not_logged_at_info(server, caplog):
    with caplog.at_level(logging.INFO, "kmesh"):
        ask(server, "/healthz")
        ask(server, "/nowhere")
    assert caplog.records == []


def test_a_port_in_use_is_one_clear_sentence_and_exit_status_1(server, tmp_path):
    with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{server.port} .*in use.*--health-address"):
        HealthServer(HostPort(ip_address("127.0.0.1"), server.port), lambda _: Page(200, "", ""))
    err = io.StringIO()
    flags = ["--enable-ipsec=true", "--manifests", str(tmp_path), f"--health-address=127.0.0.1:{server.port}"]
    assert cli.main(flags, {"NODE_NAME": "n1"}, err) == 1
    assert len(err.getvalue().splitlines()) == 1
    assert "in use" in err.getvalue()


def test_without_a_host_both_families_are_served():
    with HealthServer(HostPort(None, 0), lambda _: Page(200, "text/plain", "x\n")) as running:
        assert ask(running, "/")[1] == "x\n"
        assert ask(running, "/", host="::1")[1] == "x\n"


def test_an_ipv6_host_is_served():
    with HealthServer(HostPort(ip_address("::1"), 0), lambda _: Page(200, "text/plain", "x\n")) as running:
        assert ask(running, "/", host="::1")[1] == "x\n"


def test_a_slow_client_holds_nobody_and_is_cut(server, monkeypatch):
    monkeypatch.setattr(health, "MAX_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"GET /healthz HT")
        assert ask(server, "/healthz")[0].status == 200
        start = time.monotonic()
        assert slow.recv(100) == b""
        assert time.monotonic() - start < 3


def test_a_client_that_drips_a_byte_at_a_time_is_cut_too(server, monkeypatch):
    monkeypatch.setattr(health, "MAX_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        with pytest.raises(OSError, match=r"reset|Broken"):
            for _ in range(200):
                slow.sendall(b"x")
                time.sleep(0.05)


def test_many_slow_clients_do_not_keep_a_probe_out(server):
    with ExitStack() as stack:
        for _ in range(health.MAX_CONNECTIONS + 8):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)).sendall(b"GET")
        assert ask(server, "/healthz")[0].status == 200


def test_a_client_that_goes_away_leaves_no_trace_in_the_log(server, caplog, capsys):
    with caplog.at_level(logging.INFO, "kmesh"):
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(b"GET /status/metric HTTP/1.0\r\n\r\n")
        ask(server, "/healthz")
    assert caplog.records == []
    assert capsys.readouterr().err == ""


def test_a_page_that_cannot_be_made_is_logged_in_a_line_and_the_next_one_is_served(caplog, capsys):
    pages = iter([lambda: 1 / 0, lambda: Page(200, "text/plain", "x\n")])
    with HealthServer(LOOPBACK, lambda _: next(pages)()) as running:
        with pytest.raises(ConnectionError):
            ask(running, "/")
        assert ask(running, "/")[0].status == 200
    assert ["division" in record.getMessage() for record in caplog.records] == [True]
    assert capsys.readouterr().err == ""


def test_the_end_waits_for_no_client():
    with HealthServer(LOOPBACK, lambda _: Page(200, "text/plain", "x\n")) as running:
        slow = socket.create_connection(("127.0.0.1", running.port))
        slow.sendall(b"GET")
        start = time.monotonic()
    assert time.monotonic() - start < 3
    slow.close()
    assert not any(thread.name == "health" for thread in threading.enumerate())


def page(path: str, record: Record = GOOD, time: float = 1000.0, view_age: float = 0.0) -> Page:
    return answer(path, judged(replace(record, bounds=BOUNDS), time, view_age))


def test_alive_is_who_attempted_a_pass_lately_with_success_or_without():
    failed = Record("n1", 1000.0, error="x")
    assert page("/healthz", failed, 1000.0 + BOUNDS.silence).status == 200
    dead = page("/healthz", GOOD, 1001.0 + BOUNDS.silence)
    assert (dead.status, dead.body) == (503, "no pass was attempted for 91 s\n")


@pytest.mark.parametrize(
    ("record", "view_age", "word"),
    [
        (Record("n1", 1000.0, key=KeyRecord(1, 1)), 0.0, "no pass has reached its plan"),
        (GOOD, 61.0, "has not been seen for 61 s"),
        (Record("n1", 1000.0, succeeded=1.0), 0.0, "kmeshctl secret"),
        (Record("n1", 1000.0, succeeded=1.0, key=KeyRecord(2, 0)), 0.0, "SPI 2 is not announced"),
        (
            Record("n1", 1000.0, succeeded=1.0, key=KeyRecord(1, 1), failures=("a", "b")),
            0.0,
            "2 operations failed, the first: a",
        ),
        (Record("n1", 1000.0, succeeded=1.0, key=KeyRecord(1, 1), error="torn"), 0.0, "given up: torn"),
    ],
)
def test_not_ready_says_why(record, view_age, word):
    found = page("/readyz", record, view_age=view_age)
    body = json.loads(found.body)
    assert (found.status, body["ready"], body["node"]) == (503, False, "n1")
    assert len(body["reasons"]) == 1
    assert word in body["reasons"][0]
    assert "kmesh_ipsec_ready 0\n" in page("/metrics", record, view_age=view_age).body


def test_ready_has_no_reasons():
    assert json.loads(page("/readyz").body) == {"node": "n1", "ready": True, "reasons": []}
    assert judged(GOOD, 1000.0, BOUNDS.view_age).unready == ()
    assert "kmesh_ipsec_ready 1\n" in page("/metrics").body

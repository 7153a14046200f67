# SPDX-License-Identifier: Apache-2.0
"""kmeshctl does not wait for what a failure may become: it says at once what the server, or its absence, says."""

import io
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kmesh.kmeshctl import cli

COMMANDS = (["status"], ["explain", "a", "b"], ["secret", "get"], ["secret", "create"])
pytestmark = pytest.mark.timeout(100)
"""Whoever waited for the first read would meet with this: see patient_daemons."""


@pytest.fixture(autouse=True)
def patient_daemons(monkeypatch):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 1000.0)


@pytest.fixture
def server():
    """Give a function that starts a server which answers all with a status; it gives the server's port."""
    running = []

    def start(status: int, wait: threading.Event | None = None) -> int:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if wait is not None:
                    wait.wait(20)
                message = f'{self.path.partition("?")[0]} is forbidden: User "ann" cannot do this'
                body = json.dumps({"kind": "Status", "status": "Failure", "message": message}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, daemon=True).start()
        running.append(found)
        return found.server_port

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def asked(tmp_path, port, argv):
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    errors = io.StringIO()
    status = cli.main([*argv, "--kubeconfig", str(tmp_path / "config")], io.StringIO(), io.StringIO(), errors, {})
    assert status == 1
    return errors.getvalue()


@pytest.mark.parametrize("argv", COMMANDS)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the API server does not accept the credentials"),
        (403, "; bind the role kmesh-ipsec-operator: kubectl create clusterrolebinding "),
        (500, "(HTTP status 500)"),
    ],
)
def test_what_the_server_refuses_is_told_at_once_in_one_line(server, tmp_path, argv, status, words):
    said = asked(tmp_path, server(status), argv)
    assert words in said
    assert len(said.splitlines()) == 1
    assert len(said) < 400
    assert "stays in force" not in said


@pytest.mark.parametrize("argv", COMMANDS)
def test_a_server_that_is_down_is_told_at_once(tmp_path, argv):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        said = asked(tmp_path, port, argv)
    assert said == f"kmeshctl: the API server http://127.0.0.1:{port} cannot be reached: Connection refused\n"


def test_who_is_asked_is_said_where_it_takes_a_while(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "SILENT_SECONDS", 0.2)
    answer = threading.Event()
    threading.Timer(1.0, answer.set).start()
    port = server(401, answer)
    said = asked(tmp_path, port, ["secret", "create"])
    first, second = said.splitlines()
    assert first == f"kmeshctl: asking http://127.0.0.1:{port} …"
    assert "does not accept the credentials" in second

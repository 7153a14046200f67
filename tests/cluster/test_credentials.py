# SPDX-License-Identifier: Apache-2.0
"""Who we are to a real API server, and by which way we come: as its kubeconfig says, or not at all."""

import json
import shutil
import socket
import socketserver
import threading
from pathlib import Path

import pytest
from kmesh.cluster.kubernetes.connection import connect

from kmesh_bpf import KmeshBpfError
from tests.contract.test_cluster_source import seen
from tests.lab import objects
from tests.unit.cluster import kube


@pytest.fixture
def kubeconfig(server, tmp_path):
    """Write an administrator's kubeconfig with another user or cluster; give its path."""

    def kubeconfig(user: dict | None = None, **cluster: object) -> Path:
        config = json.loads(server.kubeconfig("admin", server.token).read_text())
        if user is not None:
            config["users"][0]["user"] = user
        given = config["clusters"][0]["cluster"] | cluster
        config["clusters"][0]["cluster"] = {name: value for name, value in given.items() if value is not None}
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    return kubeconfig


def asks(path: Path):
    """Ask for the Secret, as the one whom the kubeconfig makes of us."""
    connection = connect(str(path), None, {})
    try:
        where = "/api/v1/namespaces/kmesh-system/secrets"
        return connection.call("list", "secrets", "GET", where, kinds=("SecretList",))
    finally:
        connection.close()


def test_a_token_file_that_ends_in_a_newline_is_used_and_wins_over_a_token(server, opening, kubeconfig, tmp_path):
    (tmp_path / "token").write_text(f"{server.token}\n")
    objects.put(server, kube.node_info(2))
    source = opening(kubeconfig({"token": "nonsense", "tokenFile": "token"}))
    assert len(source.read().node_infos) == 1
    objects.put(server, kube.node_info(3))
    assert seen(source, lambda objects: len(objects.node_infos) == 2).problems == ()


def test_as_makes_somebody_else_of_us(server, kubeconfig):
    user = {"token": server.token, "as": "joe", "as-groups": ["a", "b"]}
    with pytest.raises(KmeshBpfError, match='may not list secrets: secrets is forbidden: User "joe" cannot list'):
        asks(kubeconfig(user))
    assert asks(kubeconfig(user | {"as-groups": ["b", "system:masters"]}))["kind"] == "SecretList"
    with pytest.raises(KmeshBpfError, match='User "joe" cannot list'):
        asks(kubeconfig(user | {"as-user-extra": {"scopes": ["x"]}}))


def test_without_credentials_we_are_nobody_and_the_server_says_so(kubeconfig):
    with pytest.raises(KmeshBpfError, match='User "system:anonymous" cannot list'):
        asks(kubeconfig({}))


def test_the_server_s_name_may_be_another_one_than_its_address_and_is_looked_at(kubeconfig):
    with pytest.raises(KmeshBpfError, match="its certificate is not trusted"):
        asks(kubeconfig(**{"tls-server-name": "another.example"}))
    assert asks(kubeconfig(**{"tls-server-name": "127.0.0.1"}))["kind"] == "SecretList"


def test_a_server_that_is_not_verified_is_used_where_that_is_asked_for_and_told(kubeconfig, caplog):
    path = kubeconfig(**{"insecure-skip-tls-verify": True, "certificate-authority": None})
    assert asks(path)["kind"] == "SecretList"
    assert "insecure-skip-tls-verify: whoever answers is taken for the API server" in caplog.text


def test_a_proxy_is_gone_through(server, kubeconfig):
    with Tunnel() as tunnel:
        assert asks(kubeconfig(**{"proxy-url": f"http://127.0.0.1:{tunnel.server_address[1]}"}))["kind"] == "SecretList"
    assert [one.split()[:2] for one in tunnel.asked] == [["CONNECT", f"127.0.0.1:{server.port}"]]


class Tunnel(socketserver.ThreadingTCPServer):
    """A proxy that knows CONNECT."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunneling)
        self.asked: list[str] = []

    def __enter__(self) -> "Tunnel":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Tunneling(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        first = self.rfile.readline().decode().strip()
        self.server.asked.append(first)
        while self.rfile.readline().strip():
            pass
        host, _, port = first.split()[1].rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=shutil.copyfileobj, args=(far.makefile("rb", buffering=0), self.wfile))
            back.start()
            shutil.copyfileobj(self.request.makefile("rb", buffering=0), far.makefile("wb", buffering=0))
            far.shutdown(socket.SHUT_WR)
            back.join()

# SPDX-License-Identifier: Apache-2.0
"""What goes to a server, and what is made of whatever comes back."""

import gzip
import json
import ssl
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from kmesh.cluster.kubernetes import connection as module
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.listing import pages
from kmesh.cluster.kubernetes.resources import Collection
from kmesh.errors import ApiError

from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import listed
from tests.unit.cluster.http_server import Reply, serving
from tests.unit.cluster.test_access import API, coded
from tests.unit.cluster.test_kubeconfig import SECRET, config

PODS = Collection("Pod")
PATH = "/api/v1/pods"


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def connected(server, tmp_path):
    """Connect as a user, given as in a kubeconfig."""
    opened = []

    def connected(user: dict | None = None, environment: dict | None = None, **cluster: object):
        path = tmp_path / "config"
        path.write_text(json.dumps(config(user, {"server": server.url, **cluster})))
        opened.append(connect(str(path), None, environment or {}))
        return opened[-1]

    yield connected
    for one in opened:
        one.close()


def get(connection):
    return connection.call("get", "pods", "GET", PATH, kinds=("Pod",))


def refused(call) -> str:
    """Give the sentence; no secret may stand in it, nor in what a traceback would show of it."""
    with pytest.raises(ApiError) as caught:
        call()
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 500
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return said


# --- what is sent


def test_a_token_is_sent_whatever_stands_around_it_in_its_file(server, connected, tmp_path):
    (tmp_path / "token").write_text(f"\n{SECRET}\n\n")
    assert get(connected({"token": "another", "tokenFile": "token"})) == {"kind": "Pod"}
    assert server.asked[0].all("Authorization") == [f"Bearer {SECRET}"]


def test_whom_to_be_taken_for_is_sent_a_line_for_each_value(server, connected):
    get(
        connected(
            {"token": "t", "as": "joe", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"k": ["x", "y"]}}
        )
    )
    (asked,) = server.asked
    assert asked.all("Impersonate-User") == ["joe"]
    assert asked.all("Impersonate-Uid") == ["7"]
    assert asked.all("Impersonate-Group") == ["a", "b"]
    assert asked.all("Impersonate-Extra-k") == ["x", "y"]
    assert asked.all("Authorization") == ["Bearer t"]


def test_what_no_request_can_carry_is_told_without_being_shown(connected):
    """Nothing of the kind gets so far; if it did, http.client would quote it."""
    connection = connected({"token": "t"})
    found = connection._session.access
    connection._session = replace(connection._session, access=replace(found, token=lambda: f"{SECRET}\n{SECRET}"))
    assert "a header, or its path, is not fit for it" in refused(lambda: get(connection))


def test_who_is_nobody_sends_no_credentials(server, connected):
    get(connected())
    assert server.asked[0].all("Authorization") == []


def test_a_name_and_a_password_are_sent(server, connected):
    get(connected({"username": "me", "password": SECRET}))
    assert server.asked[0].all("Authorization")[0].startswith("Basic ")


@pytest.mark.parametrize("named", ["proxy-url", "environment"])
def test_a_proxy_is_used_wherever_it_is_named(server, connected, named):
    proxy = server.url.replace("http://", f"http://me:{SECRET}@")
    if named == "environment":
        connection = connected({"token": "t"}, {"HTTP_PROXY": proxy}, server="http://far.invalid")
    else:
        connection = connected({"token": "t"}, **{"server": "http://far.invalid", "proxy-url": proxy})
    assert get(connection) == {"kind": "Pod"}
    assert server.asked[0].path == f"http://far.invalid{PATH}"
    assert server.asked[0].all("Proxy-Authorization")[0].startswith("Basic ")
    server.answer = lambda _: Reply(407, b"who are you?")
    assert "HTTP status 407" in refused(lambda: get(connection))


def test_a_proxy_that_is_away_is_named_without_its_password(connected):
    proxy = f"http://me:{SECRET}@127.0.0.1:1"
    for server in ("http://far.invalid", "https://far.invalid"):
        said = refused(
            lambda server=server: get(connected({"token": SECRET}, **{"server": server, "proxy-url": proxy}))
        )
        assert said == f"the API server {server} cannot be reached by the proxy 127.0.0.1: Connection refused"


def test_a_socks_proxy_is_refused_where_the_package_for_it_is_missing(connected, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "urllib3.contrib.socks", None)
    with pytest.raises(module.ConfigError, match="proxy-url: socks5 needs PySocks, which is not installed"):
        connected({}, **{"proxy-url": "socks5://127.0.0.1:1"})


@pytest.mark.parametrize("given", ["files", "data"])
def test_a_certificate_is_shown_and_the_server_s_is_looked_at_under_the_name_that_is_given(connected, pair, given):
    certificate, key = pair
    wanted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    wanted.verify_mode = ssl.CERT_REQUIRED
    wanted.load_cert_chain(certificate, key)
    user = {"client-certificate": str(certificate), "client-key": str(key)}
    trusted = {"certificate-authority": str(certificate)}
    if given == "data":
        user = {f"{name}-data": coded(Path(path)) for name, path in user.items()}
        trusted = {f"{name}-data": coded(Path(path)) for name, path in trusted.items()}
    with serving(wanted) as server:
        at = {"server": server.url, "tls-server-name": "api.lab", **trusted}
        assert get(connected(user, **at)) == {"kind": "Pod"}
        assert "its certificate is not trusted" in refused(
            lambda: get(connected(user, **at | {"tls-server-name": "x"}))
        )
        assert "cannot be reached" in refused(lambda: get(connected({"token": SECRET}, **at)))


# --- credentials that change


def test_certificates_that_are_replaced_in_their_files_are_read_anew(connected, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RELOAD_SECONDS", 0.0)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(*pair)
    trusted = tmp_path / "ca.crt"
    with serving(theirs) as server:
        at = {"server": server.url, "tls-server-name": "api.lab", "certificate-authority": str(trusted)}
        trusted.write_bytes(
            Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt").read_bytes()
        )
        connection = connected({"token": "t"}, **at)
        assert "its certificate is not trusted" in refused(lambda: get(connection))
        trusted.write_bytes(pair[0].read_bytes())
        refused(lambda: get(connection))
        assert get(connection) == {"kind": "Pod"}


def only(token: str):
    def answer(asked):
        good = asked.all("Authorization") == [f"Bearer {token}"]
        return Reply(body={"kind": "Pod"}) if good else Reply(401, {"kind": "Status", "message": "Unauthorized"})

    return answer


def test_a_token_that_is_refused_is_read_anew_at_once(server, connected, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RELOAD_SECONDS", 0.0)
    (tmp_path / "token").write_text("old")
    connection = connected({"tokenFile": "token"})
    (tmp_path / "token").write_text("new\n")
    server.answer = only("new")
    assert get(connection) == {"kind": "Pod"}
    (tmp_path / "token").unlink()
    server.answer = only("newest")
    said = refused(lambda: get(connection))
    assert said.startswith(
        "the credentials are not accepted or have expired, and others cannot be had: the token file "
    )
    assert said.endswith("token cannot be read: No such file or directory")
    (tmp_path / "token").write_text("newest")
    assert get(connection) == {"kind": "Pod"}


def test_a_plugin_is_asked_again_before_what_it_made_expires(server, connected, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RELOAD_SECONDS", 0.0)
    login = tmp_path / "login"
    status = {"token": "$(cat count)", "expirationTimestamp": "2026-01-01T00:00:00Z"}
    answer = json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": status}).replace('"', '\\"')
    login.write_text(f'#!/bin/sh\ncd {tmp_path}; echo x >>count2; wc -l <count2 >count; echo "{answer}"\n')
    login.chmod(0o700)
    connection = connected({"exec": {"apiVersion": API, "command": "./login", "interactiveMode": "Never"}})
    get(connection)
    assert server.asked[0].all("Authorization") == ["Bearer 2"]
    login.unlink()
    assert "the plugin" in refused(lambda: get(connection))


# --- odd answers


STATUS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no"}
ODD = {
    "nothing": (Reply(body=b""), "gives nothing instead of"),
    "html": (Reply(body=b"<html>log in</html>"), "gives HTML instead of"),
    "text": (Reply(body=f"token {SECRET}".encode()), "gives what is no JSON instead of"),
    "binary": (Reply(body=b"\xff\xfe\x00"), "gives what is no JSON instead of"),
    "ok": (Reply(body={"status": "ok"}), "gives an object without kind instead of"),
    "status": (Reply(body=STATUS), "gives a Status (no) instead of"),
    "other": (Reply(body={"kind": "Node"}), "gives a Node instead of"),
    "strange kind": (Reply(body={"kind": SECRET * 9}), "gives an object without kind instead of"),
    "list": (Reply(body=b"[]"), "gives what is no object instead of"),
    "null": (Reply(body=b"null"), "gives what is no object instead of"),
    "deep": (Reply(body=b'{"a":' * 100_000), "gives what is no JSON instead of"),
    "cut": (Reply(body=b'{"kind": "Pod"'), "gives what is no JSON instead of"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_what_was_asked_for_is_no_answer(server, connected, name):
    reply, said = ODD[name]
    server.answer = lambda _: reply
    connection = connected({"token": SECRET})
    for call in (lambda: get(connection), lambda: list(pages(connection, PODS))):
        sentence = refused(call)
        assert said in sentence
        assert sentence.endswith("is there a proxy, or a page to log in at, in between?")


def test_a_redirect_is_not_followed_and_where_it_leads_is_named_without_what_it_carries(server, connected):
    server.answer = lambda _: Reply(302, b"", {"Location": f"https://login.example/?token={SECRET}"})
    said = refused(lambda: get(connected({"token": SECRET})))
    assert said == "cannot get pods: it sends us on to https://login.example, where no API server is (HTTP status 302)"
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [300, 304, 307, 400, 404, 418, 429, 500, 503, 599])
@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[]", b'{"message": {"a": 5}}', b"\x1b[31mred\nlines"])
def test_whatever_status_is_refused_in_a_line(server, connected, status, body):
    server.answer = lambda _: Reply(status, body)
    assert f"(HTTP status {status})" in refused(lambda: get(connected()))


def test_garbage_that_says_it_is_gzip_is_told(server, connected):
    for body, said in ((b"no gzip", "its answer cannot be unpacked"), (gzip.compress(b"{}" * 1000)[:-20], "no JSON")):
        server.answer = lambda _, body=body: Reply(body=body, headers={"Content-Encoding": "gzip"})
        assert said in refused(lambda: get(connected({"token": SECRET})))
    server.answer = lambda _: Reply(body=gzip.compress(b'{"kind": "Pod"}'), headers={"Content-Encoding": "gzip"})
    assert get(connected()) == {"kind": "Pod"}


def test_an_answer_that_is_cut_off_is_told(server, connected):
    server.answer = lambda _: Reply(body=b'{"kind"', headers={"Content-Length": "100"}, length=False)
    assert "cannot be reached: " in refused(lambda: get(connected({"token": SECRET})))


def test_an_answer_without_end_is_given_up(server, connected, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    server.answer = lambda _: Reply(body=b" " * 2000)
    assert refused(lambda: get(connected())).endswith("has no end")


def test_of_a_long_refusal_only_the_beginning_is_read(server, connected):
    server.answer = lambda _: Reply(500, b"x " * 10_000_000)
    assert len(refused(lambda: get(connected()))) < 500


def test_a_list_is_its_pages(server, connected):
    several = {"": listed(kube.pod("a"), more="t"), "t": listed(kube.pod("b"))}
    server.answer = lambda asked: Reply(body={"kind": "PodList"} | several["t" if "continue=t" in asked.path else ""])
    found = [one["metadata"]["name"] for page in pages(connected(), PODS) for one in page.items]
    assert found == ["a", "b"]

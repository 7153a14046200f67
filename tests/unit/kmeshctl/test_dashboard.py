# SPDX-License-Identifier: Apache-2.0
"""The dashboard: what it shows, whom it answers, and what it gives away."""

import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
from kmesh.cluster.status import PeerStatus
from kmesh.errors import ApiError, ServerError
from kmesh.kmeshctl import dashboard
from kmesh.kmeshctl.health import examine
from kmesh.kmeshctl.overview import MINUTES, Drops, matrix, overview

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_explain import API, NAMESPACE, WEB
from tests.unit.kmeshctl.test_status import BASE, NOW, OURS, WELL, Source

THREE = (*BASE, kube.node(3), kube.node_info(3, **OURS))


def report(node, *peers, **changes):
    return replace(WELL, node=node, peers=tuple(PeerStatus(*one) for one in peers), **changes)


def seen(*reports, manifests=THREE):
    source = Source(manifests, reports)
    return examine(source.read(), source.statuses(), NOW)


def cells(*reports, manifests=THREE):
    return matrix(seen(*reports, manifests=manifests), ["n1", "n2", "n3"])


def test_each_cell_is_how_the_row_s_node_sends_to_the_column_s():
    behind = ("n3", True, 1, 0, 0.0)
    assert cells(report("n1"), report("n2", ("n1", False, 0, 0, 0.0), behind)) == [".nn", "x.o", "cc."]


def test_to_whom_announces_nothing_nothing_is_sent_and_a_node_of_another_make_says_nothing():
    foreign = kube.node_info(2)
    manifests = (*BASE[:3], foreign, BASE[4], kube.node(3))
    assert cells(report("n1"), manifests=manifests) == [".nx", "?.?", "cc."]


def test_during_a_replacement_those_not_named_are_taken_for_what_the_node_says_of_itself():
    manifests = (*(one for one in THREE if one["kind"] != "Secret"), kube.secret(kube.entry(2, bytes(range(1, 37)))))
    done = report("n1", newest_spi=2, spi=2)
    assert cells(done, report("n2"), report("n3"), manifests=manifests) == [".nn", "o.o", "oo."]
    shown = overview(seen(done, report("n2"), report("n3"), manifests=manifests), Drops(), NOW)
    assert shown["progress"].startswith("replacement in progress: SPI 2 is announced by 0 of 3 nodes")
    assert shown["share"] == pytest.approx(1 / 3)


def test_what_is_wrong_comes_first_and_a_healthy_cluster_shows_no_replacement():
    shown = overview(seen(report("n1"), report("n2"), report("n3", ready=False, reasons=("it is ill",))), Drops(), NOW)
    assert [node["name"] for node in shown["nodes"]] == ["n3", "n1", "n2"]
    assert shown["findings"] == ["n3: not ready: it is ill"]
    assert (shown["progress"], shown["share"]) == ("", None)


def test_drops_are_those_since_the_look_before_and_a_counter_that_began_anew_is_none():
    drops = Drops()
    for at, count in ((0, 5), (30, 7), (95, 7), (100, 2), (130, 6)):
        drops.take(seen(report("n1", counters={"dropped_by_guard": count})), NOW + at)
    assert drops.by_minute(NOW + 130) == [*[0] * (MINUTES - 2), 2, 4]
    assert drops.by_node() == {"n1": 6}
    drops.take(seen(report("n1", counters={"dropped_by_guard": 6})), NOW + 130 + MINUTES * 60 + 1)
    assert drops.by_node() == {}


@contextmanager
def serving(source):
    observer = dashboard.Observer(source, lambda: NOW)
    observer.look()
    with dashboard.Dashboard(observer, 0, "default") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server():
    with serving(Source((*BASE, NAMESPACE, WEB, API))) as server:
        yield server


def get(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        for one in [f"127.0.0.1:{server.server_port}"] if host is None else host:
            connection.putheader("Host", one)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/state.json"])
def test_the_page_brings_all_it_needs_and_lets_nothing_else_in(server, path):
    answer, content = get(server, path)
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"://" not in content.replace(b"http://127.0.0.1", b"")


@pytest.mark.parametrize("path", ["/", "/state.json", "/explain.json?one=web&other=api"])
@pytest.mark.parametrize(
    "host", [["evil.example:{}"], ["127.0.0.1"], ["127.0.0.1:1"], [], ["localhost:{}", "localhost:{}"]]
)
def test_who_comes_by_another_name_is_refused_and_told_nothing(server, path, host):
    answer, content = get(server, path, [one.format(server.server_port) for one in host])
    assert answer.status in (400, 403)
    assert b"n1" not in content


def test_both_names_of_loopback_do_and_nothing_else_is_there(server):
    assert get(server, "/", [f"localhost:{server.server_port}"])[0].status == 200
    assert server.server_address[0] == "127.0.0.1"
    for path in ("/../cli.py", "/page", "/index.html", "/?x", "/%2e%2e/cli.py", "/explain.json?" + "x" * 3000):
        assert get(server, path)[0].status == 404
    assert get(server, "/", method="POST")[0].status == 501


def test_explain_answers_as_the_command_does_and_says_what_it_cannot(server):
    found = json.loads(get(server, "/explain.json?one=web&other=default/api")[1])
    assert found["encrypted"] is True
    assert "10.244.1.10 -> 10.244.2.11: ENCRYPTED with SPI 1" in found["text"]
    said = json.loads(get(server, "/explain.json?one=wbe&other=api")[1])["error"]
    assert "did you mean default/web" in said
    assert "error" in json.loads(get(server, "/explain.json")[1])


def test_no_key_is_in_anything_that_it_serves():
    material = bytes(range(100, 136))
    manifests = (*BASE[:4], NAMESPACE, WEB, API, kube.secret(kube.entry(1, material)))
    with serving(Source(manifests)) as server:
        for path in ("/", "/state.json", "/explain.json?one=web&other=api"):
            content = get(server, path)[1].decode()
            assert material.hex()[:8] not in content
            assert kube.entry(1, material)["aeadKey"][:12] not in content


def test_while_the_server_is_away_what_was_seen_stays_with_its_age_and_the_reason():
    source, now = Source(), [NOW]
    observer = dashboard.Observer(source, lambda: now[0])
    observer.look()
    source.statuses = lambda: (_ for _ in ()).throw(ApiError("it does not answer"))
    now[0] += 9
    observer.look()
    state = observer.state()
    assert (state["trouble"], state["ageSeconds"]) == ("it does not answer", 9.0)
    assert state["summary"] == "2 of 2 nodes ready, key SPI 1"


def test_a_port_that_is_taken_is_told_with_the_way_out(server):
    with pytest.raises(ServerError, match=r"cannot listen at 127\.0\.0\.1:\d+: .*; give another --port"):
        dashboard.Dashboard(server.observer, server.server_port, "default")


@pytest.mark.parametrize("port", ["x", "-1", "65536"])
def test_what_is_no_port_is_refused(kmeshctl, port):
    assert "is no port" in kmeshctl("dashboard", f"--port={port}")[2]

# SPDX-License-Identifier: Apache-2.0
"""The API server and the way to it as they are on a bad day: the view never holds less than the server has."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from kmesh.cluster.objects import parse

from kmesh_bpf import KmeshBpfError
from tests.cluster.conftest import ACCOUNTS, RBAC, enrol, prepare, watched
from tests.contract.test_cluster_source import eventually, lease, rotate, seen
from tests.lab import objects
from tests.lab.apiserver import ApiServer
from tests.unit.cluster import kube


def test_an_api_server_that_is_killed_and_comes_back_costs_nothing_but_age(server, opening):
    enrol(server)
    objects.put(server, kube.pod())
    source = opening()
    before = source.read()
    assert eventually(lambda: source.age() == 0.0)  # a server just started refuses a first watch now and then
    server.kill_api()
    try:
        assert eventually(lambda: source.age() > 1.0)
        after = source.read()
        assert (after.pods, after.complete) == (before.pods, True)
        problem = f"the API server {server.url} cannot be reached: Connection refused; what is known stays in force"
        assert seen(source, lambda objects: objects.problems != ()).problems == (problem,)
        with pytest.raises(KmeshBpfError, match="cannot be reached: Connection refused"):
            source.publish(kube.node_info())
    finally:
        server.start_api()
        server.wait_ready()
    objects.put(server, kube.pod("new", number=11))
    seen(source, lambda objects: len(objects.pods) == 2 and objects.problems == ())
    assert eventually(lambda: source.age() == 0.0)


def test_without_an_api_server_at_the_start_the_view_is_incomplete_until_there_is_one(
    programs, opening, tmp_path, monkeypatch
):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 0.5)
    server = ApiServer(tmp_path, programs)
    with server:
        prepare(server)
        server.kill_api()
        source = opening(server.kubeconfig("admin", server.token))
        objects_ = source.read()
        assert not objects_.complete
        assert "Connection refused" in objects_.problems[0]
        server.start_api()
        server.wait_ready()
        seen(source, lambda objects: objects.complete and objects.problems == ())


def test_another_cluster_at_the_same_address_is_taken_for_what_it_is(programs, opening, tmp_path):
    """Its versions are lower: who went on watching from the old one would wait for ever."""
    with ApiServer(tmp_path, programs) as server:
        prepare(server)
        for number in range(2, 6):
            objects.put(server, kube.node_info(number))
        source = opening(server.kubeconfig("admin", server.token))
        assert len(source.read().node_infos) == 4
        server.stop()
        server.lose_everything()
        server.start()
        prepare(server)
        objects.put(server, kube.node_info(9))
        seen(source, lambda objects: [info.name for info in objects.node_infos] == ["n9"])


def test_after_a_compaction_while_the_watch_was_cut_all_is_read_anew(server, cable, opening_by_cable, caplog):
    caplog.set_level(logging.INFO, "kmesh")
    enrol(server)
    for number in range(3):
        objects.put(server, kube.pod(f"web-{number}", number=10 + number))
    source = opening_by_cable()
    assert len(source.read().pods) == 3
    with watched(source, lambda found: {"web-1", "web-2"} <= {pod.name for pod in found.pods}):
        cable.pull()
        objects.delete(server, kube.pod("web-0"))
        objects.put(server, kube.pod("web-9", number=19))
        server.compact()
        # The API server remembers more than etcd does, until it starts anew.
        server.kill_api()
        server.start_api()
        server.wait_ready()
        assert {pod.name for pod in source.read().pods} == {"web-0", "web-1", "web-2"}
        cable.plug()
        seen(source, lambda objects: {pod.name for pod in objects.pods} == {"web-1", "web-2", "web-9"})
    assert "all pods of namespace default are read anew" in caplog.text


def test_a_server_that_does_not_answer_any_more_is_noticed(server, cable, opening_by_cable, monkeypatch):
    monkeypatch.setattr("kmesh.cluster.kubernetes.watch.SILENCE_SECONDS", 1.0)
    monkeypatch.setattr("kmesh.cluster.kubernetes.connection.CONNECT_SECONDS", 0.5)
    objects.put(server, kube.node_info(2))
    source = opening_by_cable()
    before = source.read()
    stalled = time.monotonic()
    cable.stall()
    found = seen(source, lambda objects: objects.problems != ())
    assert found.problems == (
        f"the API server {cable.url} cannot be reached: it does not answer; what is known stays in force",
    )
    assert found.node_infos == before.node_infos
    assert eventually(lambda: source.age() >= time.monotonic() - stalled), (
        "since it was heard, not since that was noticed"
    )
    cable.plug()
    objects.put(server, kube.node_info(3))
    seen(source, lambda objects: len(objects.node_infos) == 2 and objects.problems == ())
    assert eventually(lambda: source.age() == 0.0)


def test_watches_cut_every_second_lose_no_change(server, cable, opening_by_cable):
    """A second, or three times what it takes here to get all watches going: a way that is cut before one page and one
    event have come through brings nothing, whoever asks. Larger lists keep the pages that they have (test_odd_answers).
    """
    enrol(server)
    source = opening_by_cable()
    began = time.monotonic()
    seen(source, lambda objects: objects.complete)
    second = max(1.0, 3 * (time.monotonic() - began))
    wanted = set()
    end = time.monotonic() + 6 * second
    number = 0
    next_cut = time.monotonic() + second
    while time.monotonic() < end:
        number += 1
        objects.put(server, kube.pod(f"web-{number}", number=number))
        wanted.add(f"web-{number}")
        if number > 3:
            objects.delete(server, kube.pod(f"web-{number - 3}"))
            wanted.discard(f"web-{number - 3}")
        if time.monotonic() > next_cut:
            cable.cut()
            next_cut += second
    seen(source, lambda objects: {pod.name for pod in objects.pods} == wanted and objects.problems == ())


def test_with_the_permissions_of_a_daemon_all_that_a_daemon_does_is_allowed(server, opening, account):
    objects.put(server, kube.node())
    objects.put(server, kube.secret(kube.entry(1)))
    source = opening(account("daemon"))
    found = source.read()
    assert (found.complete, found.problems, len(found.nodes), found.services != ()) == (True, (), 1, True)
    assert found.secret["data"] == kube.secret(kube.entry(1))["data"]
    source.publish(kube.node_info(1))
    source.publish_status(lease("n1"))
    assert len(source.statuses()) == 1
    metadata = {"generateName": "kmesh-", "namespace": "default"}
    regarding = {"kind": "Node", "name": "n1", "uid": "n1"}
    source.tell(
        {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": regarding, "reason": "Test"}
    )
    source.withdraw("n1")
    with pytest.raises(KmeshBpfError, match="may not get secrets kmesh-system/kmesh-ipsec"):
        source.change_secret(rotate(2))


def test_a_rotated_token_is_read_anew_when_the_old_one_is_refused(server, cable, opening, account):
    source = opening(account("rotated", url=cable.url))
    assert source.read().problems == ()
    # The account made anew: tokens of the former one are invalid from now on.
    server.request("DELETE", f"{ACCOUNTS}/rotated")
    server.request("POST", ACCOUNTS, {"metadata": {"name": "rotated"}})
    old = server.folder / "rotated.kubeconfig"
    former = old.read_text()
    server.kubeconfig("rotated", server.service_account_token("kmesh-system", "rotated"), url=cable.url)
    assert old.read_text() != former
    # The server remembers for 10 s that the old token was good.
    time.sleep(10)
    cable.cut()
    objects.put(server, kube.node_info(7))
    assert seen(source, lambda objects: objects.node_infos != ()).problems == ()
    assert eventually(lambda: source.age() == 0.0)


def test_a_token_that_is_no_good_is_one_clear_sentence(server, opening, monkeypatch):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 2)
    source = opening(server.kubeconfig("nobody", "nonsense"))
    found = source.read()
    assert not found.complete
    assert all("does not accept the credentials" in problem for problem in found.problems)
    assert found.problems


def test_a_permission_that_is_missing_is_named_and_the_last_view_stays(server, cable, opening, account):
    objects.put(server, kube.node_info(2))
    source = opening(account("narrow", url=cable.url))
    before = source.read()
    assert (before.complete, before.problems, len(before.node_infos)) == (True, (), 1)
    server.request("DELETE", f"{RBAC}/namespaces/kmesh-system/rolebindings/narrow")
    time.sleep(1)
    cable.cut()
    after = seen(source, lambda objects: any("kmeshnodeinfos" in problem for problem in objects.problems))
    assert after.node_infos == before.node_infos
    sentence = next(problem for problem in after.problems if "kmeshnodeinfos" in problem)
    assert sentence.startswith("may not ")
    assert 'User "system:serviceaccount:kmesh-system:narrow" cannot' in sentence
    assert "give its role this permission" in sentence
    assert source.age() > 0.0
    with pytest.raises(KmeshBpfError, match="may not patch kmeshnodeinfos kmesh-system/n2"):
        source.publish(kube.node_info(2))


def test_an_object_of_an_unknown_version_is_told_and_the_others_count(server, opening, monkeypatch):
    objects.put(server, kube.node_info(2))
    source = opening()
    source.read()
    shelf = source._watches["KmeshNodeInfo"].shelf
    shelf.put(kube.node_info(3) | {"apiVersion": "kmesh.net/v2"})
    found = source.read()
    assert [info.name for info in found.node_infos] == ["n2"]
    assert found.problems == ("KmeshNodeInfo kmesh-system/n3: apiVersion 'kmesh.net/v2' is not kmesh.net/v1alpha1",)


def test_two_thousand_pods_come_and_go_at_once(server, opening):
    enrol(server)
    source = opening()
    source.read()
    pods = [kube.pod(f"web-{number}", addresses=[f"10.9.{number >> 8}.{number & 255}"]) for number in range(2000)]
    with ThreadPoolExecutor(8) as several:
        list(several.map(lambda pod: objects.put(server, pod), pods))
    found = seen(source, lambda objects: len(objects.pods) == 2000)
    assert {replace(pod, created="") for pod in found.pods} == {parse(pod) for pod in pods}
    server.request("DELETE", "/api/v1/namespaces/default/pods", objects.NOW)
    assert seen(source, lambda objects: objects.pods == ()).problems == ()


def test_of_another_secret_s_keys_and_labels_nothing_is_lost(server, opening):
    manifest = kube.secret(kube.entry(1))
    manifest["data"]["other"] = "b3RoZXI="
    manifest["metadata"]["labels"] = {"team": "net"}
    objects.put(server, manifest)
    opening().change_secret(rotate(2))
    stored = server.request("GET", "/api/v1/namespaces/kmesh-system/secrets/kmesh-ipsec")
    assert stored["data"].keys() == {"ipSec", "ipSecPrevious", "ipSecUsed", "other"}
    assert stored["metadata"]["labels"] == {"team": "net"}


def test_the_namespace_may_be_another_one(server, opening):
    objects.put(server, kube.namespace("elsewhere"))
    source = opening(namespace="elsewhere")
    source.change_secret(rotate(1))
    source.publish(kube.node_info(2, 3))
    found = seen(source, lambda objects: objects.node_infos != () and objects.secret is not None)
    assert (found.node_infos[0].spi, found.problems) == (3, ())
    source.change_secret(rotate(2))
    assert '"spi":4' in server.kubectl(
        "get", "secret", "kmesh-ipsec", "-n", "elsewhere", "-o", "go-template={{.data.ipSec | base64decode}}"
    )
    source.withdraw("n2")
    server.request("DELETE", "/api/v1/namespaces/elsewhere/secrets/kmesh-ipsec")

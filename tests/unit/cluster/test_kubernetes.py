# SPDX-License-Identifier: Apache-2.0
"""The parts of the Kubernetes source that need no server."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.kubernetes.resources import Collection, lines, older, refusal, version_of
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.cluster.kubernetes.watch import LAST_RETRY, retry_delay
from kmesh.cluster.objects import parse

from tests.unit.cluster import kube

PODS = Collection("Pod", "default", fields="status.phase=Running")
INFOS = Collection("KmeshNodeInfo", "kmesh-system")
KEY = kube.entry()["aeadKey"]


@pytest.fixture
def store():
    store = Store()
    yield store
    store.close()


@pytest.fixture
def shelf(store) -> Shelf:
    return Shelf(store, INFOS, lambda: 100.0, lambda: None)


def stored(index: int, version: int, spi: int = 1) -> dict:
    manifest = kube.node_info(index, spi)
    manifest["metadata"]["resourceVersion"] = str(version)
    return manifest


@pytest.mark.parametrize(
    ("collection", "path", "name"),
    [
        (Collection("Namespace"), "/api/v1/namespaces", "namespaces"),
        (Collection("Node", fields="metadata.name=n1"), "/api/v1/nodes?fieldSelector=metadata.name%3Dn1", "nodes"),
        (Collection("Pod", labels="a"), "/api/v1/pods?labelSelector=a", "pods of all namespaces"),
        (INFOS, "/apis/kmesh.net/v1alpha1/namespaces/kmesh-system/kmeshnodeinfos",
         "kmeshnodeinfos of namespace kmesh-system"),
        (Collection("ServiceCIDR"), "/apis/networking.k8s.io/v1/servicecidrs", "servicecidrs"),
        (Collection("Lease", "x/y"), "/apis/coordination.k8s.io/v1/namespaces/x%2Fy/leases", "leases of namespace x/y"),
    ],
)  # fmt: skip
def test_a_collection_has_a_path_and_a_name_for_people(collection, path, name):
    assert collection.query().rstrip("?") == path
    assert str(collection) == name


@given(st.lists(st.binary(max_size=5).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_are_whole_wherever_the_stream_is_cut_into_pieces(texts, data):
    stream = b"".join(text + b"\n" for text in texts) + b"half"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
    assert list(lines(pieces)) == texts


def test_a_refusal_says_what_was_asked_and_why_and_what_to_do():
    status = {"kind": "Status", "message": 'pods is forbidden: User "u" cannot list'}
    error = refusal("list", "pods", 403, json.dumps(status).encode())
    assert str(error).startswith('may not list pods: pods is forbidden: User "u" cannot list; give its role')
    assert error.status == 403
    assert "apply deploy/base/crd.yaml" in str(
        refusal("list", str(INFOS), 404, b'{"message": "the server could not find the requested resource"}')
    )
    missing = b'{"message": "namespaces \\"kmesh-system\\" not found"}'
    assert "kubectl create namespace" in str(refusal("create", "secrets", 404, missing))
    assert "credentials" in str(refusal("list", "pods", 401, b"{}"))


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"<html>\n gateway </html>", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_status_object_is_still_one_line(body):
    sentence = str(refusal("list", "pods", 502, body))
    assert sentence.endswith("(HTTP status 502)")
    assert "\n" not in sentence
    assert len(sentence) < 400


def test_a_refusal_shows_no_key():
    body = json.dumps({"message": f"cannot unmarshal {KEY} into field"}).encode()
    assert KEY[:8] not in str(refusal("update", "secrets", 400, body))


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        ("9", "10", True),
        ("10", "9", False),
        ("9", "9", False),
        ("", "9", False),
        ("9", "x", False),
        ("9" * 5000, "1" + "0" * 5000, True),
        ("007", "8", True),
        ("²", "9", False),
    ],
)
def test_versions_are_compared_as_numbers_where_they_are(one, other, answer):
    assert older(one, other) is answer


def test_the_version_of_what_has_none_is_empty():
    assert [version_of(one) for one in ({}, {"metadata": None}, {"metadata": {}})] == ["", "", ""]


@given(st.integers(1, 1000), st.floats(0, 1))
def test_retries_are_spread_and_bounded(attempt, random):
    assert 0 < retry_delay(attempt, lambda: random) <= LAST_RETRY
    assert retry_delay(attempt, lambda: 0.0) < retry_delay(attempt, lambda: 1.0)
    assert retry_delay(attempt, lambda: 1.0) <= retry_delay(attempt + 1, lambda: 1.0)


def test_a_new_list_replaces_the_old_one_and_recovers(store, shelf):
    assert shelf.lost_at == 100.0
    shelf.put(stored(2, 5))
    draft = shelf.draft()
    draft.add(stored(3, 6))
    shelf.replace(draft)
    assert list(shelf.objects) == [parse(kube.node_info(3))]
    assert (shelf.synced, shelf.lost_at) == (True, None)


def test_what_changes_nothing_wakes_nobody(store, shelf):
    shelf.put(stored(2, 5))
    before = store.revision
    shelf.put(stored(2, 6))
    shelf.remove(stored(3, 7))
    shelf.recovered()
    assert store.revision == before


def test_a_heartbeat_of_a_node_wakes_nobody_and_a_change_of_its_addresses_does(store):
    shelf = Shelf(store, Collection("Node"), lambda: 0.0, lambda: None)
    shelf.put(kube.node(2))
    before = store.revision
    beat = kube.node(2)
    beat["metadata"] |= {"resourceVersion": "9", "annotations": {"a": "b"}, "labels": {"c": "d"}}
    beat["status"] |= {"conditions": [{"type": "Ready", "lastHeartbeatTime": "x"}], "images": [{"names": ["i"]}]}
    shelf.put(beat)
    assert store.revision == before
    beat["status"]["addresses"][2]["address"] = "192.0.2.99"
    shelf.put(beat)
    assert store.revision == before + 1


def test_an_object_of_a_typed_list_is_what_the_list_s_name_says(store):
    shelf = Shelf(store, PODS, lambda: 0.0, lambda: None)
    bare = {name: value for name, value in kube.pod().items() if name not in ("kind", "apiVersion")}
    draft = shelf.draft()
    draft.add(bare)
    assert list(draft.objects.values()) == [parse(kube.pod())]


def test_an_event_from_before_our_own_write_does_not_undo_it(shelf):
    shelf.written(stored(2, 10, spi=2))
    shelf.put(stored(2, 9, spi=1))
    assert [info.spi for info in shelf.objects] == [2]
    shelf.put(stored(2, 11, spi=3))
    assert [info.spi for info in shelf.objects] == [3]


def test_neither_does_a_deletion_or_a_list_from_before_it(shelf):
    shelf.written(stored(2, 10))
    shelf.remove(stored(2, 9))
    shelf.replace(shelf.draft(), "9")
    assert list(shelf.objects) == [parse(kube.node_info(2))]
    shelf.replace(shelf.draft(), "11")
    assert shelf.objects == ()


def test_a_server_that_has_gone_back_is_believed(shelf):
    shelf.written(stored(2, 10))
    shelf.forget_writes()
    shelf.replace(shelf.draft(), "5")
    assert shelf.objects == ()


def test_an_object_that_cannot_be_read_stays_through_a_new_list_and_goes_with_its_deletion(shelf):
    shelf.put(stored(2, 5))
    broken = stored(2, 6)
    broken["spec"]["spi"] = "one"
    draft = shelf.draft()
    draft.add(broken)
    shelf.replace(draft)
    assert list(shelf.objects) == [parse(kube.node_info(2))]
    assert shelf.problems == ("KmeshNodeInfo kmesh-system/n2: spec.spi is no number from 0 to 4294967295",)
    shelf.remove(broken)
    assert (shelf.objects, shelf.problems) == ((), ())


def test_of_pods_only_what_the_view_needs_is_held_and_equal_parts_are_shared(store):
    shelf = Shelf(store, PODS, lambda: 0.0, lambda: None)
    for name in ("a", "b"):
        annotations = {"sidecar.istio.io/status": f"long {name}", "checksum": name}
        labels = {"istio.io/dataplane-mode": "Kmesh", "pod-name": name}
        shelf.put(kube.pod(name, labels=labels, annotations=annotations, containers=["x", "y"]))
    one, other = shelf.objects
    assert one.annotations == {"sidecar.istio.io/status": ""}
    assert one.annotations is other.annotations
    assert one.labels == {"istio.io/dataplane-mode": "Kmesh"}
    assert one.labels is other.labels
    assert one.containers is other.containers

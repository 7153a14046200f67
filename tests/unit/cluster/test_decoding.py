# SPDX-License-Identifier: Apache-2.0
"""What is decoded must be all that is read: each field of each kind, good and of whatever wrong shape, both ways."""

import json

import pytest
from kmesh.cluster.kubernetes.decoding import DECODERS, decode_event, decode_list, decode_object
from kmesh.cluster.kubernetes.resources import PLURALS, Collection, version_of
from kmesh.cluster.kubernetes.store import _read
from kmesh.cluster.objects import APIS, SIDECAR_ANNOTATION

from tests.unit.cluster import kube
from tests.unit.cluster.test_objects import GONE, changed

JUNK = (GONE, None, True, -1, 1 << 70, 0.5, "", "x", "10.0.0.1", [], [None], ["y"], [{}], {}, {"name": 7}, {"a": "b"})
OWNERS = [{"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "u-2"}]
BALANCED = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80", "ports": []}, {"hostname": "lb.example"}]}}
WRITES = [{"manager": "kubectl", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:data": {}}}]


def stored(manifest: dict, **metadata: object) -> dict:
    """Give a manifest as a server does, with what it adds."""
    added = {"uid": "u-1", "resourceVersion": "17", "creationTimestamp": "2025-12-31T00:00:00Z", "selfLink": "/"}
    return {**manifest, "metadata": {**manifest["metadata"], **added, **metadata}}


MANIFESTS = [
    stored(kube.namespace("default", mode="Kmesh")),
    stored(kube.node(1)),
    stored(
        kube.pod(
            "web",
            labels={"app": "web"},
            initContainers=["proxy"],
            hostNetwork=False,
            annotations={SIDECAR_ANNOTATION: "s"},
        ),
        deletionTimestamp="2026-01-01T00:00:00Z",
    ),
    stored(kube.node_info(2, 3, **{"kmesh.net/ipsec-replay-window": "1024"}), generation=4, ownerReferences=OWNERS),
    stored(kube.secret(kube.entry(2), kube.entry(1)), managedFields=WRITES),
    stored(kube.service_cidr()),
    stored(kube.service(externalIPs=["192.0.2.81"], loadBalancerIP="192.0.2.82", status=BALANCED)),
]
EACH = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: one["kind"])


def decoded(manifest: dict) -> dict:
    return decode_object(manifest["kind"], json.dumps(manifest).encode())


def read(kind: str, manifest: dict) -> tuple:
    """Give all that anybody makes of a manifest: which object, what it is, or what is wrong with it; its version."""
    who, one, problem = _read(manifest, Collection(kind, "kmesh-system" if kind in ("KmeshNodeInfo", "Secret") else ""))
    unequal = (getattr(one, "uid", None), getattr(one, "generation", None))  # two that `==` does not look at
    return who, one, problem, version_of(manifest), unequal


def paths(value: object, at: str = "") -> list[str]:
    """Give the dotted paths of all that is below."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [(f"{at}.{key}" if at else str(key), one) for key, one in pairs if "." not in str(key) and key != ""]
    return [path for name, one in below for path in (name, *paths(one, name))]


def test_every_kind_that_is_read_has_its_fields_listed():
    assert DECODERS.keys() == APIS.keys() == {one["kind"] for one in MANIFESTS}
    assert PLURALS.keys() - DECODERS.keys() == {"Lease", "Event", "DaemonSet", "EndpointSlice"}, (
        "given as they are, or written only"
    )


@EACH
def test_a_good_object_is_the_same_whether_decoded_whole_or_not(manifest):
    found = read(manifest["kind"], decoded(manifest))
    assert found == read(manifest["kind"], manifest)
    assert found[1] is not None, "it can be read at all"


@EACH
def test_so_is_one_of_which_any_field_is_missing_or_of_any_other_shape(manifest):
    kind = manifest["kind"]
    # When the Secret was written is the server's own record: nobody else writes it.
    tried = [path for path in paths(manifest) if path != "kind" and not path.startswith("metadata.managedFields")]
    assert len(tried) > 6
    for path in tried:
        for junk in JUNK:
            if junk is GONE and path.rpartition(".")[2].isdecimal():
                continue
            odd = changed(manifest, path, junk)
            assert read(kind, decode_object(kind, json.dumps(odd).encode())) == read(kind, odd), (path, junk)


def test_what_nobody_reads_is_not_decoded():
    pod = stored(kube.pod(), managedFields=WRITES, annotations={"a": "b"}, ownerReferences=[{"kind": "ReplicaSet"}])
    pod["spec"]["volumes"] = pod["status"]["conditions"] = [{"name": "x"}]
    assert decoded(pod) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web",
            "namespace": "default",
            "labels": {},
            "annotations": {},
            "uid": "u-1",
            "resourceVersion": "17",
            "creationTimestamp": "2025-12-31T00:00:00Z",
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.10", "podIPs": pod["status"]["podIPs"]},
    }


def test_a_kind_that_is_given_on_as_it_is_keeps_everything():
    lease = {"metadata": {"name": "x", "annotations": {"a": "b"}}, "spec": {"anything": [1]}}
    assert decode_object("Lease", json.dumps(lease).encode()) == lease


NO_JSON_OBJECT = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"5",
    b'{"metadata": {"name": "\xff"}}',
    b'{"spec":' + b"[" * 100_000,
)


@pytest.mark.parametrize("text", NO_JSON_OBJECT, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("decode", [decode_object, decode_list, decode_event])
def test_what_is_no_json_object_is_refused(decode, text):
    with pytest.raises(ValueError, match="no "):
        decode("Pod", text)


def test_a_list_is_its_objects_and_what_it_says_of_itself():
    text = {"kind": "PodList", "metadata": {"resourceVersion": "9", "continue": "c"}, "items": MANIFESTS[2:3]}
    items, metadata = decode_list("Pod", json.dumps(text).encode())
    assert (items, metadata) == ([decoded(MANIFESTS[2])], {"resourceVersion": "9", "continue": "c"})


EMPTY = {"kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": []}
NO_LISTS = (
    {"status": "ok"},
    {},
    *({name: value for name, value in EMPTY.items() if name != left} for left in EMPTY),
    *(EMPTY | {"items": one} for one in (None, 5, {}, "", [5], [None], [[]], [{}])),
    *(EMPTY | {"kind": one} for one in ("NodeList", "Pod", "Status", "List", None, 5)),
    *(EMPTY | {"metadata": one} for one in (None, [1], {}, {"resourceVersion": ""}, {"resourceVersion": 9})),
)


@pytest.mark.parametrize("answer", NO_LISTS, ids=repr)
def test_what_is_no_list_of_the_kind_asked_for_is_refused_and_no_empty_list(answer):
    assert decode_list("Pod", json.dumps(EMPTY).encode()) == ([], {"resourceVersion": "9"})
    with pytest.raises(ValueError, match="no "):
        decode_list("Pod", json.dumps(answer).encode())


def test_an_event_is_its_type_and_an_object_and_of_an_error_all_is_kept():
    said = {"kind": "Status", "code": 410, "message": "too old"}
    assert decode_event("Pod", json.dumps({"type": "ERROR", "object": said}).encode()) == ("ERROR", said)
    event = {"type": "DELETED", "object": MANIFESTS[2]}
    assert decode_event("Pod", json.dumps(event).encode()) == ("DELETED", decoded(MANIFESTS[2]))


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": "FOO", "object": {}}',
        b"{}",
        b'{"type": "ADDED"}',
        b'{"type": 5, "object": {}}',
        b'{"type": "A", "object": 5}',
    ],
)
def test_what_is_no_event_is_refused(line):
    with pytest.raises(ValueError, match="no "):
        decode_event("Pod", line)

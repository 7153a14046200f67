import base64
import json
from dataclasses import replace
from ipaddress import ip_address

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster import secret
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.objects import ClusterObjects, Namespace, NodeInfo, NodeObject, PodObject, parse
from kmesh.cluster.secret import Keyring
from kmesh.cluster.snapshot import GATEWAY_CONTROLLER, GATEWAY_LABEL, MODE_LABEL, build_view, enrolment, kmesh_node_info

from kmesh_bpf import ConfigError, Key

POD = PodObject("default", "p", {}, "n1", False, "Running", (ip_address("10.244.1.10"),), frozenset({"app"}))
NODE = NodeObject("n1", (ip_address("10.10.0.1"),), (), "boot")
KEY = "00112233445566778899aabbccddeeff" * 2 + "01234567"


@pytest.mark.parametrize(
    ("own", "inherited", "managed"),
    [
        (None, None, False),
        (None, "Kmesh", True),
        (None, "kmesh", True),
        (None, "ambient", False),
        ("KMESH", None, True),
        ("kmesh", "none", True),
        ("none", "Kmesh", False),
        ("None", "Kmesh", False),
        ("ambient", "Kmesh", False),
    ],
)
def test_the_pod_s_label_wins_over_its_namespace_s(own, inherited, managed):
    pod = replace(POD, labels={} if own is None else {MODE_LABEL: own})
    namespace = Namespace("default", {} if inherited is None else {MODE_LABEL: inherited})
    assert enrolment(pod, namespace).managed is managed


@pytest.mark.parametrize(
    "change",
    [
        {"host_network": True},
        {"phase": "Pending"},
        {"phase": "Succeeded"},
        {"addresses": ()},
        {"containers": frozenset({"app", "istio-proxy"})},
        {"labels": {MODE_LABEL: "kmesh", GATEWAY_LABEL: GATEWAY_CONTROLLER}},
    ],
)
def test_some_pods_are_never_managed_and_the_reason_is_said(change):
    found = enrolment(replace(POD, **{"labels": {MODE_LABEL: "kmesh"}, **change}), Namespace("default", {}))
    assert not found.managed
    assert found.reason


def test_a_view_has_peers_and_managed_pods_without_node_addresses():
    thief = replace(POD, name="q", addresses=(ip_address("10.10.0.1"),))
    infos = (NodeInfo("n1", 1, ("10.10.0.1",), "x", (), {}), NodeInfo("n2", 2, ("10.10.0.2",), "y", (), {}))
    objects = ClusterObjects((Namespace("default", {MODE_LABEL: "Kmesh"}),), (NODE,), (POD, thief), infos)
    view = build_view(objects, "n1", keys={}, services=(), announced=0, announced_at=0.0, boot_id="here")
    assert [(peer.node.name, peer.spi, peer.replay_window) for peer in view.peers] == [("n2", 2, 0)]
    assert [pod.name for pod in view.pods] == ["default/p"]
    assert view.node.boot_id == "here"


def test_our_announcement_reads_back_with_its_replay_window():
    info = parse(kmesh_node_info(NODE, 3, 4096, "id"))
    assert info == NodeInfo("n1", 3, ("10.10.0.1",), "id", (), {"kmesh.net/ipsec-replay-window": "4096"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("zz" * 36, "not hexadecimal"),
        ("abc", "odd number"),
        ("ab" * 35, "70 digits"),
        ("ab cd", "not hexa"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_with_its_own_sentence(text, why):
    with pytest.raises(ConfigError, match=why):
        secret.parse_key_text(text)


def test_the_secret_is_as_go_writes_and_reads_it():
    rendered = secret.render(secret.next_keys(None, [], secret.parse_key_text(KEY + "\n")))
    entry = json.loads(base64.b64decode(rendered["data"]["ipSec"]))
    assert entry == {
        "spi": 1,
        "aeadKeyName": "rfc4106(gcm(aes))",
        "aeadKey": base64.b64encode(bytes.fromhex(KEY)).decode(),
        "length": 128,
    }
    assert rendered["metadata"] == {"name": "kmesh-ipsec", "namespace": "kmesh-system"}


def test_each_next_key_is_one_above_all_ever_announced_and_older_ones_are_kept():
    ring = secret.next_keys(None, [], Key(bytes(36)))
    for _ in range(6):
        ring = secret.next_keys(ring, [1], Key(bytes(36)))
    assert ring.current == 7
    assert sorted(ring.keys) == [3, 4, 5, 6, 7]
    assert secret.parse_keys(secret.render(ring)) == ring
    assert secret.next_keys(None, [4, 9], Key(bytes(36))).current == 10


def test_a_key_that_may_not_follow_changes_nothing():
    held = Keyring(2, {2: Key(bytes(36))})
    with pytest.raises(ConfigError, match="backwards"):
        secret.accept(held, Keyring(1, {1: Key(bytes(36))}))
    with pytest.raises(ConfigError, match="another key under the SPI 2"):
        secret.accept(held, Keyring(2, {2: Key(b"x" * 36)}))
    assert secret.accept(held, held) is held


GOOD = {"spi": 1, "aeadKeyName": "rfc4106(gcm(aes))", "aeadKey": base64.b64encode(b"k" * 36).decode(), "length": 128}


@pytest.mark.parametrize(
    "change",
    [
        {"spi": 0},
        {"spi": "1"},
        {"spi": True},
        {"aeadKeyName": "cbc(aes)"},
        {"length": 96},
        {"aeadKey": "###"},
        {"aeadKey": "a2s="},
    ],
)
def test_a_bad_secret_is_refused_and_no_key_shows(change):
    coded = base64.b64encode(json.dumps({**GOOD, **change}).encode()).decode()
    with pytest.raises(ConfigError) as caught:
        secret.parse_keys({"data": {"ipSec": coded}})
    assert "kkk" not in str(caught.value)
    assert GOOD["aeadKey"] not in str(caught.value)


@given(st.binary(max_size=60))
def test_no_bytes_in_a_secret_raise_anything_else(junk):
    for data in ({"ipSec": junk.decode("latin1")}, {"ipSec": base64.b64encode(junk).decode()}):
        with pytest.raises(ConfigError):
            secret.parse_keys({"data": data})


def manifest(kind, name, **more):
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **more}


def test_yaml_json_many_documents_and_lists_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([manifest("Namespace", "a"), manifest("ConfigMap", "x")]))
    (tmp_path / "b.json").write_text(json.dumps({"kind": "List", "items": [manifest("Namespace", "b")]}))
    (tmp_path / "notes.txt").write_text("{")
    objects = FolderCluster(tmp_path).read()
    assert [one.name for one in objects.namespaces] == ["a", "b"]
    assert objects.problems == ()


def test_a_broken_file_is_reported_with_its_line_and_its_last_good_content_stays(tmp_path):
    cluster, path = FolderCluster(tmp_path), tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(manifest("Namespace", "a")))
    assert cluster.changed()
    assert len(cluster.read().namespaces) == 1
    assert not cluster.changed()
    path.write_text("kind: Namespace\nmetadata: {name: [\n")
    assert cluster.changed()
    objects = cluster.read()
    assert [one.name for one in objects.namespaces] == ["a"]
    assert "a.yaml line" in objects.problems[0]


def test_an_object_that_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path):
    bad = manifest("Node", "n9", status={"addresses": [{"type": "InternalIP", "address": "10.0.0.999"}]})
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([bad, manifest("Namespace", "a")]))
    objects = FolderCluster(tmp_path).read()
    assert [one.name for one in objects.namespaces] == ["a"]
    assert "Node n9" in objects.problems[0]
    assert "10.0.0.999" in objects.problems[0]


def test_publishing_and_withdrawing_a_node_info(tmp_path):
    cluster = FolderCluster(tmp_path)
    cluster.publish(kmesh_node_info(NODE, 1, 0, "id"))
    assert [info.name for info in cluster.read().node_infos] == ["n1"]
    cluster.withdraw("n1")
    cluster.withdraw("n1")
    assert cluster.read().node_infos == ()
    with pytest.raises(ConfigError, match="no node name"):
        cluster.withdraw("../n1")


def test_a_secret_in_somebody_else_s_file_is_not_touched(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(secret.render(secret.next_keys(None, [], Key(bytes(36))))))
    with pytest.raises(ConfigError, match=r"stands in mine\.yaml"):
        FolderCluster(tmp_path).change_secret(lambda *_: None)


def test_the_secret_s_file_is_readable_by_its_owner_only(tmp_path):
    FolderCluster(tmp_path).change_secret(lambda *_: secret.render(secret.next_keys(None, [], Key(bytes(36)))))
    assert (tmp_path / "secret-kmesh-ipsec.yaml").stat().st_mode & 0o777 == 0o600

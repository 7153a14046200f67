# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product

import pytest
from kmesh.cluster.objects import ClusterObjects, Namespace, collect, parse
from kmesh.cluster.snapshot import (
    MODE_LABEL,
    announced_by_us,
    build_view,
    enrolment,
    kmesh_node_info,
    local_node,
    pod_claims,
)

from kmesh_bpf import ConfigError, Key, Node, Peer, Pod
from tests.unit.cluster import kube
from tests.unit.cluster.test_objects import changed

KMESH = {MODE_LABEL: "Kmesh"}
GATEWAY = {"gateway.istio.io/managed": "istio.io-mesh-controller"}
SIDECAR = {"sidecar.istio.io/status": ""}
POD_LABELS = {
    None: None,
    "Kmesh": True,
    "kmesh": True,
    "KMESH": True,
    "none": False,
    "None": None,
    "ambient": None,
    "": None,
}
"""None: the namespace's label counts."""
NAMESPACE_LABELS = {None: False, "Kmesh": True, "kMESH": True, "none": False, "ambient": False, "": False}


def objects(*manifests) -> ClusterObjects:
    return collect(parse(one) for one in manifests)


def view(*manifests, **changes):
    known = {"keys": {}, "services": (), "announced": 0, "announced_at": 0.0, "boot_id": kube.BOOT_ID}
    return build_view(objects(*manifests), "n1", **(known | changes))


def labelled(value):
    return {} if value is None else {MODE_LABEL: value}


@pytest.mark.parametrize("namespace_label", [*NAMESPACE_LABELS, "missing"])
@pytest.mark.parametrize("pod_label", POD_LABELS)
def test_enrolment_is_the_truth_table_of_the_design(pod_label, namespace_label):
    namespace = None if namespace_label == "missing" else Namespace("default", labelled(namespace_label))
    by_label = POD_LABELS[pod_label]
    if by_label is None:
        by_label = NAMESPACE_LABELS.get(namespace_label, False)
    for host, phase, containers, init, annotations, gateway, addresses, deleting in product(
        (False, True),
        ("Running", "Pending", "Succeeded", "Failed", "Unknown", ""),
        (["app"], ["app", "istio-proxy"]),
        (["setup"], ["istio-proxy"]),
        ({}, SIDECAR),
        ({}, GATEWAY, {"gateway.istio.io/managed": "Istio.io-Mesh-Controller"}),
        (["10.244.1.10"], []),
        (None, "2026-11-24T00:00:00Z"),
    ):
        manifest = kube.pod(
            labels=labelled(pod_label) | gateway,
            hostNetwork=host,
            phase=phase,
            containers=containers,
            initContainers=init,
            annotations=annotations,
            addresses=addresses,
            deleting=deleting,
        )
        sidecar = "istio-proxy" in (*containers, *init) or bool(annotations)
        excluded = host or sidecar or bool(gateway) or not addresses
        answer = enrolment(parse(manifest), namespace)
        assert answer.managed == (by_label and not excluded), manifest
        assert answer.reason


@pytest.mark.parametrize(
    ("changes", "namespace_label", "reason"),
    [
        ({"labels": KMESH}, None, "its own label says 'Kmesh'"),
        ({"labels": {MODE_LABEL: "none"}}, "Kmesh", "its own label says 'none'"),
        ({}, "Kmesh", "the label of namespace default says 'Kmesh'"),
        ({}, None, "neither it nor its namespace carries the label istio.io/dataplane-mode=Kmesh"),
        ({"labels": KMESH, "hostNetwork": True}, None, "it shares its node's network (hostNetwork)"),
        ({"labels": {MODE_LABEL: "ambient"}}, "Kmesh", "the label of namespace default says 'Kmesh'"),
        ({"labels": KMESH, "annotations": SIDECAR}, None, "it has an Istio sidecar"),
        ({"labels": KMESH, "containers": ["istio-proxy"]}, None, "it has an Istio sidecar"),
        ({"labels": KMESH | GATEWAY}, None, "it is a gateway of the Istio mesh controller"),
        ({"labels": KMESH, "addresses": []}, None, "it has no address"),
    ],
)
def test_enrolment_tells_its_reason(changes, namespace_label, reason):
    assert enrolment(parse(kube.pod(**changes)), Namespace("default", labelled(namespace_label))).reason == reason


def test_a_pod_that_no_node_has_yet_is_not_managed():
    manifest = kube.pod(labels=KMESH)
    del manifest["spec"]["nodeName"]
    assert enrolment(parse(manifest), None).reason == "it is on no node yet"


def test_the_gateway_label_of_another_controller_excludes_nothing():
    assert enrolment(parse(kube.pod(labels=KMESH | {"gateway.istio.io/managed": "other"})), None).managed


def test_a_managed_pod_has_its_node_and_all_its_addresses():
    (pod,) = view(kube.node(), kube.namespace(**KMESH), kube.pod("web", 2, 10)).pods
    assert pod == Pod("default/web", "n2", (ip_address("10.244.2.10"), ip_address("fd00:244:2::a")), settled=True)


@pytest.mark.parametrize(
    ("changes", "settled"),
    [({}, True), ({"deleting": "2026-03-03T00:00:00Z"}, False)]
    + [({"phase": phase}, False) for phase in ("Pending", "Succeeded", "Failed", "Unknown")],
    ids=str,
)
def test_a_pod_is_settled_while_it_runs_and_nobody_has_asked_it_to_end(changes, settled):
    (pod,) = view(kube.node(), kube.namespace(**KMESH), kube.pod("web", 1, 10, **changes)).pods
    assert pod.settled is settled


def test_the_namespace_s_label_counts_in_that_namespace_only():
    pods = [kube.pod("a", namespace="x"), kube.pod("b", 1, 11, namespace="y")]
    assert [pod.name for pod in view(kube.node(), kube.namespace("x", **KMESH), kube.namespace("y"), *pods).pods] == [
        "x/a"
    ]


def test_what_dnat_may_turn_into_a_pod_s_address_is_a_candidate_unless_a_managed_pod_has_it():
    service = kube.service(externalIPs=["192.0.2.80", "10.244.1.10"])
    headless = kube.service("none", clusterIP="None", clusterIPs=["None"])
    found = view(kube.node(), kube.node(3), kube.node_info(2), service, headless, kube.pod(labels=KMESH)).candidates
    nodes = [f"10.10.0.{i}" for i in (1, 2, 3)] + [f"fd00:10::{i}" for i in (1, 2, 3)] + ["192.0.2.1", "192.0.2.3"]
    assert found == set(map(ip_address, [*nodes, "10.96.0.10", "fd00:96::a", "192.0.2.80"]))


def test_claims_that_do_not_hold_are_told_in_the_view():
    pods = [kube.pod(name, node, 10, labels=KMESH, addresses=["10.9.9.9"]) for name, node in (("a", 7), ("b", 2))]
    seen = view(kube.node(), kube.node(2), *pods)
    assert [pod.name for pod in seen.pods] == ["default/b"]
    (problem,) = seen.problems
    assert "default/a of node n7 (that Node is gone)" in problem


def test_peers_are_the_other_nodes_kmeshnodeinfos_by_name():
    annotations = {"kmesh.net/ipsec-replay-window": "4096", "kmesh.net/ipsec-node-traffic": "true"}
    annotated = kube.node_info(3, 4, **annotations)
    seen = view(kube.node(), kube.node(2), kube.node(3), annotated, kube.node_info(2), kube.node_info(1))
    peers = tuple(seen.peers)
    assert [(peer.node.name, peer.spi, peer.replay_window, peer.node_traffic) for peer in peers] == [
        ("n2", 1, 0, False),
        ("n3", 4, 4096, True),
    ]
    assert peers[0] == Peer(
        Node(
            "n2",
            (ip_address("10.10.0.2"), ip_address("fd00:10::2")),
            kube.INCARNATION,
            (ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64")),
        ),
        1,
    )


ANNOTATIONS = {"kmesh.net/ipsec-replay-window": "4096", "kmesh.net/ipsec-node-traffic": "true"}


@pytest.mark.parametrize(
    ("annotations", "boot_id", "ours"),
    [
        (ANNOTATIONS, kube.INCARNATION, True),
        ({"kmesh.net/ipsec-replay-window": "0"}, kube.INCARNATION, True),
        ({"kmesh.net/ipsec-node-traffic": "true"}, kube.INCARNATION, True),
        ({}, kube.INCARNATION, False),
        ({"other": "x"}, kube.INCARNATION, False),
        # A Go node that took over from one of ours: its daemon changes the spec and leaves the rest.
        (ANNOTATIONS, kube.BOOT_ID, False),
    ],
)
def test_a_go_node_is_told_from_one_of_ours_and_what_one_of_ours_left_there_counts_for_nothing(
    annotations, boot_id, ours
):
    info = changed(kube.node_info(2, **annotations), "spec.bootID", boot_id)
    assert announced_by_us(parse(info), parse(kube.node(2))) is ours
    (peer,) = view(kube.node(), kube.node(2), info).peers
    window = int(annotations.get("kmesh.net/ipsec-replay-window", 0))
    assert peer.replay_window == (window if ours else 0)
    assert peer.node_traffic is (ours and "kmesh.net/ipsec-node-traffic" in annotations)


def test_whose_node_object_is_gone_is_judged_by_its_annotations():
    assert announced_by_us(parse(changed(kube.node_info(2, **ANNOTATIONS), "spec.bootID", kube.BOOT_ID)), None)
    assert not announced_by_us(parse(kube.node_info(2)), None)


def test_a_go_node_that_has_no_key_yet_is_a_peer_with_spi_0():
    assert [peer.spi for peer in view(kube.node(), kube.node_info(2, 0)).peers] == [0]


def test_pod_cidrs_are_those_of_the_node_object_and_never_the_announced_ones():
    lying = kube.node_info(2)
    lying["spec"]["podCIDRS"] = ["10.244.1.0/24", "0.0.0.0/0"]
    (peer,) = view(kube.node(), kube.node(2), lying).peers
    assert peer.node.pod_cidrs == (ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64"))
    (peer,) = view(kube.node(), lying).peers
    assert peer.node.pod_cidrs == ()


@pytest.mark.parametrize(
    ("node", "info", "alive", "vouched"),
    [
        (kube.node(2), kube.node_info(2), True, True),
        (None, kube.node_info(2), False, True),
        (changed(kube.node(2), "metadata.deletionTimestamp", "2026-11-24T00:00:00Z"), kube.node_info(2), False, True),
        (kube.node(2), changed(kube.node_info(2), "metadata.deletionTimestamp", "2026-11-24T00:00:00Z"), False, True),
        (kube.node(2), changed(kube.node_info(2), "spec.addresses", ["10.10.0.2"]), True, True),
        (kube.node(2), changed(kube.node_info(2), "spec.addresses", ["10.10.0.2", "192.0.2.2"]), True, False),
    ],
)
def test_an_announcement_is_held_against_its_node_object(node, info, alive, vouched):
    (peer,) = view(kube.node(), *([node] if node else []), info).peers
    assert (peer.alive, peer.vouched) == (alive, vouched)


def test_no_announcement_draws_to_its_node_what_is_meant_for_addresses_that_its_node_object_has_not():
    addresses = ["10.10.0.3", "198.51.100.1"]
    info = changed(kube.node_info(3, **{"kmesh.net/ipsec-node-traffic": "true"}), "spec.addresses", addresses)
    (peer,) = view(kube.node(), kube.node(3), info).peers
    assert (peer.node_traffic, peer.unconfirmed) == (True, {ip_address("198.51.100.1")})
    (peer,) = view(kube.node(), info).peers
    assert peer.unconfirmed == set(map(ip_address, addresses)), "there is no Node n3"
    (peer,) = view(kube.node(), kube.node(2), kube.node_info(2)).peers
    assert peer.unconfirmed == frozenset()


def test_this_node_before_it_was_renamed_is_no_peer_and_a_living_one_with_our_address_is_one_to_quarantine():
    renamed = kube.node_info(1)
    renamed["metadata"]["name"] = "old-name"
    assert tuple(view(kube.node(), renamed).peers) == ()
    double = changed(kube.node_info(2), "spec.addresses", ["10.10.0.1"])
    assert [peer.node.name for peer in view(kube.node(), kube.node(2), double).peers] == ["n2"]


def test_the_own_node_is_its_node_object_with_the_incarnation_given():
    own = view(kube.node(), boot_id="incarnation").node
    assert own.boot_id == "incarnation"
    assert own.addresses == (ip_address("10.10.0.1"), ip_address("fd00:10::1"))
    assert own.pod_cidrs == (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64"))


def test_keys_services_and_announcement_are_passed_through():
    made = view(
        kube.node(), keys={1: Key(bytes(36))}, services=(ip_network("10.96.0.0/12"),), announced=1, announced_at=5.0
    )
    assert (dict(made.keys), made.services, made.announced, made.announced_at) == (
        {1: Key(bytes(36))},
        (ip_network("10.96.0.0/12"),),
        1,
        5.0,
    )


def test_without_its_own_node_object_a_node_has_no_view():
    with pytest.raises(ConfigError, match="the cluster has no Node 'n1'; is NODE_NAME right"):
        view(kube.node(2))


@pytest.mark.parametrize("lacking", ["addresses", "nodeInfo"])
def test_a_node_object_without_address_or_boot_id_is_refused(lacking):
    manifest = kube.node()
    del manifest["status"][lacking]
    with pytest.raises(ConfigError, match=r"Node n1 has no InternalIP or no status\.nodeInfo\.bootID"):
        view(manifest)


@pytest.mark.parametrize("window", [0, 4096])
def test_what_a_node_announces_is_what_its_peers_read(window):
    own = local_node(objects(kube.node()), "n1")
    manifest = kmesh_node_info(own, 3, window, "incarnation")
    assert (manifest["apiVersion"], manifest["kind"]) == ("kmesh.net/v1alpha1", "KmeshNodeInfo")
    assert set(manifest["spec"]) == {"spi", "addresses", "bootID", "podCIDRS"}
    cluster = objects(kube.node(1), kube.node(2), manifest)
    seen = build_view(cluster, "n2", keys={}, services=(), announced=0, announced_at=0.0, boot_id="x")
    assert tuple(seen.peers) == (Peer(Node("n1", own.addresses, "incarnation", own.pod_cidrs), 3, window, True),)


@pytest.mark.parametrize(("sends", "read"), [(None, 0), (2, 2), ("x", 0), ("-1", 0), (1 << 32, 0), ("2" * 5000, 0)])
def test_what_a_node_sends_with_is_told_and_anything_but_a_version_counts_as_not_told(sends, read):
    own = local_node(objects(kube.node()), "n1")
    cluster = objects(kube.node(1), kube.node(2), kmesh_node_info(own, 3, 64, "incarnation", sends))
    seen = build_view(cluster, "n2", keys={}, services=(), announced=0, announced_at=0.0, boot_id="x")
    assert [peer.sends for peer in seen.peers] == [read]


def test_what_a_go_node_has_left_of_an_announcement_of_ours_tells_nothing():
    own = local_node(objects(kube.node()), "n1")
    cluster = objects(kube.node(1), kube.node(2), kmesh_node_info(own, 3, 64, own.boot_id, 2))
    seen = build_view(cluster, "n2", keys={}, services=(), announced=0, announced_at=0.0, boot_id="x")
    assert [peer.sends for peer in seen.peers] == [0]


def test_what_a_node_announces_goes_with_its_node_object_where_that_can_be_named():
    own = local_node(objects(kube.node()), "n1")
    manifest = kmesh_node_info(own, 3, 0, "incarnation")
    assert manifest["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-of-n1"}
    ]
    assert parse(manifest).owner == own.uid
    assert "ownerReferences" not in kmesh_node_info(replace(own, uid=""), 3, 0, "incarnation")["metadata"]


def test_a_thousand_nodes_with_ten_pods_each_are_one_view():
    infos = [
        replace(parse(kube.node_info(2)), name=f"n{i}", addresses=(f"10.{i >> 8}.{i & 255}.1",)) for i in range(2, 1002)
    ]
    base = parse(kube.pod(labels=KMESH))
    pods = [
        replace(base, name=f"p{i}", node=f"n{i // 10}", addresses=(ip_address((100 << 24) + i),)) for i in range(10_000)
    ]
    found = ClusterObjects(nodes=(parse(kube.node()),), node_infos=tuple(infos), pods=tuple(pods))
    assert len(pod_claims(found)[0]) == 10_000
    made = build_view(found, "n1", keys={}, services=(), announced=0, announced_at=0.0, boot_id="x")
    assert len(made.peers) == 1000

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product

import pytest
from kmesh.cluster.objects import ClusterObjects, Namespace, collect, parse
from kmesh.cluster.snapshot import MODE_LABEL, build_view, enrolment, kmesh_node_info, local_node, managed_pods

from kmesh_bpf import ConfigError, Key, Node, Peer, Pod
from tests.unit.cluster import kube

KMESH = {MODE_LABEL: "Kmesh"}
GATEWAY = {"gateway.istio.io/managed": "istio.io-mesh-controller"}
POD_LABELS = {
    None: None,
    "Kmesh": True,
    "kmesh": True,
    "KMESH": True,
    "none": False,
    "None": False,
    "ambient": False,
    "": False,
}
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
    for host, phase, containers, init, gateway, addresses in product(
        (False, True),
        ("Running", "Pending", "Succeeded", "Failed", "Unknown"),
        (["app"], ["app", "istio-proxy"]),
        (["setup"], ["istio-proxy"]),
        ({}, GATEWAY),
        (["10.244.1.10"], []),
    ):
        manifest = kube.pod(
            labels=labelled(pod_label) | gateway,
            hostNetwork=host,
            phase=phase,
            containers=containers,
            initContainers=init,
            addresses=addresses,
        )
        sidecar = "istio-proxy" in (*containers, *init)
        excluded = host or phase != "Running" or sidecar or bool(gateway) or not addresses
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
        ({"labels": KMESH, "phase": "Failed"}, None, "it is not Running (Failed)"),
        ({"labels": KMESH, "containers": ["istio-proxy"]}, None, "it has an Istio sidecar"),
        ({"labels": KMESH | GATEWAY}, None, "it is a gateway of the Istio mesh controller"),
        ({"labels": KMESH, "addresses": []}, None, "it has no address"),
    ],
)
def test_enrolment_tells_its_reason(changes, namespace_label, reason):
    assert enrolment(parse(kube.pod(**changes)), Namespace("default", labelled(namespace_label))).reason == reason


def test_a_pod_that_is_being_deleted_stays_managed_while_it_runs():
    manifest = kube.pod(labels=KMESH)
    manifest["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
    assert enrolment(parse(manifest), None).managed


def test_the_gateway_label_of_another_controller_excludes_nothing():
    assert enrolment(parse(kube.pod(labels=KMESH | {"gateway.istio.io/managed": "other"})), None).managed


def test_a_managed_pod_has_its_node_and_all_its_addresses():
    assert view(kube.node(), kube.namespace(**KMESH), kube.pod("web", 2, 10)).pods == (
        Pod("default/web", "n2", (ip_address("10.244.2.10"), ip_address("fd00:244:2::a"))),
    )


def test_the_namespace_s_label_counts_in_that_namespace_only():
    pods = [kube.pod("a", namespace="x"), kube.pod("b", 1, 11, namespace="y")]
    assert [pod.name for pod in view(kube.node(), kube.namespace("x", **KMESH), kube.namespace("y"), *pods).pods] == [
        "x/a"
    ]


def test_an_address_that_a_node_has_is_no_pod_s():
    pod = kube.pod(labels=KMESH, addresses=["10.10.0.1", "fd00:244:1::a"])
    assert view(kube.node(), pod).pods[0].addresses == (ip_address("fd00:244:1::a"),)
    peer_s = kube.pod(labels=KMESH, addresses=["10.10.0.2"])
    assert view(kube.node(), kube.node_info(2), peer_s).pods == ()


def test_of_two_running_pods_at_one_address_the_first_by_name_has_it_in_whatever_order_they_come():
    pods = [kube.pod(name, 1, 10, labels=KMESH) for name in ("b", "a")]
    assert [pod.name for pod in view(kube.node(), *pods).pods] == ["default/a"]
    assert view(kube.node(), *pods) == view(kube.node(), *reversed(pods))


def test_a_pod_that_ended_leaves_its_address_to_the_one_that_runs():
    pods = [kube.pod("a", labels=KMESH, phase="Succeeded"), kube.pod("b", labels=KMESH)]
    assert [pod.name for pod in view(kube.node(), *pods).pods] == ["default/b"]


def test_peers_are_the_other_nodes_kmeshnodeinfos_by_name():
    annotated = kube.node_info(3, 4, **{"kmesh.net/ipsec-replay-window": "4096"})
    peers = view(kube.node(), annotated, kube.node_info(2), kube.node_info(1)).peers
    assert [(peer.node.name, peer.spi, peer.replay_window) for peer in peers] == [("n2", 1, 0), ("n3", 4, 4096)]
    assert peers[0] == Peer(
        Node(
            "n2",
            (ip_address("10.10.0.2"), ip_address("fd00:10::2")),
            kube.BOOT_ID,
            (ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64")),
        ),
        1,
    )


def test_a_kmeshnodeinfo_with_an_address_of_ours_is_no_peer():
    renamed = kube.node_info(1)
    renamed["metadata"]["name"] = "old-name"
    assert view(kube.node(), renamed).peers == ()


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
    seen = build_view(
        objects(kube.node(2), manifest), "n2", keys={}, services=(), announced=0, announced_at=0.0, boot_id="x"
    )
    assert seen.peers == (Peer(Node("n1", own.addresses, "incarnation", own.pod_cidrs), 3, window),)


def test_a_thousand_nodes_with_ten_pods_each_are_one_view():
    infos = [
        replace(parse(kube.node_info(2)), name=f"n{i}", addresses=(f"10.{i >> 8}.{i & 255}.1",)) for i in range(2, 1002)
    ]
    base = parse(kube.pod(labels=KMESH))
    pods = [
        replace(base, name=f"p{i}", node=f"n{i // 10}", addresses=(ip_address((100 << 24) + i),)) for i in range(10_000)
    ]
    found = ClusterObjects(nodes=(parse(kube.node()),), node_infos=tuple(infos), pods=tuple(pods))
    assert len(managed_pods(found)) == 10_000
    made = build_view(found, "n1", keys={}, services=(), announced=0, announced_at=0.0, boot_id="x")
    assert len(made.peers) == 1000

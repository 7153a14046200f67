# SPDX-License-Identifier: Apache-2.0
import copy
from ipaddress import ip_address, ip_network

import pytest
from kmesh.cluster.objects import KeySecret, Namespace, NodeInfo, NodeObject, PodObject, collect, parse

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube

GONE = object()


def changed(manifest, path, value):
    """Set, or take out, the field at a dotted path."""
    made = copy.deepcopy(manifest)
    *parents, last = path.split(".")
    at = made
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at[name]
    if value is GONE:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    return made


def test_a_namespace_is_its_labels():
    assert parse(kube.namespace("a", x="y")) == Namespace("a", {"kubernetes.io/metadata.name": "a", "x": "y"})


def test_a_node_has_its_internal_addresses_in_order_its_pod_cidrs_and_its_boot_id():
    assert parse(kube.node(1)) == NodeObject(
        "n1",
        (ip_address("10.10.0.1"), ip_address("fd00:10::1")),
        (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64")),
        kube.BOOT_ID,
        (ip_address("192.0.2.1"),),
        "uid-of-n1",
    )


def test_an_externalip_that_is_no_address_takes_nothing_else_away():
    odd = changed(kube.node(1), "status.addresses.2.address", "ec2-192-0-2-1.compute.example")
    assert (parse(odd).external, len(parse(odd).addresses)) == ((), 2)


def test_what_is_being_deleted_is_told_apart():
    for manifest in (kube.node(), kube.pod(), kube.node_info()):
        assert not parse(manifest).deleting
        assert parse(changed(manifest, "metadata.deletionTimestamp", "2026-11-24T00:00:00Z")).deleting


def test_a_pod_keeps_when_it_was_made_and_its_annotations():
    pod = parse(kube.pod(created="2026-11-24T00:00:00Z", annotations={"sidecar.istio.io/status": "{}"}))
    assert (pod.created, pod.annotations) == ("2026-11-24T00:00:00Z", {"sidecar.istio.io/status": "{}"})
    assert (pod.label, parse(kube.pod()).created) == ("default/web", "")


def test_a_kmeshnodeinfo_knows_the_node_that_it_goes_with():
    owners = [{"kind": "ReplicaSet", "name": "x", "uid": "u-1"}, {"kind": "Node", "name": "n2", "uid": "u-2"}]
    assert parse(changed(INFO, "metadata.ownerReferences", owners)).owner == "u-2"
    assert parse(INFO).owner == ""


@pytest.mark.parametrize(("text", "takes"), [("true", True), ("false", False), ("True", False), ("", False)])
def test_traffic_of_nodes_is_announced_by_one_word(text, takes):
    assert parse(kube.node_info(2, **{"kmesh.net/ipsec-node-traffic": text})).node_traffic is takes
    assert not parse(INFO).node_traffic


def test_a_go_node_without_a_key_yet_is_read():
    assert parse(kube.node_info(2, 0)).spi == 0


def addresses(manifest) -> list[str]:
    return [str(address) for address in parse(manifest).addresses]


def test_a_service_is_all_its_addresses_each_once():
    balanced = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}, {"hostname": "lb.example"}, {"ip": "10.96.0.10"}]}}
    manifest = kube.service(externalIPs=["192.0.2.81"], loadBalancerIP="192.0.2.82", status=balanced)
    assert addresses(manifest) == ["10.96.0.10", "fd00:96::a", "192.0.2.81", "192.0.2.82", "192.0.2.80"]
    assert (parse(manifest).namespace, parse(manifest).name) == ("default", "web")


def test_a_service_of_former_days_has_its_clusterip():
    assert addresses(changed(kube.service(), "spec.clusterIPs", GONE)) == ["10.96.0.10"]


@pytest.mark.parametrize("none", [{"clusterIP": "None", "clusterIPs": ["None"]}, {"clusterIP": "", "clusterIPs": None}])
@pytest.mark.parametrize("status", [{}, {"loadBalancer": None}, {"loadBalancer": {"ingress": [{"hostname": "x"}]}}])
def test_a_service_may_have_no_address(none, status):
    assert addresses(kube.service(**none, status=status, type="ExternalName", externalName="db.example")) == []


def test_what_a_cloud_takes_for_a_load_balancer_s_address_and_is_none_is_ignored():
    assert addresses(kube.service(loadBalancerIP="eip-0a1b")) == ["10.96.0.10", "fd00:96::a"]


def test_a_service_of_another_group_is_none_of_ours():
    assert parse(kube.service() | {"apiVersion": "serving.knative.dev/v1"}) is None


def test_a_node_without_podcidrs_has_its_podcidr():
    assert parse(kube.node(1, podCIDR="10.1.0.0/24")).pod_cidrs == (ip_network("10.1.0.0/24"),)


def test_a_node_may_have_no_pod_cidr_at_all():
    assert parse(kube.node(1, providerID="kind://x")).pod_cidrs == ()


def test_a_pod_is_what_enrolment_and_addressing_need():
    manifest = kube.pod("web", 1, 10, labels={"app": "web"}, initContainers=["setup"], hostNetwork=True)
    assert parse(manifest) == PodObject(
        "default",
        "web",
        {"app": "web"},
        "n1",
        True,
        "Running",
        (ip_address("10.244.1.10"), ip_address("fd00:244:1::a")),
        frozenset({"app", "setup"}),
    )


def test_a_pod_without_podips_has_its_podip():
    assert parse(changed(kube.pod(), "status.podIPs", GONE)).addresses == (ip_address("10.244.1.10"),)


def test_a_pod_that_was_just_created_has_no_address_and_no_node():
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"}, "spec": {}}
    assert parse(manifest) == PodObject("b", "a", {}, "", False, "", (), frozenset())


def test_a_kmeshnodeinfo_keeps_its_addresses_as_text():
    annotated = kube.node_info(2, 7) | {}
    annotated["metadata"]["annotations"] = {"kmesh.net/ipsec-replay-window": "4096"}
    info = parse(annotated)
    assert info == NodeInfo(
        "n2",
        7,
        ("10.10.0.2", "fd00:10::2"),
        kube.INCARNATION,
        ("10.244.2.0/24", "fd00:244:2::/64"),
        {"kmesh.net/ipsec-replay-window": "4096"},
    )
    assert info.replay_window == 4096


@pytest.mark.parametrize("null", ["metadata.labels", "status.podIPs", "spec.hostNetwork", "spec.initContainers"])
def test_null_counts_as_absent(null):
    assert isinstance(parse(changed(kube.pod(hostNetwork=False, initContainers=[]), null, None)), PodObject)


@pytest.mark.parametrize(
    "manifest",
    [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}},
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"},
        {"apiVersion": "longhorn.io/v1beta2", "kind": "Node", "metadata": {"name": "n1"}, "spec": 5},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": "kmesh-system"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kmesh-ipsec", "namespace": "default"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kmesh-ipsec"}},
    ],
)
def test_what_does_not_concern_us_is_ignored(manifest):
    assert parse(manifest) is None


def test_our_secret_is_kept_whole_and_never_shows():
    manifest = kube.secret(kube.entry())
    assert parse(manifest) == KeySecret(manifest)
    assert manifest["data"]["ipSec"] not in repr(parse(manifest)) + repr(collect([parse(manifest)]))


NODE, POD, INFO, SERVICE = kube.node(), kube.pod(), kube.node_info(), kube.service()


@pytest.mark.parametrize(
    ("manifest", "path", "value", "sentence"),
    [
        (NODE, "status.addresses.0.address", "10.10.0", "Node n1: status.addresses[0].address: '10.10.0' does not"),
        (NODE, "status.addresses.0.address", 5, "Node n1: status.addresses[0].address is no string"),
        (NODE, "status.addresses.0.address", GONE, "Node n1: status.addresses[0].address is missing"),
        (NODE, "status.addresses.0.type", GONE, "Node n1: status.addresses[0].type is missing"),
        (NODE, "status.addresses", "10.0.0.1", "Node n1: status.addresses is no list"),
        (NODE, "spec.podCIDRs.0", "10.244.1.1/24", "Node n1: spec.podCIDRs: 10.244.1.1/24 has host bits set"),
        (NODE, "spec.podCIDRs.0", 7, "Node n1: spec.podCIDRs[0] is no string"),
        (NODE, "spec", "x", "Node n1: spec is no mapping"),
        (NODE, "apiVersion", "v2", "Node n1: apiVersion 'v2' is not v1"),
        (POD, "status.podIPs.1.ip", "nonsense", "Pod default/web: status.podIPs[1].ip: 'nonsense' does not appear"),
        (POD, "status.podIPs.0", "10.0.0.1", "Pod default/web: status.podIPs[0] is no mapping"),
        (POD, "metadata.labels", ["a"], "Pod default/web: metadata.labels is no mapping"),
        (POD, "spec.containers.0.name", GONE, "Pod default/web: spec.containers[0].name is missing"),
        (POD, "status.phase", 1, "Pod default/web: status.phase is no string"),
        (INFO, "apiVersion", "kmesh.net/v1", "KmeshNodeInfo kmesh-system/n2: apiVersion 'kmesh.net/v1' is not kmesh"),
        (INFO, "apiVersion", "other.io/v1", "KmeshNodeInfo kmesh-system/n2: apiVersion 'other.io/v1' is not kmesh"),
        (INFO, "spec.spi", -1, "KmeshNodeInfo kmesh-system/n2: spec.spi is no number from 0 to 4294967295"),
        (INFO, "spec.spi", 1 << 32, "KmeshNodeInfo kmesh-system/n2: spec.spi is no number from 0 to 4294967295"),
        (INFO, "spec.spi", True, "KmeshNodeInfo kmesh-system/n2: spec.spi is no number from"),
        (INFO, "spec.spi", "1", "KmeshNodeInfo kmesh-system/n2: spec.spi is no number from"),
        (INFO, "spec.spi", GONE, "KmeshNodeInfo kmesh-system/n2: spec.spi is no number from"),
        (INFO, "spec.addresses", [], "KmeshNodeInfo kmesh-system/n2: spec.addresses is empty"),
        (INFO, "spec.addresses.0", 1, "KmeshNodeInfo kmesh-system/n2: spec.addresses[0] is no string"),
        (INFO, "spec.addresses.1", "FD00:10::2", "spec.addresses: 'FD00:10::2' is not written as 'fd00:10::2'"),
        (INFO, "spec.bootID", "", "KmeshNodeInfo kmesh-system/n2: spec.bootID is missing"),
        (INFO, "spec.bootID", None, "KmeshNodeInfo kmesh-system/n2: spec.bootID is missing"),
        (INFO, "spec.podCIDRS.0", "10.0.0.0/33", "KmeshNodeInfo kmesh-system/n2: spec.podCIDRS: '10.0.0.0/33'"),
        (INFO, "spec", GONE, "KmeshNodeInfo kmesh-system/n2: spec.addresses is empty"),
        (SERVICE, "spec.clusterIPs.0", "10.96.0", "Service default/web: spec.clusterIPs: '10.96.0' does not appear"),
        (SERVICE, "spec.externalIPs", ["x"], "Service default/web: spec.externalIPs[0]: 'x' does not appear"),
        (SERVICE, "spec.externalIPs", ["fe80::1%eth0"], "spec.externalIPs[0]: 'fe80::1%eth0' has a zone"),
        (SERVICE, "status.loadBalancer", [], "Service default/web: status.loadBalancer is no mapping"),
        (POD, "metadata.creationTimestamp", 5, "Pod default/web: metadata.creationTimestamp is no string"),
        (POD, "metadata.annotations", [], "Pod default/web: metadata.annotations is no mapping"),
        (INFO, "metadata.ownerReferences", {}, "KmeshNodeInfo kmesh-system/n2: metadata.ownerReferences is no list"),
        (POD, "metadata.name", GONE, "a Pod without metadata.name"),
        (POD, "metadata.name", 5, "a Pod without metadata.name"),
        (POD, "metadata", GONE, "a Pod without metadata.name"),
        (POD, "kind", GONE, "an object without kind"),
        (POD, "kind", 3, "an object without kind"),
    ],
)
def test_an_object_that_cannot_be_used_is_refused_by_kind_name_and_field(manifest, path, value, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(changed(manifest, path, value))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kmeshnodeinfo_of_another_namespace_speaks_for_no_node():
    with pytest.raises(ConfigError, match=r"KmeshNodeInfo default/n2: metadata.namespace is not kmesh-system"):
        parse(changed(INFO, "metadata.namespace", "default"))
    with pytest.raises(ConfigError, match=r"KmeshNodeInfo default/n2: metadata.namespace is not kmesh-system"):
        parse(changed(INFO, "metadata.namespace", GONE))


@pytest.mark.parametrize(
    ("text", "window"),
    [("0", 0), ("1", 1), ("64", 64), ("4096", 4096)]
    + [(bad, None) for bad in ("4097", "-1", "", " 64", "64.0", "many", "\u0664", "9" * 5000)],
)
def test_a_replay_window_that_cannot_be_used_is_told_and_counts_as_none(text, window):
    info = parse(changed(INFO, "metadata.annotations", {"kmesh.net/ipsec-replay-window": text}))
    assert info.replay_window == window
    problems = collect([info], ["earlier"]).problems
    assert problems[0] == "earlier"
    assert len(problems) == (2 if window is None else 1)
    if window is None:
        assert problems[1].startswith("KmeshNodeInfo kmesh-system/n2: annotation kmesh.net/ipsec-replay-window")
        assert len(problems[1]) < 200


def test_without_the_annotation_there_is_no_replay_window():
    assert parse(INFO).replay_window == 0


def test_collecting_sorts_the_objects_by_kind():
    manifests = [
        kube.pod(),
        kube.node(),
        kube.secret(kube.entry()),
        kube.namespace(),
        kube.node_info(),
        kube.service(),
    ]
    objects = collect(parse(one) for one in manifests)
    parts = (objects.pods, objects.nodes, objects.namespaces, objects.node_infos, objects.service_objects)
    assert [len(part) for part in parts] == [1] * 5
    assert objects.secret == manifests[2]
    assert objects.problems == ()


def test_a_service_cidr_is_its_cidrs_and_those_of_other_groups_are_none_of_ours():
    assert [str(cidr) for cidr in parse(kube.service_cidr()).cidrs] == ["10.96.0.0/12"]
    assert parse(kube.service_cidr() | {"apiVersion": "other.example/v1"}) is None
    with pytest.raises(ConfigError, match=r"ServiceCIDR kubernetes: apiVersion .* is not networking\.k8s\.io/v1"):
        parse(kube.service_cidr() | {"apiVersion": "networking.k8s.io/v1beta1"})
    with pytest.raises(ConfigError, match=r"ServiceCIDR kubernetes: spec\.cidrs: "):
        parse(kube.service_cidr(cidrs=["10.96.0.1/12"]))

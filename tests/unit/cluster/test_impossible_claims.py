# SPDX-License-Identifier: Apache-2.0
"""Objects that name addresses which nobody can have: told by object and address, and nothing else is harmed by it."""

from ipaddress import ip_address

import pytest
from kmesh.cluster.objects import collect, parse
from kmesh.cluster.snapshot import MODE_LABEL, build_view, kmesh_node_info, local_node, refused

from kmesh_bpf import ConfigError, Key, Options, evidence
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import reconcile
from tests.unit.cluster import kube
from tests.unit.core import mesh

KMESH = {MODE_LABEL: "Kmesh"}
KINDS = {
    "127.0.0.1": "a loopback address",
    "::1": "a loopback address",
    "0.0.0.0": "the unspecified address",  # noqa: S104 # nothing is bound to it
    "::": "the unspecified address",
    "224.0.0.5": "a multicast address",
    "ff02::1": "a multicast address",
    "169.254.9.9": "a link-local address",
    "fe80::5": "a link-local address",
    "fe80::5%eth0": "an address with a zone",
    "::ffff:10.244.1.10": "the IPv4 address 10.244.1.10 written as an IPv6 address",
    "255.255.255.255": "the broadcast address",
}
IMPOSSIBLE = {str(ip_address(text)): kind for text, kind in KINDS.items()}
every_kind = pytest.mark.parametrize(("text", "kind"), IMPOSSIBLE.items())
where = pytest.mark.parametrize("place", ["first", "last"])


def added(addresses, text, place):
    return [text, *addresses] if place == "first" else [*addresses, text]


def cluster(node=None, info=None, pod=None):
    """Two nodes with a managed pod each; n2's objects, or its pod, may be others."""
    return collect(
        parse(one)
        for one in (
            kube.node(1),
            node or kube.node(2),
            kube.node_info(1),
            info or kube.node_info(2, 1, **{"kmesh.net/ipsec-node-traffic": "true"}),
            kube.pod("web", 1, 10, labels=KMESH),
            pod or kube.pod("api", 2, 11, labels=KMESH),
        )
    )


def outcome(objects):
    """Give the kernel that a node comes to, and what is told on the way."""
    kernel = FakeKernel(mesh.LINKS, lambda: 1000.0)
    for _ in range(2):
        view = build_view(
            objects,
            "n1",
            keys={1: Key(bytes(range(36)))},
            services=(),
            announced=1,
            announced_at=0.0,
            boot_id=kernel.remembered or "",
            known=evidence(kernel.observe()).tunnel_ends,
        )
        report = reconcile(kernel, view, Options(), lambda: 1000.0, lambda: "fresh".ljust(36, "0"))
    assert report.converged
    told = (*objects.problems, *map(str, report.plan.problems))
    return (kernel.sas, kernel.policies, kernel.pods, kernel.peers, report.plan.ready_peers), told


HONEST = outcome(cluster())


def test_the_comparison_sees_something():
    assert min(map(len, HONEST[0])) > 0
    assert HONEST[1] == ()


@every_kind
@where
def test_a_node_is_dealt_with_by_its_other_addresses(text, kind, place):
    node = kube.node(2)
    node["status"]["addresses"] = added(node["status"]["addresses"], {"type": "InternalIP", "address": text}, place)
    found, (problem,) = outcome(cluster(node=node))
    assert found == HONEST[0]
    assert problem.startswith(f"Node n2: InternalIP {text} is {kind}")


@every_kind
@where
def test_so_is_one_whose_announcement_has_it_as_a_go_node_s_would(text, kind, place):
    info = kube.node_info(2, 1, **{"kmesh.net/ipsec-node-traffic": "true"})
    info["spec"]["addresses"] = added(info["spec"]["addresses"], text, place)
    found, (problem,) = outcome(cluster(info=info))
    assert found == HONEST[0]
    assert problem.startswith(f"KmeshNodeInfo kmesh-system/n2: spec.addresses {text} is {kind}")


@every_kind
@where
def test_a_pod_is_managed_under_its_other_addresses(text, kind, place):
    pod = kube.pod("api", 2, 11, labels=KMESH, addresses=added(["10.244.2.11", "fd00:244:2::b"], text, place))
    objects = cluster(pod=pod)
    found, (problem,) = outcome(objects)
    assert found == HONEST[0]
    assert f"pod default/api of node n2 claims {text}, which is {kind}" in problem
    assert refused(objects) == {"default/api": problem}


@every_kind
def test_a_pod_that_has_nothing_else_is_not_managed_and_told(text, kind):
    found, (problem,) = outcome(cluster(pod=kube.pod("api", 2, 11, labels=KMESH, addresses=[text])))
    honest = {one: flags for one, flags in HONEST[0][2].items() if str(one) not in ("10.244.2.11", "fd00:244:2::b")}
    assert (found[2], kind in problem) == (honest, True)


@every_kind
def test_nobody_is_told_of_pods_that_are_not_managed_anyway(text, kind):
    del kind
    assert outcome(cluster(pod=kube.pod("api", 2, 11, addresses=[text])))[1] == ()
    host = kube.pod("api", 2, 11, labels=KMESH, addresses=[text], hostNetwork=True)
    assert outcome(cluster(pod=host))[1] == ()


@every_kind
def test_where_nothing_possible_is_left_the_object_is_refused(text, kind):
    info = kube.node_info(2)
    info["spec"]["addresses"] = [text]
    with pytest.raises(ConfigError, match=f"^KmeshNodeInfo kmesh-system/n2: spec.addresses: {text} is {kind}"):
        parse(info)
    node = kube.node(1)
    node["status"]["addresses"] = [{"type": "InternalIP", "address": text}]
    with pytest.raises(ConfigError, match=f"Node n1 has no InternalIP.*InternalIP {text} is {kind}"):
        local_node(collect([parse(node)]), "n1")


def test_an_announcement_of_ours_that_somebody_added_to_is_another_one_and_written_again():
    ours = kmesh_node_info(parse(kube.node(1)), 1, 0, "boot")
    found = parse(ours)
    ours["spec"]["addresses"].append("127.0.0.1")
    assert parse(ours) != found


def test_an_address_that_is_named_twice_counts_once():
    node, info = kube.node(2), kube.node_info(2, 1, **{"kmesh.net/ipsec-node-traffic": "true"})
    node["status"]["addresses"] += node["status"]["addresses"]
    info["spec"]["addresses"] += info["spec"]["addresses"]
    pod = kube.pod("api", 2, 11, labels=KMESH, addresses=["10.244.2.11", "fd00:244:2::b", "10.244.2.11"])
    found, told = outcome(cluster(node, info, pod))
    assert (found, told) == HONEST
    assert len(kmesh_node_info(parse(node), 1, 0, "boot")["spec"]["addresses"]) == 2


def test_a_node_whose_address_is_its_own_pod_s_loses_nobody_else_anything():
    node, info = kube.node(2), kube.node_info(2, 1, **{"kmesh.net/ipsec-node-traffic": "true"})
    node["status"]["addresses"].append({"type": "InternalIP", "address": "10.244.2.11"})
    info["spec"]["addresses"].append("10.244.2.11")
    found, told = outcome(cluster(node, info))
    address = ip_address("10.244.2.11")
    policies = [one for one in found[1].values() if one.block and one.dst.network_address == address]
    assert policies, "what is meant for the pod is dropped, not sent in clear"
    assert any("peer n2 claims 10.244.2.11, which is of pod default/api on node n2; quarantined" in one for one in told)

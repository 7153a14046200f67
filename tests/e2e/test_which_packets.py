# SPDX-License-Identifier: Apache-2.0
"""Which packets are meant: the managed pod's own address, decided after DNAT; nothing half encrypted."""

from contextlib import contextmanager

import pytest

from tests.lab.capture import Capture
from tests.lab.cluster import wait_for
from tests.lab.network import Pod, run
from tests.lab.traffic import Echo, exchange

SENT = 20
MASQUERADE = 'table ip cni { chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }'
HERE, THERE = "10.10.0.1", "10.10.0.2"


@contextmanager
def nft(node, *tables):
    """Have tables of somebody else on a node for the length of the block; each is ``family name { … }``."""
    run(f"nsenter --net=/run/netns/{node} nft -f -", "\n".join(tables))
    try:
        yield
    finally:
        for table in tables:
            family, name = table.split()[1:3]
            run(f"nsenter --net=/run/netns/{node} nft delete table {family} {name}")


def dnat(*rules):
    return f"table ip proxy {{ chain pre {{ type nat hook prerouting priority dstnat; {'; '.join(rules)}; }}; }}"


def service(name, **spec):
    """A Service; ``ingress`` is the address of its load balancer."""
    ingress = spec.pop("ingress", None)
    status = {"loadBalancer": {"ingress": [{"ip": ingress}]}} if ingress else {}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}


def ask(lab, source, target, packets=SENT):
    with Capture(lab.network) as seen:
        count = exchange(lab.pod(source), target, packets)
    print(f"{source} -> {target}: {count}, in clear {seen.pods_in_clear()}")
    return count, seen


def unencrypted(seen):
    """Count what was no ESP and no neighbour discovery: UDP either way, whoever stands in its addresses."""
    return sum(count for frame, count in seen.frames.items() if frame.protocol == 17)


@contextmanager
def opted_out(lab, name):
    lab.cluster.pod(lab.pod(name), {"istio.io/dataplane-mode": "none"})
    lab.wait_managed(lab.pod(name).address(4), managed=False)
    try:
        yield lab.pod(name)
    finally:
        lab.cluster.pod(lab.pod(name))
        lab.wait_managed(lab.pod(name).address(4))


@pytest.fixture
def far_pod(enrolled):
    """A pod of n2 whose addresses lie in no node's pod CIDR, as Calico's IPAM and AWS hand them out."""
    lab = enrolled
    pod = lab.network.add_pod("p2c", lab.network.nodes[1], 12, elsewhere=("10.244.140.65", "fd00:244:aa::65"))
    lab.cluster.pod(pod)
    echo = Echo(pod)
    lab.wait_managed(pod.address(4))
    wait_for("its device has its program", lambda: "dev vp2c ingress" in lab.daemons["n2"].text())
    yield lab, pod
    echo.close()
    lab.cluster.delete_pod("p2c")
    lab.network.delete_pod("p2c")


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_whose_address_is_in_no_pod_cidr_is_encrypted_like_any_other(far_pod, version):
    lab, pod = far_pod
    count, seen = ask(lab, "p1a", pod.address(version))
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    there = exchange(pod, lab.pod("p3a").address(version), SENT)
    assert there.lost == 0


@pytest.mark.parametrize("cidrs", [["10.244.2.0/24", "fd00:244:2::/64"], ["10.244.2.10/32"]], ids=["all", "one pod"])
def test_who_announces_the_pod_cidr_of_another_node_gets_none_of_its_traffic(enrolled, cidrs):
    lab = enrolled
    spec = {"spi": lab.cluster.spi("n1"), "addresses": ["10.10.0.9"], "bootID": "0" * 36, "podCIDRS": cidrs}
    metadata = {"name": "a-liar", "namespace": "kmesh-system"}
    lab.cluster.publish(
        {"apiVersion": "kmesh.net/v1alpha1", "kind": "KmeshNodeInfo", "metadata": metadata, "spec": spec}
    )
    try:
        wait_for("n1 knows it", lambda: "10.10.0.9" in run("ip -n n1 xfrm state"))
        count, seen = ask(lab, "p1a", lab.pod("p2a").address(4))
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
        assert not seen.esp(HERE, "10.10.0.9")
        assert "dst 10.10.0.9" not in run("ip -n n1 xfrm policy list src 0.0.0.0/0 dst 10.244.2.10/32")
    finally:
        lab.cluster.withdraw("a-liar")


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
@pytest.mark.parametrize(
    ("address", "spec"),
    [
        ("203.0.113.9", {"clusterIP": "None", "ingress": "203.0.113.9"}),
        ("203.0.113.10", {"clusterIP": "None", "externalIPs": ["203.0.113.10"]}),
        ("172.30.0.1", {"clusterIP": "172.30.0.1"}),
    ],
    ids=["load balancer", "external IP", "ClusterIP in no known CIDR"],
)
def test_an_address_that_is_translated_on_the_client_s_node_is_encrypted(enrolled, address, spec, masquerade):
    lab = enrolled
    lab.cluster.apply("service", service("web", **spec))
    run(f"ip -n n1 route replace {address} via {THERE}")
    wait_for("n1 knows the Service", lambda: address in lab.candidates("n1"))
    tables = [dnat(f"ip daddr {address} dnat to {lab.pod('p2a').address(4)}"), *([MASQUERADE] if masquerade else [])]
    try:
        with nft("n1", *tables):
            count, seen = ask(lab, "p1a", address)
        assert (count.lost, unencrypted(seen)) == (0, 0)
        assert seen.esp(HERE, THERE)
    finally:
        lab.cluster.remove("service")
        run(f"ip -n n1 route del {address}")


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
def test_a_service_address_that_stands_for_an_unmanaged_pod_is_clear_both_ways(enrolled, masquerade):
    lab = enrolled
    with opted_out(lab, "p2b") as pod:
        tables = [dnat(f"ip daddr 10.96.0.20 dnat to {pod.address(4)}"), *([MASQUERADE] if masquerade else [])]
        with nft("n1", *tables):
            count, seen = ask(lab, "p1a", "10.96.0.20")
    assert count.lost == 0
    assert not seen.esp(HERE, THERE)
    assert not seen.esp(THERE, HERE)
    assert unencrypted(seen) >= 2 * count.sent


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
@pytest.mark.parametrize("managed", [True, False], ids=["managed", "unmanaged"])
def test_a_host_port_of_another_node_is_encrypted_both_ways_whoever_is_behind_it(enrolled, managed, masquerade):
    """Between a managed pod and another node's own address everything is, so nothing is half encrypted."""
    lab = enrolled
    tables = [
        dnat(f"ip daddr {THERE} udp dport 7 dnat to {lab.pod('p2b').address(4)}"),
        *([MASQUERADE] if masquerade else []),
    ]
    with nft("n2", *tables):
        if managed:
            count, seen = ask(lab, "p1a", THERE)
        else:
            with opted_out(lab, "p2b"):
                count, seen = ask(lab, "p1a", THERE)
    assert (count.lost, unencrypted(seen)) == (0, 0)
    assert seen.esp(HERE, THERE)
    assert seen.esp(THERE, HERE)


def test_a_node_port_that_hands_on_to_a_pod_of_a_third_node_is_encrypted_on_both_legs(enrolled):
    lab = enrolled
    target = lab.pod("p3a").address(4)
    # As kube-proxy does with policy Cluster: marked for masquerading, so that the answer comes back this way.
    proxy = dnat(f"ip daddr {THERE} udp dport 7 meta mark set meta mark | 0x4000 dnat to {target}")
    masquerade = (
        "table ip marked { chain post { type nat hook postrouting priority srcnat; "
        "meta mark & 0x4000 == 0x4000 masquerade; }; }"
    )
    with nft("n2", proxy, masquerade):
        count, seen = ask(lab, "p1a", THERE)
    assert (count.lost, unencrypted(seen)) == (0, 0)
    assert all(seen.esp(*pair) for pair in ((HERE, THERE), (THERE, "10.10.0.3"), ("10.10.0.3", THERE), (THERE, HERE)))


def test_who_asks_a_node_port_from_outside_is_answered_by_a_pod_of_another_node(enrolled):
    """In clear to and from the node that was asked, as he is not managed; encrypted between the nodes."""
    lab = enrolled
    outside = lab.network.add_node()  # no Node of the cluster
    client = Pod(outside.name, outside.name, tuple(map(ip, outside.addresses)), "eth0")
    target = lab.pod("p2a").address(4)
    proxy = dnat(f"ip daddr {HERE} udp dport 7 meta mark set meta mark | 0x4000 dnat to {target}")
    masquerade = (
        "table ip marked { chain post { type nat hook postrouting priority srcnat; "
        "meta mark & 0x4000 == 0x4000 masquerade; }; }"
    )
    try:
        with nft("n1", proxy, masquerade), Capture(lab.network) as seen:
            count = exchange(client, HERE, SENT)
    finally:
        lab.network.delete_node(outside)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    assert seen.esp(HERE, THERE)
    assert seen.esp(THERE, HERE)


@pytest.mark.parametrize("version", [4, 6])
def test_a_process_of_another_node_is_talked_to_encrypted_both_ways(enrolled, version):
    lab = enrolled
    node = lab.network.nodes[1]
    echo = Echo(Pod(node.name, node.name, tuple(map(ip, node.addresses)), "eth0"))
    try:
        count, seen = ask(lab, "p1a", node.addresses[version == 6])
        assert (count.lost, unencrypted(seen)) == (0, 0)
    finally:
        echo.close()


def ip(text):
    from ipaddress import ip_address  # noqa: PLC0415 # in the VM, each import at the head costs seconds

    return ip_address(text)


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
def test_towards_a_node_without_a_daemon_nothing_leaves_in_clear(enrolled, masquerade):
    lab = enrolled
    with lab.silent_node() as pod:
        wait_for("n1 has a policy", lambda: "10.244.4.10/32" in run("ip -n n1 xfrm policy"))
        before = blocked("n1")
        with nft("n1", *([MASQUERADE] if masquerade else [])), Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), pod.address(4), SENT)
    print(f"to a node without a daemon: {count}, unencrypted {unencrypted(seen)}, {blocked('n1') - before} blocked")
    assert (count.received, unencrypted(seen)) == (0, 0)
    assert blocked("n1") - before >= SENT


def blocked(node):
    """Give how many packets a BLOCK policy of a node has dropped."""
    words = run(f"nsenter --net=/run/netns/{node} cat /proc/self/net/xfrm_stat").split()
    return int(words[words.index("XfrmOutPolBlock") + 1])

# SPDX-License-Identifier: Apache-2.0
"""What comes in clear, or forged, for a managed pod of this node as one of another node: by whatever address and way."""

import itertools
import json
import socket
import time
from contextlib import contextmanager

import pytest

from tests.e2e import layer2
from tests.e2e.telling import wait_ready, wait_reason
from tests.lab.cluster import wait_for
from tests.lab.frames import ethernet, inject, mac_of, udp, vxlan
from tests.lab.listening import Listening
from tests.lab.network import run, socket_in
from tests.lab.traffic import Flow, exchange

SENT = 20
PORT = 4243
OUTSIDE = "192.0.2.9"
PORTS = itertools.count(20000)
"""Of senders: connection tracking remembers what was made of one before, masqueraded or not."""
MASQUERADE = "chain post { type nat hook postrouting priority srcnat; udp dport 4243 masquerade; };"


@contextmanager
def arrivals(pod):
    """Give a list that grows by the source of each datagram that a pod gets at PORT."""
    listener = socket_in(pod.name, socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((pod.address(4), PORT))
    found = []
    listening = Listening([listener], lambda one: found.append(one.recvfrom(100)[1][0]))
    listening.start()
    try:
        yield found
    finally:
        listening.end()


@contextmanager
def translated(node, address, pod, *, masquerade):
    """Have a node translate an address to a pod, as a proxy for Services does."""
    pre = f"chain pre {{ type nat hook prerouting priority dstnat; ip daddr {address} dnat to {pod.address(4)}; }};"
    run(f"nsenter --net=/run/netns/{node} nft -f -", f"table ip proxy {{ {pre} {MASQUERADE if masquerade else ''} }}")
    try:
        yield
    finally:
        run(f"nsenter --net=/run/netns/{node} nft delete table ip proxy")


@contextmanager
def load_balancer(lab, address):
    """Have a Service with an address that no ServiceCIDR has, known to all nodes."""
    metadata = {"name": "web", "namespace": "default"}
    status = {"loadBalancer": {"ingress": [{"ip": address}]}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": "None"}}
    lab.cluster.apply("service", {**service, "status": status})
    try:
        for node in ("n1", "n2"):
            wait_for(f"{node} knows the Service", lambda one=node: address in lab.candidates(one))
        yield
    finally:
        lab.cluster.remove("service")


def send(index, source, target):
    """Send a node datagrams from the wire, in clear."""
    inject(index, ethernet(mac_of(index), udp(source, target, PORT, source_port=next(PORTS))), SENT)


def dropped(lab, node):
    return lab.counters(node)["dropped_clear_text"]


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
@pytest.mark.parametrize("address", ["10.96.0.30", "203.0.113.19"], ids=["ClusterIP", "load balancer"])
@pytest.mark.parametrize("index", [1, 2], ids=["TCX", "clsact"])
def test_what_is_translated_on_the_receiving_node_is_taken_from_no_managed_pod_of_another(
    enrolled, index, address, masquerade
):
    lab, node = enrolled, f"n{index}"
    pod, other = lab.pod(f"p{index}a"), lab.pod(f"p{3 - index}a")
    with (
        load_balancer(lab, "203.0.113.19"),
        translated(node, address, pod, masquerade=masquerade),
        arrivals(pod) as found,
        Flow(other, pod.address(4), 50) as count,
    ):
        before = dropped(lab, node)
        send(index, OUTSIDE, address)
        assert len(found) == SENT, "from outside it comes through"
        assert (OUTSIDE in found) is not masquerade
        assert dropped(lab, node) == before
        send(index, lab.pod("p3a").address(4), address)
        print(f"{node} {address} masquerade {masquerade}: arrived {len(found) - SENT}, {dropped(lab, node) - before}")
        assert len(found) == SENT
        assert dropped(lab, node) - before == SENT
        time.sleep(1)
    assert count.received > SENT
    assert count.lost == 0


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
def test_an_address_that_nobody_but_the_receiving_node_s_rules_knows_changes_nothing(enrolled, masquerade):
    lab, address = enrolled, "198.51.100.7"
    pod = lab.pod("p1a")
    with translated("n1", address, pod, masquerade=masquerade), arrivals(pod) as found:
        before = dropped(lab, "n1")
        send(1, OUTSIDE, address)
        send(1, lab.pod("p2a").address(4), address)
        assert len(found) == SENT
        assert (OUTSIDE in found) is not masquerade
        assert dropped(lab, "n1") - before == SENT


def hardware(pod):
    """Give the hardware address of a pod's device."""
    (link,) = json.loads(run(f"ip -n {pod.name} -j link show dev eth0"))
    return bytes.fromhex(link["address"].replace(":", ""))


def bridged_in(lab, pod, wrapped):
    """Send a pod behind a bridge frames of its own as somebody outside, then as a pod of another node; check both."""
    with arrivals(pod) as found:
        before = dropped(lab, pod.node)
        for source in (OUTSIDE, lab.pod("p1a").address(4)):
            frame = ethernet(hardware(pod), udp(source, pod.address(4), PORT))
            inject(3, wrapped(frame), SENT)
        print(f"bridged in: arrived from {set(found)}, {len(found)}; dropped {dropped(lab, pod.node) - before}")
        assert found == [OUTSIDE] * SENT
        assert dropped(lab, pod.node) - before == SENT


def test_what_a_flat_layer_2_bridges_in_is_dropped_counted_and_named(enrolled):
    lab, pod = enrolled, enrolled.pod("p3a")
    with layer2.flat(lab):
        wait_reason(lab, "n3", "cni0", "eth0")
        bridged_in(lab, pod, lambda frame: frame)
        assert exchange(pod, lab.pod("p1a").address(4), SENT).lost == 0  # what is routed is decrypted all the same
    wait_ready(lab, "n3")


def in_vxlan(frame):
    """Give what carries a frame to n3's vxlan: anybody on the wire may send it."""
    return ethernet(mac_of(3), vxlan("10.10.0.9", "10.10.0.3", layer2.VNI, frame))


def test_what_an_overlay_s_device_bridges_in_is_dropped_counted_and_named(enrolled):
    lab, pod = enrolled, enrolled.pod("p3a")
    with layer2.overlay(lab):
        wait_reason(lab, "n3", "cni0", "vx0")
        bridged_in(lab, pod, in_vxlan)
        assert exchange(pod, lab.pod("p1a").address(4), SENT).lost == 0
    wait_ready(lab, "n3")

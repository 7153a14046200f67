# SPDX-License-Identifier: Apache-2.0
"""Whose claim holds: nobody's word about somebody else makes a pod's traffic clear, or leads it elsewhere."""

import time
from contextlib import contextmanager

import pytest

from tests.lab.capture import Capture
from tests.lab.cluster import node_manifest, pod_manifest, wait_for
from tests.lab.network import Node, Pod, run
from tests.lab.traffic import Flow, exchange

SENT = 20


@contextmanager
def announced(lab, name, addresses, boot_id="0" * 36, spi=None, annotations=None):
    """Have a KmeshNodeInfo that no daemon of the lab has written."""
    metadata = {"name": name, "namespace": "kmesh-system", "annotations": annotations or {}}
    spec = {"spi": spi or lab.cluster.spi("n1"), "addresses": addresses, "bootID": boot_id, "podCIDRS": []}
    lab.cluster.publish(
        {"apiVersion": "kmesh.net/v1alpha1", "kind": "KmeshNodeInfo", "metadata": metadata, "spec": spec}
    )
    try:
        yield
    finally:
        lab.cluster.withdraw(name)


def said(lab, node, *words):
    return lambda: any(all(word in line for word in words) for line in lab.daemons[node].text().splitlines())


def flow_through(lab, change, undo=lambda: None):
    """Talk while something is claimed; give the count and what the wire saw."""
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 50) as count:
        time.sleep(0.5)
        change()
        time.sleep(4)
        undo()
        time.sleep(1)
    print(f"sent {count.sent} lost {count.lost} in clear {seen.pods_in_clear()}")
    return count, seen


@pytest.mark.parametrize("with_node", [False, True], ids=["announced", "announced, and in its Node object"])
@pytest.mark.parametrize("name", ["a-liar", "z-liar"])
def test_a_node_that_claims_pods_and_another_node_changes_nothing_between_those(enrolled, name, with_node):
    lab = enrolled
    addresses = ["10.10.0.9", lab.pod("p1a").address(4), lab.pod("p2a").address(4), "10.10.0.2"]
    manifest = node_manifest(Node(9))
    manifest["metadata"]["name"] = name
    manifest["status"]["addresses"] = [{"type": "InternalIP", "address": one} for one in addresses]
    lie = announced(lab, name, addresses)

    def begin():
        if with_node:
            lab.cluster.apply("node-liar", manifest)
        lie.__enter__()

    def end():
        lie.__exit__(None, None, None)
        lab.cluster.remove("node-liar")

    count, seen = flow_through(lab, begin, end)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    for node in ("n1", "n3"):  # n2 takes one without a Node for itself before it was renamed
        assert said(lab, node, f"peer {name} claims", "quarantined")()


def test_a_stale_pod_of_a_node_that_is_gone_does_not_take_a_live_pod_s_address(enrolled):
    lab = enrolled
    address = lab.pod("p2a").addresses
    ghost = Pod("a-ghost", "n9", address, "none")  # its name sorts first
    count, seen = flow_through(
        lab, lambda: lab.cluster.apply("ghost", pod_manifest(ghost)), lambda: lab.cluster.remove("ghost")
    )
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_an_announcement_whose_node_is_gone_yields_to_a_new_node_with_its_address(enrolled):
    lab = enrolled
    node = Node(lab.network.nodes[-1].index + 1)
    with announced(lab, "a-former", [node.addresses[0]]):
        wait_for("n1 knows it", lambda: node.addresses[0] in run("ip -n n1 xfrm state"))
        joined = lab.join()
        assert joined.addresses == node.addresses
        pod = lab.add_pod("p4a", joined.index, 10)
        try:
            lab.wait_managed(pod.address(4))
            time.sleep(3)
            with Capture(lab.network) as seen:
                count = exchange(lab.pod("p1a"), pod.address(4), SENT)
            assert (count.lost, seen.pods_in_clear()) == (0, 0)
        finally:
            lab.delete_pod("p4a")
            lab.leave(joined)


@pytest.mark.parametrize("phase", ["Pending", "Unknown", "Succeeded", ""])
def test_a_pod_is_managed_from_when_it_has_an_address_whatever_its_phase(enrolled, phase):
    lab = enrolled
    manifest = pod_manifest(lab.pod("p2b"))
    manifest["status"]["phase"] = phase
    lab.cluster.apply("pod-p2b", manifest)
    lab.cluster.pod(lab.pod("p1b"), {"a": phase or "none"})  # once this is known, so is what was written before it
    time.sleep(2)
    try:
        with Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), lab.pod("p2b").address(4), SENT)
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
    finally:
        for name in ("p2b", "p1b"):
            lab.cluster.pod(lab.pod(name))


def test_a_peer_that_toggles_its_replay_window_re_keys_nobody_else(enrolled):
    lab = enrolled
    was = {node: lab.cluster.info(node)["spec"]["bootID"] for node in ("n1", "n2")}

    def toggle():
        for window in ("0", "4096", "64"):
            with announced(lab, "z-toggle", ["10.10.0.9"], annotations={"kmesh.net/ipsec-replay-window": window}):
                time.sleep(1)

    count, seen = flow_through(lab, toggle)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    assert was == {node: lab.cluster.info(node)["spec"]["bootID"] for node in ("n1", "n2")}


def test_one_node_s_announcement_does_not_decide_the_next_spi(enrolled):
    lab = enrolled
    before = lab.cluster.spi("n1")
    with announced(lab, "z-liar", ["10.10.0.9"], spi=4294967294):
        done = lab.cluster.kmeshctl("secret", "create")
    assert done.returncode == 0
    assert f"SPI {before + 1}" in done.stdout
    assert "z-liar" in done.stderr
    lab.wait_spi(before + 1)

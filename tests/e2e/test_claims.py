"""Whose claim holds, under traffic: a node that lies, a pod that was left behind, pods before and after they run."""

from contextlib import contextmanager

import pytest

from tests.lab.capture import Capture
from tests.lab.cluster import node_manifest, pod_manifest, wait_for
from tests.lab.traffic import Flow, exchange

LIAR = "a-liar"
ELSEWHERE = "10.10.0.99"


@contextmanager
def nothing_in_clear(lab):
    """Traffic between two pods goes on, all of it encrypted, while the block runs and for a moment afterwards."""
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4)) as count:
        yield
        after = count.sent + 100
        wait_for("more was sent", lambda: count.sent >= after)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    assert sum(seen.esp("10.10.0.1", "10.10.0.2").values()) >= count.sent


def announcement(lab, *addresses):
    info = lab.cluster.info("n3")
    spec = {"addresses": list(addresses), "bootID": "1" * 36, "podCIDRS": ["10.244.1.0/24", "10.244.2.0/24"]}
    return {**info, "metadata": {"name": LIAR, "namespace": "kmesh-system"}, "spec": info["spec"] | spec}


def told(lab, node, words):
    wait_for(f"{node} says {words!r}", lambda: words in lab.daemons[node].text())


@pytest.mark.parametrize("with_node", [False, True], ids=["announced", "announced, and in its Node object"])
def test_a_node_that_claims_pods_and_another_node_changes_nothing_between_those(enrolled, with_node):
    lab = enrolled
    stolen = (lab.pod("p1a").address(4), lab.pod("p2a").address(4), "10.10.0.2")
    liar = node_manifest(lab.network.nodes[0])
    liar["metadata"]["name"] = LIAR
    liar["status"]["addresses"] = [{"type": "InternalIP", "address": one} for one in (ELSEWHERE, *stolen)]
    with nothing_in_clear(lab):
        if with_node:
            lab.cluster.put(liar)
        lab.cluster.publish(announcement(lab, ELSEWHERE, *stolen))
        for node in ("n1", "n3"):  # n2 takes one without a Node for itself before it was renamed
            told(lab, node, f"peer {LIAR} claims")
    lab.cluster.withdraw(LIAR)
    if with_node:
        lab.cluster.delete_node(LIAR)


def test_a_pod_left_behind_by_a_node_that_is_gone_takes_nothing_from_the_live_one_at_its_address(enrolled):
    lab = enrolled
    stale = pod_manifest(lab.pod("p2a"), nodeName="n9")
    stale["metadata"]["name"] = "a-stale-one"
    with nothing_in_clear(lab):
        lab.cluster.put(stale)
        for node in lab.daemons:
            assert lab.pod("p2a").address(4) in lab.managed(node)
    lab.cluster.delete_pod("a-stale-one")


@pytest.mark.parametrize("phase", ["Pending", "Succeeded"])
def test_what_a_pod_sends_before_and_after_it_runs_is_encrypted(enrolled, phase):
    lab = enrolled
    lab.cluster.pod(lab.pod("p1b"), phase=phase)
    lab.wait_managed(lab.pod("p1b").address(4))
    with Capture(lab.network) as seen:
        count = exchange(lab.pod("p1b"), lab.pod("p2b").address(4))
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    lab.cluster.pod(lab.pod("p1b"))

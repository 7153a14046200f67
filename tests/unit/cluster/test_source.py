"""The Kubernetes source over an API server whose answers come in the order and at the time that a test wants."""

import threading
from contextlib import closing

from kmesh.cluster.kubernetes.source import KubernetesCluster, Pods

from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, listed


def test_which_nodes_announce_nothing_is_asked_only_when_nodes_and_announcements_are_both_known():
    """Else a cluster that is well would have the pods of all its nodes read."""
    nodes_are_known = threading.Event()

    def answer(plural, _):
        if plural == "nodes":
            return listed(kube.node(1))
        if plural == "kmeshnodeinfos":
            assert nodes_are_known.wait(5)
            return listed(kube.node_info(1))
        return listed()

    api = FakeApi(answer)
    with closing(KubernetesCluster(api, pods=Pods.UNANNOUNCED)) as source:
        nodes = source._watches["Node"].shelf
        nodes._on_change, decide = lambda: (decide(), nodes_are_known.set()), nodes._on_change
        assert source.read().complete
    assert "pods" not in {plural for plural, _ in api.asked}

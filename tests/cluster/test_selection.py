# SPDX-License-Identifier: Apache-2.0
"""Which objects are watched: no more than somebody needs, and what is needed is never missing."""

from contextlib import closing

import pytest
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.opening import cluster

from tests.cluster.conftest import enrol, watched
from tests.contract.test_cluster_source import ENROLLED, seen
from tests.lab import objects
from tests.unit.cluster import kube


def test_a_pod_is_watched_while_it_or_its_namespace_is_labelled_and_no_other(server, opening):
    objects.put(server, kube.namespace("other"))
    enrol(server)
    source = opening()
    objects.put(server, kube.pod("in", namespace="default"))
    objects.put(server, kube.pod("out", number=11, namespace="other"))
    objects.put(server, kube.pod("own", number=12, namespace="other", labels=ENROLLED))
    seen(source, lambda objects: {pod.name for pod in objects.pods} == {"in", "own"})
    enrol(server, "other")
    seen(source, lambda objects: {pod.name for pod in objects.pods} == {"in", "own", "out"})
    objects.put(server, {"kind": "Namespace", "metadata": {"name": "other", "labels": {}}})
    seen(source, lambda objects: {pod.name for pod in objects.pods} == {"in", "own"})
    objects.put(server, kube.pod("in", namespace="default", phase="Succeeded"))
    ended = seen(source, lambda objects: any(pod.phase == "Succeeded" for pod in objects.pods))
    assert {pod.name for pod in ended.pods} == {"in", "own"}, "a pod counts until its object is gone"
    objects.delete(server, kube.pod("in", namespace="default"))
    seen(source, lambda objects: {pod.name for pod in objects.pods} == {"own"})


def test_a_pod_that_gets_or_loses_its_own_label_is_never_missing(server, opening):
    enrol(server)
    objects.put(server, kube.pod())
    source = opening()
    source.read()
    with watched(source, lambda found: len(found.pods) == 1):
        for labels in (ENROLLED, {}, ENROLLED, {}, ENROLLED):
            objects.put(server, kube.pod(labels=labels))
            seen(source, lambda objects, labels=labels: objects.pods[0].labels == labels)


def test_with_very_many_enrolled_namespaces_one_watch_does_and_pods_stay(server, opening, monkeypatch):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.MOST_NAMESPACES", 2)
    for name in ("default", "second", "third"):
        objects.put(server, kube.namespace(name))
        objects.put(server, kube.pod(name, namespace=name))
    source = opening()
    for count, name in enumerate(("default", "second", "third"), 1):
        enrol(server, name)
        seen(source, lambda objects, count=count: len(objects.pods) == count)
    assert len(source._pods) == 2
    objects.put(server, kube.namespace("third"))
    seen(source, lambda found: {pod.name for pod in found.pods} == {"default", "second"})


def test_every_node_is_watched_and_its_heartbeats_change_nothing(server, opening):
    objects.put(server, kube.node(1))
    source = opening()
    source.read()
    objects.put(server, kube.node(2))
    seen(source, lambda found: {node.name for node in found.nodes} == {"n1", "n2"})
    beat = kube.node(2)
    beat["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-24T00:00:00Z"}]
    revision = source._store.revision
    objects.put(server, beat)
    objects.put(server, kube.node(3))
    found = seen(source, lambda found: len(found.nodes) == 3)
    assert source._store.revision == revision + 1
    assert all(node.uid for node in found.nodes)


@pytest.fixture
def of_status(server):
    """The cluster as ``kmeshctl status --watch`` has it; without it the same is read, once."""
    flags = parser().parse_args(["status", "--watch", f"--kubeconfig={server.kubeconfig('admin', server.token)}"])
    with closing(cluster(flags, {})) as source:
        yield source


def names(found) -> set[str]:
    return {pod.name for pod in found.pods}


def test_status_reads_the_pods_of_nodes_that_announce_nothing_and_of_no_other(server, of_status):
    enrol(server)
    for number in (1, 2):
        objects.put(server, kube.node(number))
        objects.put(server, kube.pod(f"on-{number}", number))
    objects.put(server, kube.node_info(1))
    assert names(of_status.read()) == {"on-2"}
    objects.put(server, kube.node_info(2))
    seen(of_status, lambda found: found.pods == ())
    assert of_status._pods == {}
    objects.put(server, kube.node(3))
    objects.put(server, kube.pod("on-3", 3))
    seen(of_status, lambda found: names(found) == {"on-3"})


def test_of_very_many_nodes_that_announce_nothing_status_reads_the_pods_that_may_be_managed(
    server, of_status, monkeypatch
):
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.MOST_NODES", 1)
    enrol(server)
    objects.put(server, kube.namespace("other"))
    for number in (1, 2):
        objects.put(server, kube.node(number))
        objects.put(server, kube.pod(f"in-{number}", number))
        objects.put(server, kube.pod(f"out-{number}", number, 11, namespace="other"))
    assert names(of_status.read()) == {"in-1", "in-2"}
    objects.put(server, kube.node_info(1))
    seen(of_status, lambda found: names(found) == {"in-2", "out-2"})

# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes source over an API server whose answers come in the order and at the time that a test wants."""

import threading
from contextlib import closing, contextmanager

import pytest
from kmesh.cluster.kubernetes.resources import Collection
from kmesh.cluster.kubernetes.source import ALL_PODS, LABELLED, MOST_NAMESPACES, KubernetesCluster, Pods
from kmesh.cluster.snapshot import MODE_LABEL

from tests.contract.test_cluster_source import eventually
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


KMESH = {MODE_LABEL: "Kmesh"}
OF_DEFAULT = Collection("Pod", "default")


@contextmanager
def watching(namespaces=1, labelled=(), others=()):
    """The source where so many namespaces are enrolled, ``default`` first, once it has read all."""

    def answer(plural, asked):
        if plural == "namespaces":
            names = ["default", *(f"more-{number}" for number in range(1, namespaces))]
            return listed(*(kube.namespace(name, **KMESH) for name in names))
        if plural == "pods":
            return listed(*labelled) if "labelSelector" in asked else listed(*labelled, *others)
        return listed(kube.node(1)) if plural == "nodes" else listed()

    with closing(KubernetesCluster(FakeApi(answer))) as source:
        assert source.read().complete
        yield source


def shelf(source, collection):
    return source._pods[collection].shelf


def told(source, before):
    return sorted(name for _, name, _, _ in source.read().pods.changes(before.pods))


@pytest.mark.parametrize(("namespaces", "collection"), [(1, OF_DEFAULT), (MOST_NAMESPACES + 1, ALL_PODS)])
def test_an_event_of_a_pod_hands_on_that_pod_and_the_very_same_of_all_else(namespaces, collection):
    own, others = kube.pod("own", labels=KMESH), [kube.pod(f"web-{number}", 1, number) for number in range(1, 9)]
    with watching(namespaces, [own], others) as source:
        before = source.read()
        assert len(before.pods) == 9
        shelf(source, collection).put(kube.pod("web-3", 1, 99))
        now = source.read()
        assert told(source, before) == ["web-3"]
        assert all(getattr(now, part) is getattr(before, part) for part in ("nodes", "node_infos", "namespaces"))
        shelf(source, collection).remove(kube.pod("web-5"))
        shelf(source, collection).put(kube.pod("web-10", 1, 10))
        assert told(source, before) == ["web-10", "web-3", "web-5"], "also who missed the state in between"
        assert {pod.name for pod in source.read().pods} == {
            "own",
            "web-10",
            *(f"web-{n}" for n in (1, 2, 3, 4, 6, 7, 8)),
        }


def test_a_new_list_of_the_same_hands_on_the_very_same_and_wakes_nobody():
    others = [kube.pod(f"web-{number}", 1, number) for number in range(1, 5)]
    with watching(1, [], others) as source:
        before = source.read()
        for changed in ([], [kube.pod("web-1", 1, 77)]):
            draft = shelf(source, OF_DEFAULT).draft()
            for one in [*changed, *others[len(changed) :]]:
                draft.add(one)
            shelf(source, OF_DEFAULT).replace(draft)
            assert source.changed() == bool(changed)
            assert told(source, before) == ["web-1"][: len(changed)]


@pytest.mark.parametrize(("namespaces", "collection"), [(1, OF_DEFAULT), (MOST_NAMESPACES + 1, ALL_PODS)])
def test_a_pod_that_two_watches_bring_is_there_until_both_have_let_go_of_it(namespaces, collection):
    """That of its namespace, or of all, is believed; that of the label knows nothing of it once the label is off."""
    own = kube.pod("own", labels=KMESH)
    with watching(namespaces, [own]) as source:
        (pod,) = source.read().pods
        shelf(source, LABELLED).put(kube.pod("own", 1, 50, labels=KMESH))
        assert list(source.read().pods) == [pod]
        shelf(source, collection).put(kube.pod("own", 1, 60))
        shelf(source, LABELLED).remove(own)
        (pod,) = source.read().pods
        assert (str(pod.addresses[0]), pod.labels) == ("10.244.1.60", {})
        shelf(source, LABELLED).put(own)
        shelf(source, collection).remove(own)
        (pod,) = source.read().pods
        assert str(pod.addresses[0]) == "10.244.1.10"
        shelf(source, LABELLED).remove(own)
        assert source.read().pods == ()


def test_pods_of_a_watch_that_ends_are_gone_but_for_those_that_another_one_has():
    own, other = kube.pod("own", labels=KMESH), kube.pod("other", 1, 11)
    with watching(1, [own], [other]) as source:
        before = source.read()
        assert {pod.name for pod in before.pods} == {"own", "other"}
        source._watches["Namespace"].shelf.put(kube.namespace())
        assert OF_DEFAULT not in source._pods
        assert told(source, before) == ["other", "own"], "of the latter another watch's object counts now"
        between = source.read()
        assert {pod.name for pod in between.pods} == {"own"}
        source._watches["Namespace"].shelf.put(kube.namespace(**KMESH))
        assert eventually(lambda: {pod.name for pod in source.read().pods} == {"own", "other"})
        assert {pod.name for pod in between.pods} == {"own"}, "who has read keeps what was"


def test_what_is_odd_about_announcements_is_told_as_long_as_it_is_so():
    with watching() as source:
        infos = source._watches["KmeshNodeInfo"].shelf
        for number in (3, 2):
            infos.put(kube.node_info(number, **{"kmesh.net/ipsec-replay-window": "many"}))
        assert ["n2:" in source.read().problems[0], "n3:" in source.read().problems[1]] == [True, True]
        infos.put(kube.node_info(2))
        infos.remove(kube.node_info(3))
        assert source.read().problems == ()

# SPDX-License-Identifier: Apache-2.0
"""Who asks once watches nothing: each collection is listed, in an order that is always the same, and no more than that."""

import json

import pytest
from kmesh.cluster.kubernetes.resources import OF_OPERATORS, refusal
from kmesh.cluster.kubernetes.source import EVERYTHING, KubernetesCluster, Pods
from kmesh.cluster.source import read_whole
from kmesh.errors import ApiError, ClusterError

from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, listed

ITEMS = {
    "namespaces": [kube.namespace("default", **{"istio.io/dataplane-mode": "Kmesh"})],
    "nodes": [kube.node(1), kube.node(2)],
    "kmeshnodeinfos": [kube.node_info(1)],
    "secrets": [kube.secret(kube.entry(1))],
    "pods": [kube.pod("web", 2, 10)],
    "services": [kube.service("cart")],
    "servicecidrs": [kube.service_cidr()],
}


def never(plural, parameters):
    raise AssertionError(f"{plural} are watched: {parameters}")


@pytest.mark.parametrize("pods", Pods)
def test_all_that_is_needed_is_there_after_one_read_and_nothing_is_watched(pods):
    api = FakeApi(lambda plural, _: listed(*ITEMS[plural]), never)
    source = KubernetesCluster(api, pods=pods, hasty=True, once=True)
    objects = read_whole(source)
    assert [pod.name for pod in objects.pods] == ["web"]
    assert (len(objects.nodes), len(objects.node_infos), len(objects.service_objects)) == (2, 1, 1)
    count = len(api.asked)
    assert source.read() is objects
    assert len(api.asked) == count
    source.close()


@pytest.mark.parametrize("refused", ["secrets", "nodes", "pods"])
def test_what_is_refused_is_told_and_nothing_more_is_asked(refused):
    def answer(plural, _):
        if plural == refused:
            raise ApiError(f"may not list {plural}", 403)
        return listed(*ITEMS[plural])

    api = FakeApi(answer, never)
    source = KubernetesCluster(api, pods=Pods.EVERY, hasty=True, once=True)
    with pytest.raises(ClusterError, match=f"may not list {refused}"):
        read_whole(source)
    assert api.asked[-1][0] == refused
    source.close()


def test_of_several_refused_it_is_always_the_same_that_is_named():
    def refuse(plural, _):
        raise ApiError(f"may not list {plural}", 403)

    for kinds, first in ((EVERYTHING, "namespaces"), (frozenset({"Secret"}), "secrets")):
        source = KubernetesCluster(FakeApi(refuse, never), kinds=kinds, hasty=True, once=True)
        with pytest.raises(ClusterError, match=f"may not list {first}"):
            read_whole(source)
        source.close()


def test_a_server_without_service_cidrs_is_read_all_the_same():
    def answer(plural, _):
        if plural == "servicecidrs":
            raise ApiError("not there", 404)
        return listed(*ITEMS[plural])

    source = KubernetesCluster(FakeApi(answer, never), hasty=True, once=True)
    assert read_whole(source).services == ()
    source.close()


@pytest.mark.parametrize(
    ("user", "who"),
    [
        ("ann", "--user=ann"),
        ("o'hara; rm", "--user='o'\"'\"'hara; rm'"),
        ("system:serviceaccount:ops:bot", "--serviceaccount=ops:bot"),
    ],
)
def test_whoever_lacks_rights_gets_commands_that_can_be_pasted(user, who):
    said = f'secrets "kmesh-ipsec" is forbidden: User "{user}" cannot list resource "secrets" in API group "" in the namespace "x"'
    body = f'{{"message": {json.dumps(said)}}}'.encode()
    error = refusal("list", "secrets of namespace kmesh-system", 403, body, OF_OPERATORS)
    assert str(error) == (
        f"may not list secrets of namespace kmesh-system: no role of user {user} permits it; bind the role "
        f"kmesh-ipsec-operator: kubectl create clusterrolebinding kmesh-ops --clusterrole=kmesh-ipsec-operator {who} && "
        f"kubectl -n kmesh-system create rolebinding kmesh-ops --role=kmesh-ipsec-operator {who}"
    )

# SPDX-License-Identifier: Apache-2.0
from contextlib import closing
from types import SimpleNamespace

import pytest
from kmesh.cluster.kubernetes.resources import refusal
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.objects import ClusterObjects, collect, parse
from kmesh.errors import ClusterError
from kmesh.launcher.config import parse as flags
from kmesh.launcher.daemon import Daemon

from kmesh_bpf import FakeKernel
from tests.unit.cluster import kube
from tests.unit.cluster.fake_api import FakeApi, listed


@pytest.fixture
def daemon():
    config = flags(["--enable-ipsec=true", "--service-cidr=10.96.0.0/12"], "n1", "host")
    return Daemon(
        config,
        None,
        FakeKernel(),
        SimpleNamespace(clock=lambda: 0.0, count=lambda *_: None),
        None,
    )


def test_service_cidrs_are_those_of_the_flags_and_those_of_the_cluster(daemon):
    found = collect([parse(kube.node()), parse(kube.service_cidr("a", ["fd00::/112"])), parse(kube.service_cidr())])
    assert [str(cidr) for cidr in daemon.view(found).services] == ["10.96.0.0/12", "fd00::/112"]


def test_of_a_server_that_has_no_service_cidrs_nothing_is_missing_and_those_of_the_flags_are_used(daemon, monkeypatch):
    """One before 1.33: it answers as it does for every path that it does not know."""
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 2.0)

    def answer(plural, _):
        if plural == "servicecidrs":
            raise refusal("list", plural, 404, b"404 page not found\n")
        return listed(kube.node()) if plural == "nodes" else listed()

    with closing(KubernetesCluster(FakeApi(answer))) as source:
        found = source.read()
    assert (found.complete, found.problems, found.services) == (True, (), ())
    assert [str(cidr) for cidr in daemon.view(found).services] == ["10.96.0.0/12"]


def test_a_cluster_that_is_not_known_as_a_whole_gives_no_view(daemon):
    half = ClusterObjects(nodes=(parse(kube.node()),), problems=("no answer",), complete=False)
    with pytest.raises(ClusterError, match="the cluster is not known yet: no answer"):
        daemon.view(half)

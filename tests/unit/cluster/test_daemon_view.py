from types import SimpleNamespace

import pytest
from kmesh.cluster.objects import ClusterObjects, collect, parse
from kmesh.errors import ClusterError
from kmesh.launcher.config import parse as flags
from kmesh.launcher.daemon import Daemon

from tests.unit.cluster import kube


@pytest.fixture
def daemon():
    config = flags(["--enable-ipsec=true", "--service-cidr=10.96.0.0/12"], "n1", "host")
    return Daemon(config, None, SimpleNamespace(incarnation=lambda: None), SimpleNamespace(clock=lambda: 0.0))


def test_service_cidrs_are_those_of_the_flags_and_those_of_the_cluster(daemon):
    found = collect([parse(kube.node()), parse(kube.service_cidr("a", ["fd00::/112"])), parse(kube.service_cidr())])
    assert [str(cidr) for cidr in daemon.view(found).services] == ["10.96.0.0/12", "fd00::/112"]


def test_a_cluster_that_is_not_known_as_a_whole_gives_no_view(daemon):
    half = ClusterObjects(nodes=(parse(kube.node()),), problems=("no answer",), complete=False)
    with pytest.raises(ClusterError, match="the cluster is not known yet: no answer"):
        daemon.view(half)

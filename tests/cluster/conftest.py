"""One API server for all tests; each finds it without objects of another."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.source import ClusterSource

from tests.lab import objects
from tests.lab.apiserver import ROOT, ApiServer
from tests.lab.cable import Cable
from tests.unit.cluster import kube


@pytest.fixture(scope="session")
def programs() -> Path:
    return ApiServer.available()


@pytest.fixture(scope="session")
def started(programs, tmp_path_factory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("apiserver"), programs) as server:
        prepare(server)
        yield server


def prepare(server: ApiServer) -> None:
    server.kubectl("apply", "--validate=strict", "-f", str(ROOT / "deploy/base/crd.yaml"))
    server.kubectl("wait", "--for=condition=Established", "crd/kmeshnodeinfos.kmesh.net", "--timeout=60s")
    objects.put(server, kube.namespace("kmesh-system"))


@pytest.fixture
def server(started) -> Iterator[ApiServer]:
    yield started
    objects.clear(started)


@pytest.fixture
def opening(server) -> Iterator[Callable[..., KubernetesCluster]]:
    """Open sources, as an administrator unless a kubeconfig is given; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def opening(kubeconfig: Path | None = None, **options) -> KubernetesCluster:
            file = kubeconfig or server.kubeconfig("admin", server.token)
            source = KubernetesCluster(connect(str(file), None, {}), **options)
            stack.callback(source.close)
            return source

        yield opening


@pytest.fixture
def cable(server) -> Iterator[Cable]:
    """A way to the server that can be cut."""
    with Cable(server.port) as cable:
        yield cable


@pytest.fixture
def opening_by_cable(server, cable, opening) -> Callable[..., KubernetesCluster]:
    """Open sources that reach the server by the cable."""
    file = server.kubeconfig("by-cable", server.token, url=cable.url)
    return lambda **options: opening(file, **options)


@pytest.fixture
def opened(server, opening) -> tuple[Callable[[], ClusterSource], Callable[[dict], None]]:
    """Give how to open the cluster, and how somebody else (kubectl) creates or replaces an object in it."""
    return opening, lambda manifest: objects.put(server, manifest)

# SPDX-License-Identifier: Apache-2.0
"""One API server for all tests; each finds it without objects of another."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.objects import ClusterObjects
from kmesh.cluster.source import ClusterSource

from tests.contract.test_cluster_source import ENROLLED
from tests.lab import objects
from tests.lab.apiserver import ROOT, ApiServer, RefusedError
from tests.lab.cable import Cable
from tests.unit.cluster import kube


def rule(group: str, resources: str, verbs: str, *names: str) -> dict:
    only = {"resourceNames": list(names)} if names else {}
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split(), **only}


CLUSTER_RULES = [
    rule("", "namespaces nodes pods services", "list watch"),
    rule("networking.k8s.io", "servicecidrs", "list watch"),
]
HOME_RULES = [
    rule("kmesh.net", "kmeshnodeinfos", "list watch create patch delete"),
    rule("", "secrets", "list watch", "kmesh-ipsec"),
    rule("coordination.k8s.io", "leases", "list create patch delete"),
]
EVENT_RULES = [rule("", "events", "create")]
ACCOUNTS = "/api/v1/namespaces/kmesh-system/serviceaccounts"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


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


def enrol(server, namespace: str = "default") -> None:
    objects.put(server, kube.namespace(namespace, **ENROLLED))


@contextlib.contextmanager
def watched(source, holds: Callable[[ClusterObjects], bool]) -> Iterator[None]:
    """What is read must never break this, not for a moment."""
    broken: list[ClusterObjects] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.0005):
            found = source.read()
            if not holds(found):
                broken.append(found)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()
    assert broken == []


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


@pytest.fixture
def account(server) -> Iterator[Callable[[str], Path]]:
    """Make a service account with what a daemon may do, and nothing else; give its kubeconfig.

    ``without``: resources that it has no rule for.
    """
    made: list[str] = []

    def post(path: str, body: dict) -> None:
        made.append(f"{path}/{body['metadata']['name']}")
        server.request("POST", path, body)

    def account(name: str, without: str = "", **kubeconfig: str) -> Path:
        post(ACCOUNTS, {"metadata": {"name": name}})
        subject = {"kind": "ServiceAccount", "name": name, "namespace": "kmesh-system"}
        for below, kind, rules in (
            ("", "ClusterRole", CLUSTER_RULES),
            ("/namespaces/kmesh-system", "Role", HOME_RULES),
            ("/namespaces/default", "Role", EVENT_RULES),
        ):
            group = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
            left = [one for one in rules if without not in one["resources"]]
            post(f"{RBAC}{below}/{kind.lower()}s", {"metadata": {"name": name}, "rules": left})
            binding = {"metadata": {"name": name}, "roleRef": group, "subjects": [subject]}
            post(f"{RBAC}{below}/{kind.lower()}bindings", binding)
        return server.kubeconfig(name, server.service_account_token("kmesh-system", name), **kubeconfig)

    yield account
    for path in made:
        with contextlib.suppress(RefusedError):
            server.request("DELETE", path)

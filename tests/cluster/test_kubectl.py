# SPDX-License-Identifier: Apache-2.0
"""What kubectl prints of a cluster is that cluster, in a folder too."""

import subprocess
from dataclasses import replace

import pytest
from kmesh.cluster.kubernetes.source import Pods
from kmesh.cluster.kubernetes.store import lean
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.snapshot import GATEWAY_CONTROLLER, GATEWAY_LABEL, build_view

from tests.contract.test_cluster_source import ENROLLED
from tests.lab import objects
from tests.lab.apiserver import ROOT
from tests.unit.cluster import kube

KINDS = "namespaces,nodes,pods,kmeshnodeinfos,servicecidrs,services"
LIKE_OTHER_TYPES = ["true", "yes", "on", "y", "null", "1.0", "1e3", "0x1F", "017", "1_000", "2026-07-01", "2026-31-12"]
"""Label values that YAML takes for something else than text, unless they are quoted; the last one kubectl does not quote."""
ODD = ["=", "<<", "~", "", " ", "-", "- a", "? b", "a: b", "a #b", "#", "!t", "&a", "*a", "%d", "@", "`", "|", ">", "'"]
ODD += ["12:30:45", "2024-01-01T00:00:00Z", ".inf", ".nan", "+1", "a\nb\n", "\n", "\ta", "a ", "\u0085", "\u2028", '"']
ODD += ["\U0001f600", "{}", "[1]", "---", "...", "\\", "a\r\nb", "\ufeff", "word " * 50]
"""Texts that a container may well have among its arguments."""


@pytest.fixture
def cluster(server):
    """A cluster with every kind of pod, and with texts in it that are hard to write."""
    labels = {f"example.net/l{number}": value for number, value in enumerate(LIKE_OTHER_TYPES)}
    for manifest in (
        kube.namespace("default", **ENROLLED, **labels),
        kube.namespace("other"),
        kube.service_cidr("more", ["10.97.0.0/24", "fd00:97::/112"]),
        kube.node(1),
        kube.node(2, podCIDR="10.244.2.0/24", podCIDRs=["10.244.2.0/24"]),
        kube.node(3, unschedulable=True),
        kube.node_info(2, 5, **{"kmesh.net/ipsec-replay-window": "4096"}),
        kube.pod("web", 1, 10, labels=labels),
        kube.pod("far", 2, 11, addresses=["fd00:244:2::b"]),
        kube.pod("own", 2, 12, namespace="other", labels=ENROLLED),
        kube.pod("without", 2, 13, labels={"istio.io/dataplane-mode": "none"}),
        kube.pod("host", 1, 14, hostNetwork=True),
        kube.pod("sidecar", 1, 15, initContainers=["istio-proxy"]),
        kube.pod("gateway", 1, 16, labels={GATEWAY_LABEL: GATEWAY_CONTROLLER}),
        kube.pod("pending", 1, phase="Pending", addresses=[]),
        kube.pod("done", 1, 17, phase="Succeeded"),
        kube.service(clusterIP="10.96.0.10", clusterIPs=["10.96.0.10"], externalIPs=["192.0.2.80"]),
    ):
        objects.put(server, manifest)
    odd = kube.pod("odd", 1, 18)
    odd["metadata"]["annotations"] = {f"example.net/a{number}": text for number, text in enumerate(ODD)}
    odd["spec"]["containers"][0]["args"] = ODD
    objects.put(server, odd)
    return server


def found(source):
    """Give what a source reads, in one order, without what only one of them keeps."""
    read = source.read()
    return replace(
        read,
        namespaces=tuple(sorted(read.namespaces, key=lambda one: one.name)),
        nodes=tuple(sorted(read.nodes, key=lambda one: one.name)),
        pods=tuple(sorted(map(lean, read.pods), key=lambda one: (one.namespace, one.name))),
        services=tuple(sorted(read.services, key=str)),
        service_objects=tuple(sorted(read.service_objects, key=lambda one: (one.namespace, one.name))),
    )


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_kubectl_prints_is_read_from_a_folder_as_the_server_gives_it(cluster, opening, tmp_path, form):
    (tmp_path / f"cluster.{form}").write_text(cluster.kubectl("get", KINDS, "--all-namespaces", "-o", form))
    folder = FolderCluster(tmp_path)
    read = found(folder)
    assert read == found(opening(pods=Pods.EVERY))
    assert (len(read.pods), len(read.nodes), len(read.node_infos), read.problems) == (10, 3, 1, ())
    rest = {"keys": {}, "services": (), "announced": 0, "announced_at": 0.0, "boot_id": kube.BOOT_ID}
    view = build_view(read, "n1", **rest)
    assert view == build_view(opening().read(), "n1", **rest)
    assert sorted(pod.name for pod in view.pods) == [
        "default/done",
        "default/far",
        "default/odd",
        "default/web",
        "other/own",
    ]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_so_is_each_object_that_kubectl_prints_by_itself(cluster, opening, tmp_path, form):
    for kind, name in (("namespace", "default"), ("node", "n1"), ("pod", "odd"), ("pod", "web")):
        (tmp_path / f"{kind}-{name}.{form}").write_text(cluster.kubectl("get", kind, name, "-o", form))
    read, whole = found(FolderCluster(tmp_path)), found(opening(pods=Pods.EVERY))
    assert read.problems == ()
    assert [pod.name for pod in read.pods] == ["odd", "web"]
    assert {*read.nodes, *read.pods} <= {*whole.nodes, *whole.pods}
    assert [one for one in whole.namespaces if one.name == "default"] == [*read.namespaces]


def test_kubectl_finds_kmeshctl_as_its_plugin(server):
    """By its name alone, on PATH; help and errors are the plugin's."""
    environment = {"PATH": f"{ROOT}/.venv/bin:/usr/bin:/bin", "HOME": str(server.folder)}

    def kubectl(*argv):
        command = [str(server.binaries / "kubectl"), *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert kubectl("kmesh", "--version").stdout.startswith("kubectl kmesh ")
    assert kubectl("kmesh", "help", "status").stdout.startswith("usage: kubectl kmesh status ")
    said = kubectl("kmesh", "stauts")
    assert (said.returncode, said.stderr.startswith("kubectl kmesh: "), "did you mean status?" in said.stderr) == (
        2,
        True,
        True,
    )
    file = str(server.kubeconfig("admin", server.token))
    assert "make one: kubectl kmesh secret create" in kubectl("kmesh", "secret", "get", "--kubeconfig", file).stderr

# SPDX-License-Identifier: Apache-2.0
"""deploy/chart with Helm itself: what it renders is deploy/base, and an API server takes it, twice, and lets it go."""

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.apiserver import ROOT, ApiServer

CHART = ROOT / "deploy/chart"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
HERE = "--namespace=kmesh-system"
KEEP = {"helm.sh/resource-policy": "keep"}
"""What Helm is told, and kubectl need not be."""


class Helm:
    """The program, with folders of its own; no cluster unless a kubeconfig is named."""

    def __init__(self, folder: Path) -> None:
        build = subprocess.run([ROOT / "scripts/helm"], stdout=subprocess.PIPE, text=True, check=True)
        self._program = f"{build.stdout.strip()}/helm"
        self._environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "KUBECONFIG": "/dev/null"}

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self._program, *words], capture_output=True, text=True, env=self._environment, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def objects(self, *flags: str, chart: Path = CHART) -> dict[tuple[str, str], Any]:
        """Give what is rendered, by kind and name."""
        return by_name(yaml.safe_load_all(self.run("template", "kmesh-ipsec", str(chart), HERE, *flags).stdout))

    def daemonset(self, *flags: str) -> Any:
        return next(one for (kind, _), one in self.objects(*flags).items() if kind == "DaemonSet")


def by_name(objects) -> dict[tuple[str, str], Any]:
    found = list(objects)
    named = {(one["kind"], f"{one['metadata'].get('namespace', '')}/{one['metadata']['name']}"): one for one in found}
    assert len(named) == len(found)
    return named


@pytest.fixture(scope="module")
def helm(tmp_path_factory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def base() -> dict[tuple[str, str], Any]:
    """What `kubectl kustomize deploy/base` gives, but for the namespace, which must be there before a release is."""
    kubectl = ApiServer.available() / "kubectl"
    text = subprocess.run([kubectl, "kustomize", ROOT / "deploy/base"], stdout=subprocess.PIPE, check=True).stdout
    objects = by_name(yaml.safe_load_all(text))
    del objects["Namespace", "/kmesh-system"]
    return objects


def test_without_values_it_is_what_kubectl_applies_and_the_kind_is_kept(helm, base):
    rendered = helm.objects()
    crd = rendered["CustomResourceDefinition", "/kmeshnodeinfos.kmesh.net"]
    assert crd["metadata"].pop("annotations") == KEEP
    assert rendered == base


def test_it_is_lint_free_and_its_archive_needs_nothing_else(helm, tmp_path):
    assert "0 chart(s) failed" in helm.run("lint", str(CHART), HERE).stdout
    helm.run("package", str(CHART), "--destination", str(tmp_path))
    assert helm.objects(chart=tmp_path / f"kmesh-ipsec-{VERSION}.tgz") == helm.objects()


def test_its_versions_are_the_project_s():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    (image,) = yaml.safe_load((ROOT / "deploy/base/kustomization.yaml").read_text())["images"]
    assert image["newTag"] == VERSION


def test_the_values_of_kmesh_s_own_chart_mean_the_same(helm):
    plain = helm.daemonset()
    changed = helm.daemonset(
        "--set=deploy.kmesh.image.repository=registry.example.com/a/kmesh-ipsec",
        "--set=deploy.kmesh.image.tag=0.2.0@sha256:ab",
        "--set=deploy.kmesh.imagePullPolicy=Never",
        "--set=deploy.kmesh.containers.kmeshDaemonArgs=--mode=dual-engine  --enable-ipsec=true --uplink=eth0 ",
        "--set=deploy.kmesh.resources.limits.memory=800Mi",
        "--set=fullnameOverride=other",
    )
    pod = plain["spec"]["template"]["spec"]
    pod["containers"][0] |= {
        "image": "registry.example.com/a/kmesh-ipsec:0.2.0@sha256:ab",
        "imagePullPolicy": "Never",
        "args": ["--mode=dual-engine", "--enable-ipsec=true", "--uplink=eth0"],
        "resources": {"limits": {"memory": "800Mi"}},
    }
    plain["metadata"]["name"] = "other"
    assert changed == plain


def test_the_values_that_are_ours_change_what_they_say_and_nothing_else(helm):
    plain = helm.daemonset()
    changed = helm.daemonset(
        "--set=deploy.kmesh.image.architectures={arm64}",
        "--set=deploy.kmesh.imagePullSecrets={one,two}",
        "--set=deploy.kmesh.nodeSelector.disk=fast",
    )
    pod = plain["spec"]["template"]["spec"]
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    affinity["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] = ["arm64"]
    pod["imagePullSecrets"] = [{"name": "one"}, {"name": "two"}]
    pod["nodeSelector"]["disk"] = "fast"
    assert changed == plain


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--set=deploy.kmesh.env.xdsAddress=x"], "env"),
        (["--set=deploy.kmesh.image.tga=x"], "tga"),
        (["--set=deploy.kmesh.imagePullPolicy=Sometimes"], "imagePullPolicy"),
        (
            ["--namespace=other"],
            "kmesh-ipsec lives in namespace kmesh-system, not in other: say --namespace=kmesh-system",
        ),
        (["--kube-version=1.29.9"], "say --set admissionPolicy=false"),
    ],
)
def test_what_has_no_meaning_here_or_cannot_work_is_refused_by_name(helm, flags, said):
    done = helm.run("template", "kmesh-ipsec", str(CHART), HERE, *flags, check=False)
    assert done.returncode != 0
    assert said in done.stderr


def test_on_servers_without_admission_policies_it_goes_without_if_it_is_told(helm, base):
    old = helm.objects("--kube-version=1.29.9", "--set=admissionPolicy=false")
    assert {kind for kind, _ in base.keys() - old.keys()} == {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("chart"), ApiServer.available()) as one:
        yield one


def test_it_is_installed_upgraded_and_removed_and_what_nodes_announced_stays(helm, server, base):
    as_admin = (HERE, f"--kubeconfig={server.kubeconfig('helm', server.token)}")
    server.kubectl("create", "namespace", "kmesh-system")
    said = helm.run("install", "kmesh-ipsec", str(CHART), *as_admin).stdout
    assert "pod-security.kubernetes.io/enforce=privileged" in said
    server.kubectl("apply", "-f", str(ROOT / "deploy/base/namespace.yaml"))
    said = helm.run("upgrade", "kmesh-ipsec", str(CHART), *as_admin, "--set=deploy.kmesh.image.tag=0.9.1").stdout
    assert "pod-security" not in said
    assert "kmeshctl secret create" in said
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    assert server.kubectl("get", "daemonset", "kmesh", "-n", "kmesh-system", "-o", image) == "kmesh-ipsec:0.9.1"
    helm.run("uninstall", "kmesh-ipsec", *as_admin)
    left = server.kubectl("get", "crd,daemonset,clusterrole,validatingadmissionpolicy", "-A", "-o", "name")
    assert [one for one in left.split() if "kmesh" in one] == [
        "customresourcedefinition.apiextensions.k8s.io/kmeshnodeinfos.kmesh.net"
    ]
    # And again, over what was kept.
    helm.run("install", "kmesh-ipsec", str(CHART), *as_admin)

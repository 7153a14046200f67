# SPDX-License-Identifier: Apache-2.0
"""deploy/rotation beside deploy/base: its command replaces an old key and no young one, and needs each of its verbs."""

import io
import re
import time
from pathlib import Path

import pytest
import yaml
from kmesh.cluster import secret
from kmesh.kmeshctl import cli

from tests.deploy.conftest import put_role, without
from tests.lab import objects
from tests.lab.apiserver import ROOT
from tests.unit.cluster import kube

OBJECTS = {one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy/rotation/rotation.yaml").read_text())}
JOB = OBJECTS["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
(CONTAINER,) = JOB["containers"]
ROLE = OBJECTS["Role"]
KUSTOMIZATION = """
resources: [{deploy}/base]
components: [{deploy}/{component}]
images: [{{name: kmesh-ipsec, newName: registry.example.com/kmesh-ipsec}}]
"""
VERBS = [
    pytest.param(number, resource, verb, id=f"{'named-' * ('resourceNames' in rule)}{resource}-{verb}")
    for number, rule in enumerate(ROLE["rules"])
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


def ours(rendered: str) -> list[dict]:
    return [one for one in yaml.safe_load_all(rendered) if one["metadata"]["name"] == "kmesh-key-rotation"]


def in_a_kustomization(component: str, folder: Path) -> Path:
    """Write a kustomization as an operator does, deploy/base and a component; give the folder."""
    # Kustomize takes no absolute paths.
    deploy = "../" * (len(folder.resolve().parts) - 1) + str(ROOT / "deploy").removeprefix("/")
    (folder / "kustomization.yaml").write_text(KUSTOMIZATION.format(deploy=deploy, component=component))
    return folder


@pytest.fixture(scope="module")
def rendered(applied, tmp_path_factory) -> list[dict]:
    """What it adds to deploy/base."""
    return ours(applied.kubectl("kustomize", str(in_a_kustomization("rotation", tmp_path_factory.mktemp("rotation")))))


@pytest.fixture(scope="module")
def kubeconfig(applied, rendered):
    for one in rendered:
        applied.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(one))
    yield applied.kubeconfig("rotation", applied.service_account_token("kmesh-system", "kmesh-key-rotation"))
    applied.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(rendered))


@pytest.fixture
def run(applied, kubeconfig):
    """Run the job's command with its account's rights; give what it prints, and its exit status."""
    objects.delete(applied, kube.secret(kube.entry(1)))

    def once(*older: str) -> tuple[str, int]:
        program, *argv = [*CONTAINER["command"], *older]
        assert program == "kmeshctl"
        out = io.StringIO()
        status = cli.main(argv, io.StringIO(), out, out, {"KUBECONFIG": str(kubeconfig)})
        return out.getvalue(), status

    yield once
    put_role(applied, ROLE)
    objects.delete(applied, kube.secret(kube.entry(1)))


def settled(run, said: str, *older: str) -> str:
    """Run it until it says so: the server's authorizer hears of bindings and roles by watches of its own."""
    end = time.monotonic() + 20
    while not re.search(said, found := run(*older)[0]):
        assert time.monotonic() < end, found
    return found


def test_it_takes_the_image_of_the_daemons_and_runs_as_nobody_who_may_do_nothing_else(rendered):
    (job,) = [one for one in rendered if one["kind"] == "CronJob"]
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example.com/kmesh-ipsec:0.1.0"
    assert pod["serviceAccountName"] == OBJECTS["ServiceAccount"]["metadata"]["name"]
    rights = CONTAINER["securityContext"]
    assert rights["runAsNonRoot"] is True
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert "hostNetwork" not in pod
    assert "volumes" not in pod


def test_the_first_key_is_made_a_young_one_stays_and_an_old_one_is_replaced(run):
    settled(run, "key stored: SPI 1")
    said, status = run()
    assert said.startswith("nothing done: the key was stored ")
    assert status == 0
    time.sleep(1.1)  # ages are whole seconds of the server's
    assert run("--if-older-than=1s") == (f"key stored: SPI 2, {secret.ALGORITHM}\n", 0)


@pytest.mark.parametrize(("number", "resource", "verb"), VERBS)
def test_without_one_of_its_verbs_something_fails_and_the_sentence_names_it(applied, run, number, resource, verb):
    settled(run, "key stored: SPI 1")
    put_role(applied, without(ROLE, number, resource, verb))
    if verb == "create":
        end = time.monotonic() + 5
        while True:
            objects.delete(applied, kube.secret(kube.entry(1)))
            said, status = run()
            if status or time.monotonic() > end:
                break
    else:
        time.sleep(1.1)
        said = settled(run, "may not", "--if-older-than=1s")
        status = 1
    assert status == 1
    assert re.search(rf"may not {verb} {resource}\b", said), said


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("verb", "what"),
    [("get", "secrets/other"), ("delete", "secrets/kmesh-ipsec"), ("list", "pods"), ("list", "leases")],
)
def test_its_account_may_not(applied, verb, what):
    who = "--as=system:serviceaccount:kmesh-system:kmesh-key-rotation"
    with pytest.raises(AssertionError, match=r"can-i .*: no\n"):
        applied.kubectl("auth", "can-i", verb, what, who, "--namespace=kmesh-system")

# SPDX-License-Identifier: Apache-2.0
"""deploy/base on a real API server: it is taken as it stands, and the daemon's account may do what it must, no more."""

import time
from contextlib import closing

import pytest
import yaml
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.errors import ClusterError
from kmesh.telling import conditions

from tests.contract.test_cluster_source import lease
from tests.deploy.conftest import apply, cases, manifests, put_role, roles, without
from tests.lab import objects
from tests.lab.apiserver import ROOT
from tests.unit.cluster import kube

ACCOUNT = "system:serviceaccount:kmesh-system:kmesh-ipsec"
CONDITIONS = conditions.manifest({"KeyAccepted": conditions.Condition("True", "Accepted", "SPI 1", 1.0, 1)}, "n1")
GUIDE = ["--mode=dual-engine", "--enable-bypass=false", "--enable-ipsec=true"]


def test_applied_twice_it_is_the_same_and_every_object_is_there(applied):
    again = apply(applied).splitlines()
    assert len(again) == 14
    assert all(line.endswith("serverside-applied") for line in again)
    assert "kmesh" in applied.kubectl("get", "daemonset", "-n", "kmesh-system", "-o", "name")


def test_the_daemonset_runs_the_guide_s_command_with_no_more_than_it_needs(applied):
    (daemonset,) = manifests(applied, "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["command"], container["args"]) == (["./start_kmesh.sh"], GUIDE)
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "privileged" not in container["securityContext"]
    assert pod["hostNetwork"] is True
    assert pod["tolerations"] == [{"operator": "Exists"}]


def test_uninstalling_everywhere_is_the_daemonset_s_pod_with_another_command_and_nothing_that_runs_on(applied):
    text = applied.kubectl("kustomize", str(ROOT / "deploy/uninstall"))
    taken = applied.kubectl("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", stdin=text)
    assert "daemonset.apps/kmesh-uninstall serverside-applied" in taken
    (daemonset,) = [one for one in yaml.safe_load_all(text) if one["kind"] == "DaemonSet"]
    pod = daemonset["spec"]["template"]["spec"]
    (like,) = manifests(applied, "DaemonSet")
    (daemon,) = like["spec"]["template"]["spec"]["containers"]
    (uninstall,), (done,) = pod["initContainers"], pod["containers"]
    same = ("image", "command", "workingDir", "env", "securityContext", "volumeMounts")
    assert {name: uninstall[name] for name in same} == {name: daemon[name] for name in same}
    assert uninstall["args"] == ["uninstall"]
    assert done["image"] == daemon["image"]
    assert daemonset["spec"]["selector"]["matchLabels"] == daemonset["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize(
    ("verb", "what", "where"),
    [
        ("list", "secrets", "kmesh-system"),
        ("get", "secrets/other", "kmesh-system"),
        ("list", "secrets/kmesh-ipsec", "default"),
        ("update", "secrets/kmesh-ipsec", "kmesh-system"),
        ("create", "pods", "kmesh-system"),
        ("patch", "nodes", "default"),
        ("patch", "kmeshnodeinfos.kmesh.net", "default"),
        ("patch", "leases.coordination.k8s.io", "kube-system"),
        ("create", "events", "kube-system"),
        ("create", "clusterroles.rbac.authorization.k8s.io", "default"),
    ],
)
def test_the_daemon_may_not(applied, verb, what, where):
    with pytest.raises(AssertionError, match=r"can-i .*: no\n"):
        applied.kubectl("auth", "can-i", verb, what, f"--as={ACCOUNT}", f"--namespace={where}")


# --- each verb is needed ------------------------------------------------------------------------------------------


def daemon_of(server, node: str) -> KubernetesCluster:
    """Give the cluster as the daemon of a node has it, with its pod's token."""
    file = server.kubeconfig(f"kmesh-{node}", objects.daemon_token(server, node))
    return KubernetesCluster(connect(str(file), None, {}))


@pytest.fixture
def as_the_daemon(applied, monkeypatch):
    """Do what a daemon does, with its account's token; give what went wrong."""
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 2.0)
    for manifest in (kube.node(), kube.secret(kube.entry(1))):
        objects.put(applied, manifest)

    def run() -> list[str]:
        with closing(daemon_of(applied, "n1")) as source:
            wrong = list(source.read().problems)
            event = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": "kmesh-", "namespace": "default"},
                "involvedObject": {"kind": "Node", "name": "n1", "uid": "n1"},
                "reason": "Test",
            }
            actions = (
                lambda: source.publish(kube.node_info(1)),
                lambda: source.publish_status(lease("n1")),
                lambda: source.publish_conditions(CONDITIONS),
                lambda: source.tell(event),
                lambda: source.withdraw("n1"),
            )
            for action in actions:
                try:
                    action()
                except ClusterError as error:
                    wrong.append(str(error))
            objects.delete(applied, kube.node_info(1))
            objects.delete(applied, lease("n1"))
            end = time.monotonic() + 1.0  # a refused watch shows a moment after the list
            while not wrong and time.monotonic() < end:
                time.sleep(0.02)
                wrong = list(source.read().problems)
            return wrong

    yield run
    for role in roles("rbac-daemon.yaml"):
        put_role(applied, role)


def test_with_all_its_verbs_the_daemon_does_everything(as_the_daemon):
    assert as_the_daemon() == []


@pytest.mark.parametrize(("number", "rule", "resource", "verb"), cases("rbac-daemon.yaml"))
def test_without_one_of_its_verbs_something_fails_and_the_sentence_names_it(
    applied, as_the_daemon, number, rule, resource, verb
):
    put_role(applied, without(roles("rbac-daemon.yaml")[number], rule, resource, verb))
    end = time.monotonic() + 5  # the server's authorizer hears of the change by a watch of its own
    while not (wrong := as_the_daemon()) and time.monotonic() < end:
        pass
    # To create by server-side apply takes the verb create too; the server's own words tell.
    said = (f"may not {verb} {resource}", f'cannot {verb} resource "{resource}"')
    assert any(words in sentence for sentence in wrong for words in said), wrong


# --- and of its own node only -------------------------------------------------------------------------------------


def of_node_2(condition: dict) -> dict:
    return {**condition, "metadata": {**condition["metadata"], "name": "n2"}}


WRITES = {
    "announce": lambda source: source.publish(kube.node_info(2, 5)),
    "conditions": lambda source: source.publish_conditions(of_node_2(CONDITIONS)),
    "report": lambda source: source.publish_status(lease("n2")),
    "withdraw": lambda source: source.withdraw("n2"),
}
WRITTEN = (kube.node(2), kube.node_info(2), lease("n2"))


@pytest.fixture(scope="module")
def in_force(applied):
    """The policy, which the server hears of by a watch of its own: until then it lets everybody write everything."""
    stranger = kube.node_info(9)
    end = time.monotonic() + 20
    with closing(daemon_of(applied, "n1")) as source:
        said = ""
        while "writes of its own node only" not in said:
            assert time.monotonic() < end, said or "it was taken"
            try:
                source.publish(stranger)
            except ClusterError as error:
                said = str(error)
            time.sleep(0.1)
    objects.delete(applied, stranger)


@pytest.fixture
def node_2(applied, in_force):
    for one in WRITTEN:
        objects.put(applied, one)
    yield
    for one in WRITTEN:
        objects.delete(applied, one)


@pytest.mark.usefixtures("node_2")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_daemon_writes_of_its_own_node_and_of_no_other(applied, write):
    with closing(daemon_of(applied, "n1")) as source:
        with pytest.raises(ClusterError, match="the daemon of node n1 writes of its own node only, which is named "):
            write(source)
    for one in WRITTEN:
        applied.request("GET", objects.path(one))  # it is there still
    with closing(daemon_of(applied, "n2")) as source:
        write(source)


@pytest.mark.usefixtures("node_2")
def test_a_token_that_no_pod_was_given_writes_nothing(applied):
    file = applied.kubeconfig("nowhere", applied.service_account_token("kmesh-system", "kmesh-ipsec"))
    with closing(KubernetesCluster(connect(str(file), None, {}))) as source:
        with pytest.raises(ClusterError, match="the daemon's token names no node"):
            WRITES["announce"](source)

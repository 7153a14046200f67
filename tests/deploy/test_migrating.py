# SPDX-License-Identifier: Apache-2.0
"""docs/migrating.md on a real API server: its own commands, over what Go Kmesh's installation makes, and back."""

import io
import re
import shlex
from collections.abc import Iterator

import pytest
import yaml
from kmesh.kmeshctl import cli
from kmesh.launcher import config

from tests.deploy.conftest import manifests
from tests.lab import objects
from tests.lab.apiserver import ROOT, ApiServer
from tests.unit.cluster import kube

PAGE = (ROOT / "docs/migrating.md").read_text()
NODES = ("n1", "n2", "n3")
GUIDE = "./start_kmesh.sh --mode=dual-engine --enable-bypass=false --enable-ipsec=true"
GO_ACCOUNT = "system:serviceaccount:kmesh-system:kmesh"
NEEDS_KUBELETS = ("wait", "rollout")

# What Go Kmesh's installation has in common with ours, or might collide with: names, labels, selectors, fields.
GO_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "kmeshnodeinfos.kmesh.net"},
    "spec": {
        "group": "kmesh.net",
        "scope": "Namespaced",
        "names": {
            "kind": "KmeshNodeInfo",
            "listKind": "KmeshNodeInfoList",
            "plural": "kmeshnodeinfos",
            "singular": "kmeshnodeinfo",
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["addresses", "bootID", "podCIDRS", "spi"],
                                "properties": {
                                    "addresses": {"type": "array", "items": {"type": "string"}},
                                    "bootID": {"type": "string"},
                                    "podCIDRS": {"type": "array", "items": {"type": "string"}},
                                    "spi": {"type": "integer"},
                                },
                            },
                            "status": {"type": "object"},
                        },
                    }
                },
            }
        ],
    },
}
GO_DAEMONSET = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "kmesh", "namespace": "kmesh-system", "labels": {"app": "kmesh"}},
    "spec": {
        "selector": {"matchLabels": {"app": "kmesh"}},
        "template": {
            "metadata": {"labels": {"app": "kmesh"}},
            "spec": {
                "serviceAccountName": "kmesh",
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {"name": "kmesh", "image": "go-kmesh", "command": ["/bin/sh", "-c"], "args": [GUIDE]},
                ],
            },
        },
    },
}
GO_RIGHTS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "kmesh"},
        "rules": [
            {"apiGroups": ["kmesh.net"], "resources": ["kmeshnodeinfos"], "verbs": ["get", "create", "update", "list"]}
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kmesh"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "kmesh"},
        "subjects": [{"kind": "ServiceAccount", "name": "kmesh", "namespace": "kmesh-system"}],
    },
]


def create(server, *manifests: dict) -> None:
    server.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(manifests))


@pytest.fixture
def go(tmp_path) -> Iterator[ApiServer]:
    """Give a server with three nodes and Go Kmesh's installation, as `helm install` or `kubectl create` leaves it."""
    with ApiServer(tmp_path, ApiServer.available()) as server:
        create(server, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kmesh-system"}})
        create(server, GO_CRD, GO_DAEMONSET, *GO_RIGHTS)
        server.kubectl("wait", "--for=condition=Established", "crd/kmeshnodeinfos.kmesh.net", "--timeout=60s")
        for number, name in enumerate(NODES, 1):
            node = kube.node(number)
            here = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name}
            node["metadata"]["labels"] = here
            objects.put(server, node)
        yield server


def commands(section: str, start: int = 0, end: int | None = None) -> list[list[str]]:
    """Give the kubectl commands of a section of the page, in order."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = [shlex.split(line) for line in re.findall(r"^ +kubectl (.+)$", text, re.MULTILINE)]
    return found[start:end]


def do(server, words: list[str], node: str = "") -> None:
    """Run a command of the page; what waits for a kubelet has none here to wait for."""
    verb = next(word for word in words if word in ("label", "patch", "apply", "delete", "annotate", *NEEDS_KUBELETS))
    if verb not in NEEDS_KUBELETS:
        here = [str(ROOT / word) if word.startswith("deploy/") else word for word in words]
        here = [word.replace("--patch-file=", f"--patch-file={ROOT}/").replace("NODE", node) for word in here]
        server.kubectl(*here)


def nodes_of(server, daemonset: dict) -> set[str]:
    """Give the nodes that a DaemonSet's pods fit on; the server judges by labels."""
    pod = daemonset["spec"]["template"]["spec"]
    wanted = [f"{key}={value}" for key, value in pod.get("nodeSelector", {}).items()]
    affinity = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in affinity.get("nodeSelectorTerms", []):
        for one in term["matchExpressions"]:
            in_one = f"{one['key']} in ({','.join(one.get('values', []))})"
            wanted.append({"DoesNotExist": f"!{one['key']}", "In": in_one}[one["operator"]])
    names = server.kubectl("get", "nodes", "-o", "name", "-l", ",".join(wanted)).split()
    return {name.partition("/")[2] for name in names}


def placed(server) -> dict[str, set[str]]:
    """Give the nodes of each DaemonSet; no node may have two."""
    found = yaml.safe_load(server.kubectl("get", "daemonsets", "-n", "kmesh-system", "-o", "yaml"))["items"]
    where = {one["metadata"]["name"]: nodes_of(server, one) for one in found}
    assert sum(map(len, where.values())) == len(set().union(*where.values())), f"two on one node: {where}"
    return where


def image(server, name: str = "kmesh") -> str:
    path = "-o=jsonpath={.spec.template.spec.containers[0].image}"
    return server.kubectl("get", "daemonset", name, "-n", "kmesh-system", path)


def test_applied_over_go_s_daemonset_the_server_says_what_the_page_says_and_that_stays_as_it_is(go):
    said = go.kubectl("apply", "-k", str(ROOT / "deploy/base"), check=False)
    assert "field is immutable" in said
    assert "spec.selector" in said
    assert image(go) == "go-kmesh"


def test_all_nodes_at_once(go):
    for words in commands("All nodes at once"):
        do(go, words)
    assert placed(go) == {"kmesh": set(NODES)}
    assert image(go).startswith("kmesh-ipsec:")


def there(server) -> None:
    """Go from Go Kmesh to this project by the page, and look at each step."""
    patch, apply, take, wait, give, delete, base = commands("Node by node")
    do(server, patch)
    assert placed(server) == {"kmesh": set(NODES)}
    do(server, apply)
    assert placed(server) == {"kmesh": set(NODES), "kmesh-ipsec": set()}
    done: set[str] = set()
    for node in NODES:
        do(server, take, node)
        assert placed(server) == {"kmesh": set(NODES) - done - {node}, "kmesh-ipsec": done}
        do(server, wait, node)
        do(server, give, node)
        done |= {node}
        assert placed(server) == {"kmesh": set(NODES) - done, "kmesh-ipsec": done}
    do(server, delete)
    do(server, base)
    assert placed(server) == {"kmesh": set(NODES)}
    assert image(server).startswith("kmesh-ipsec:")


def test_node_by_node_no_node_has_two_daemons_and_back(go):
    there(go)
    delete, label, apply, patch, leave, leaving, wait, free, end, policy = commands("Back to Go Kmesh")
    for words in (delete, label, apply):
        do(go, words)
    assert placed(go) == {"kmesh-ipsec": set(NODES)}
    patched = ["patch", "--local", "-f", "-", f"--patch-file={ROOT}/deploy/migrate/go-yields.yaml", "-o", "yaml"]
    create(go, yaml.safe_load(go.kubectl(*patched, stdin=yaml.safe_dump(GO_DAEMONSET))))
    do(go, patch)
    do(go, leave)
    assert placed(go) == {"kmesh-ipsec": set(NODES), "kmesh": set(), "kmesh-uninstall": set()}
    done: set[str] = set()
    for node in NODES:
        do(go, leaving, node)
        assert placed(go) == {"kmesh-ipsec": set(NODES) - done - {node}, "kmesh": done, "kmesh-uninstall": {node}}
        do(go, wait, node)
        do(go, free, node)
        done |= {node}
        assert placed(go) == {"kmesh-ipsec": set(NODES) - done, "kmesh": done, "kmesh-uninstall": set()}
    do(go, end)
    do(go, policy)
    assert placed(go) == {"kmesh": set(NODES)}
    assert image(go) == "go-kmesh"


def test_go_s_daemons_can_announce_beside_ours_and_status_says_what_it_cannot_know(go):
    for words in commands("Node by node", 0, 2):
        do(go, words)
    info = kube.node_info(1)
    info["metadata"].pop("annotations")
    info["spec"]["bootID"] = kube.BOOT_ID
    go.kubectl("create", f"--as={GO_ACCOUNT}", "-f", "-", stdin=yaml.safe_dump(info))
    info["spec"]["spi"] = 2
    go.kubectl("replace", f"--as={GO_ACCOUNT}", "-f", "-", stdin=yaml.safe_dump(info))
    file = str(go.kubeconfig("admin", go.token))

    def kmeshctl(*argv: str) -> tuple[int, str]:
        out = io.StringIO()
        return cli.main(["--kubeconfig", file, *argv], io.StringIO(), out, io.StringIO()), out.getvalue()

    assert kmeshctl("secret", "create") == (0, "key stored: SPI 3, rfc4106(gcm(aes))\n")
    info["spec"]["spi"] = 3
    go.kubectl("replace", f"--as={GO_ACCOUNT}", "-f", "-", stdin=yaml.safe_dump(info))
    code, text = kmeshctl("status")
    assert code == 0, text
    assert "n1: a daemon of another make announces it (Go Kmesh?)" in text
    assert "all that is known is as it should be" in text


def test_the_guide_s_step_2_as_it_is_written_is_taken_and_means_what_the_daemonset_s_own_says(go):
    (daemonset,) = manifests(go, "DaemonSet")
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    own = config.parse(container["args"], "n1", "host")
    container |= {"command": ["/bin/sh", "-c"], "args": [GUIDE]}
    go.kubectl("delete", "daemonset", "kmesh", "-n", "kmesh-system")
    go.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(daemonset))
    program, *flags = shlex.split(GUIDE)
    assert program == "./start_kmesh.sh"
    assert container["workingDir"] == "/kmesh"
    assert config.parse(flags, "n1", "host") == own

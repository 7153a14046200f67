# SPDX-License-Identifier: Apache-2.0
"""The role of those who use kmeshctl: bound as its file says, it lets them do all of it, and each of its verbs is needed."""

import base64
import io
import re
import time
from contextlib import closing

import pytest
from kmesh.kmeshctl import cli, opening
from kmesh.kmeshctl.arguments import parser

from tests.deploy.conftest import cases, put_role, roles, without
from tests.lab import objects
from tests.lab.apiserver import ROOT
from tests.unit.cluster import kube

FILE = "rbac-operator.yaml"
GROUP = "system:serviceaccounts:operators"
ACCOUNT = "system:serviceaccount:operators:ann"
USES = (
    ["secret", "create"],  # the first key
    ["secret", "create"],  # another one
    ["secret", "get"],
    ["status"],
    ["explain", "web", "api"],
    ["explain", "web", "svc/shop"],
    ["secret", "delete"],
)
WATCHES = (["status", "--watch"], ["dashboard"])


def may(server, verb: str, what: str, where: str = "kmesh-system") -> bool:
    who = (f"--as={ACCOUNT}", f"--as-group={GROUP}", f"--namespace={where}")
    return server.kubectl("auth", "can-i", verb, what, *who, check=False) == "yes\n"


@pytest.fixture(scope="module")
def kubeconfig(applied):
    """Ann's: of a group that was bound by the commands that stand in the file."""
    objects.put(applied, kube.namespace("operators"))
    applied.request("POST", "/api/v1/namespaces/operators/serviceaccounts", {"metadata": {"name": "ann"}})
    commands = re.findall(r"^#   kubectl (.*)$", (ROOT / "deploy/base" / FILE).read_text(), re.MULTILINE)
    for command in commands:
        applied.kubectl(*command.replace("GROUP", GROUP).split())
    end = time.monotonic() + 20  # the server's authorizer hears of bindings by watches of its own
    while not (may(applied, "list", "pods", "default") and may(applied, "delete", "secrets/kmesh-ipsec")):
        assert time.monotonic() < end
    yield applied.kubeconfig("ann", applied.service_account_token("operators", "ann"))
    applied.kubectl("delete", "clusterrolebinding", "kmesh-operators")
    applied.kubectl("delete", "rolebinding", "kmesh-operators", "-n", "kmesh-system")


@pytest.fixture
def as_an_operator(applied, kubeconfig, monkeypatch):
    """Do all that kmeshctl does; give what it says of the first thing that fails, empty: nothing does."""
    monkeypatch.setattr("kmesh.cluster.kubernetes.source.FIRST_SECONDS", 2.0)
    secret = kube.secret(kube.entry(1))
    objects.delete(applied, secret)
    # n2 announces nothing: only of such nodes status wants pods.
    things = (
        kube.node(1),
        kube.node(2),
        kube.node_info(1),
        kube.pod("web", 1),
        kube.pod("api", 2),
        kube.service("shop", clusterIP="None", clusterIPs=["None"]),
    )
    for one in things:
        objects.put(applied, one)
    environment = {"KUBECONFIG": str(kubeconfig)}

    def said(argv: list[str]) -> str:
        err = io.StringIO()
        cli.main(argv, io.StringIO(), io.StringIO(), err, environment)
        return err.getvalue()

    def run() -> str:
        if words := next(filter(None, map(said, USES)), ""):
            return words
        # A key leaves its history behind; one that cannot be read, and has none, leaves nothing.
        objects.delete(applied, secret)
        objects.put(applied, {**secret, "data": {"ipSec": base64.b64encode(b"nonsense").decode()}})
        if words := said(["secret", "delete"]):
            return words
        for argv in WATCHES:
            with closing(opening.cluster(parser().parse_args(argv), environment)) as source:
                end = time.monotonic() + 1.0  # a refused watch shows a moment after the list
                while time.monotonic() < end:
                    if source.read().problems:
                        return "; ".join(source.read().problems)
                    time.sleep(0.02)
        return ""

    yield run
    for role in roles(FILE):
        put_role(applied, role)
    for one in (*things, secret):
        objects.delete(applied, one)


def test_with_all_its_verbs_an_operator_does_everything_that_kmeshctl_can(as_an_operator):
    assert as_an_operator() == ""


@pytest.mark.parametrize(("number", "rule", "resource", "verb"), cases(FILE))
def test_without_one_of_its_verbs_something_fails_and_the_sentence_names_it(
    applied, as_an_operator, number, rule, resource, verb
):
    put_role(applied, without(roles(FILE)[number], rule, resource, verb))
    end = time.monotonic() + 5  # the server's authorizer hears of the change by a watch of its own
    while not (said := as_an_operator()) and time.monotonic() < end:
        objects.delete(applied, kube.secret(kube.entry(1)))
    assert re.search(rf"may not {verb} {resource}\b", said), said


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("verb", "what", "where"),
    [
        ("list", "secrets", "kmesh-system"),
        ("get", "secrets/other", "kmesh-system"),
        ("get", "secrets/kmesh-ipsec", "default"),
        ("create", "secrets", "default"),
        ("patch", "kmeshnodeinfos.kmesh.net", "kmesh-system"),
        ("delete", "leases.coordination.k8s.io", "kmesh-system"),
        ("delete", "pods", "default"),
        ("patch", "daemonsets.apps", "kmesh-system"),
    ],
)
def test_an_operator_may_not(applied, verb, what, where):
    assert not may(applied, verb, what, where)

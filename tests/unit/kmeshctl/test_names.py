# SPDX-License-Identifier: Apache-2.0
"""Names that a shell completes: of the cluster that the line names, and nothing where it cannot be asked."""

import io
import json
import os
import subprocess

import pytest
import yaml
from kmesh.kmeshctl import completion
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.cli import main
from kmesh.kmeshctl.names import joined

from tests.lab.apiserver import ROOT
from tests.unit.cluster import kube

POD = kube.pod("web", 1, 10)
OTHER = kube.pod("api", 2, 11, namespace="shop")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cluster"
    path.mkdir()
    things = [POD, OTHER, kube.service("cart"), kube.node(1), kube.namespace("default"), kube.namespace("shop")]
    (path / "all.yaml").write_text(yaml.safe_dump_all(things))
    return path


def asked(*argv, environment=None):
    out, err = io.StringIO(), io.StringIO()
    assert main(["__complete", *argv], io.StringIO(), out, err, environment or {}) == 0
    assert err.getvalue() == ""
    return out.getvalue().split()


def test_ends_are_those_of_the_line_s_namespace_without_it_and_of_others_with_it(folder):
    where = f"--manifests={folder}"
    assert asked("ends", "explain", where) == ["node/n1", "shop/api", "svc/cart", "web"]
    assert asked("ends", "explain", where, "-n", "shop") == ["api", "default/web", "node/n1", "svc/default/cart"]
    assert asked("namespaces", "status", where, "-n") == ["default", "shop"]
    assert asked("nodes", where) == ["n1"]
    assert asked("nonsense", where) == []


def test_contexts_are_those_of_the_kubeconfig_and_no_server_is_asked(tmp_path):
    config = {"contexts": [{"name": "lab", "context": {}}, {"name": "prod", "context": {}}]}
    (tmp_path / "config").write_text(json.dumps(config))
    assert asked("contexts", "--context", environment={"KUBECONFIG": str(tmp_path / "config")}) == ["lab", "prod"]
    assert asked("contexts", environment={"KUBECONFIG": str(tmp_path / "none")}) == []


@pytest.mark.parametrize("words", [[], ["ends"], ["ends", "--kubeconfig=/nowhere"], ["ends", "--request-timeout", "x"]])
def test_where_nothing_can_be_asked_nothing_is_offered_or_said(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asked(*words) == []


def test_what_bash_takes_apart_is_put_together_and_a_flag_without_its_value_is_none():
    assert joined(["explain", "--namespace", "=", "shop", "web"]) == ["explain", "--namespace=shop", "web"]
    assert joined(["status", "--context"]) == ["status"]
    assert joined(["status", "--context", "=", ""]) == ["status", "--context="]


DRIVERS = {
    "bash": 'COMP_WORDS=(kmeshctl explain --manifests "$1" w); COMP_CWORD=4; _kmeshctl; printf \'%s\\n\' "${COMPREPLY[@]}"',
    "zsh": 'words=(kmeshctl explain --manifests "$1" w); CURRENT=5; PREFIX=w; _kmeshctl',
    "fish": 'complete -C "kmeshctl explain --manifests $argv[1] w"',
}
ZSH = "compdef() { : }; compadd() { shift; print -l -- ${(M)@:#$PREFIX*} }; _describe() { : }; _files() { : }\n"


@pytest.mark.parametrize("shell", DRIVERS)
def test_each_shell_offers_the_pods_of_the_cluster_that_the_line_names(shell, folder):
    text = completion.script(parser(), shell)
    script = f"{ZSH if shell == 'zsh' else ''}{text}\n{DRIVERS[shell]}"
    quiet = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    name = [] if shell == "fish" else [shell]
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    command = [shell, *quiet, "-c", script, *name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd="/")
    assert done.stdout.split() == ["web"]

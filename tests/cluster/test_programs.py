# SPDX-License-Identifier: Apache-2.0
"""kmeshctl and the daemon's command line against a real API server."""

import io
import json
import os
import subprocess
import threading

import pytest
from kmesh.kmeshctl import cli as kmeshctl
from kmesh.launcher import cli as launcher
from kmesh.launcher.config import parse

from tests.contract.test_cluster_source import ENROLLED
from tests.lab import objects
from tests.lab.apiserver import ROOT
from tests.unit.cluster import kube

KEY = bytes(range(36)).hex()
OTHER = bytes(range(36, 72)).hex()


@pytest.fixture
def ctl(server):
    """Run kmeshctl in this process, as an administrator by KUBECONFIG; give status, output, errors."""

    def ctl(*argv, kubeconfig=None):
        out, err = io.StringIO(), io.StringIO()
        environment = {"KUBECONFIG": str(kubeconfig or server.kubeconfig("admin", server.token))}
        status = kmeshctl.main(argv, io.StringIO(), out, err, environment)
        assert KEY not in out.getvalue() + err.getvalue()
        return status, out.getvalue(), err.getvalue()

    return ctl


def test_the_guide_s_command_stores_the_key_and_kubectl_shows_the_secret(ctl, server):
    assert ctl("secret", f"--key={KEY}") == (0, "key stored: SPI 1, rfc4106(gcm(aes))\n", "")
    assert ctl("secret", f"--key={OTHER}")[1].startswith("key stored: SPI 2")
    assert [row["spi"] for row in json.loads(ctl("secret", "get", "-o", "json")[1])] == [2, 1]
    shown = server.kubectl(
        "get", "secret", "kmesh-ipsec", "-n", "kmesh-system", "-o", "go-template={{.data.ipSec | base64decode}}"
    )
    assert json.loads(shown) == kube.entry(2, bytes.fromhex(OTHER))


def test_a_key_after_delete_gets_a_version_above_every_announced_one(ctl, server):
    ctl("secret", f"--key={KEY}")
    objects.put(server, kube.node_info(2, 7))
    assert ctl("secret", "delete")[0] == 0
    assert "kmeshctl secret create" in ctl("secret", "get")[2]
    assert ctl("secret", f"--key={KEY}")[0] == 2, "what was in force is remembered"
    assert ctl("secret", "create")[1].startswith("key stored: SPI 8")


def test_status_finds_managed_pods_without_a_daemon_and_gives_nodes_a_minute_to_follow_a_new_key(ctl, server):
    objects.put(server, kube.namespace("default", **ENROLLED))
    for index in (1, 2):
        objects.put(server, kube.node(index))
    objects.put(server, kube.node_info(1, 1))
    objects.put(server, kube.pod("web", 2))
    ctl("secret", "create")
    ctl("secret", "create")
    status, out, err = ctl("status", "-o", "json")
    said = {finding["sentence"] for finding in json.loads(out)["findings"]}
    assert (status, err) == (1, "")
    assert any(sentence.startswith("1 managed pods run there, and no daemon announces it") for sentence in said)
    assert not any("the key in the Secret has 2" in sentence for sentence in said), "it was replaced just now"


def test_explain_takes_the_namespace_for_that_of_the_pods(ctl, server):
    objects.put(server, kube.namespace("shop", **ENROLLED))
    ctl("secret", "create")
    for index, name in ((1, "web"), (2, "api")):
        objects.put(server, kube.node(index))
        objects.put(server, kube.node_info(index, 1))
        pod = kube.pod(name, index)
        objects.put(server, {**pod, "metadata": {**pod["metadata"], "namespace": "shop"}})
    status, out, err = ctl("explain", "-n", "shop", "web", "api")
    assert err == ""
    assert "with SPI 1" in out
    assert status == 0
    assert "no pod default/web" in ctl("explain", "web", "api")[2]


def test_of_two_at_once_one_wins_and_one_says_so_or_both_follow_each_other(ctl):
    answers = []
    start = threading.Barrier(2)

    def store():
        start.wait(20)
        answers.append(ctl("secret", "create"))

    both = [threading.Thread(target=store) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    won = [answer for answer in answers if answer[0] == 0]
    assert won
    for status, out, err in answers:
        if status:
            assert (status, out) == (1, "")
            assert err.startswith("kmeshctl: secrets kmesh-system/kmesh-ipsec was changed by somebody else")
    rows = json.loads(ctl("secret", "get", "-o", "json")[1])
    assert len(rows) == len(won)


def test_context_and_namespace_are_chosen_as_in_kubectl(ctl, server):
    file = server.kubeconfig("admin", server.token)
    objects.put(server, kube.namespace("elsewhere"))
    assert ctl("secret", "create", "-n", "elsewhere")[0] == 0
    assert ctl("-n", "elsewhere", "secret", "get")[0] == 0
    assert ctl("secret", "get")[0] == 1
    assert ctl("secret", "create", "--kubeconfig", str(file), "--context", "admin")[0] == 0
    status, _, err = ctl("secret", "get", "--context", "nonsense")
    assert (status, err.count("\n")) == (2, 1)
    assert "nonsense" in err


def test_a_namespace_that_is_not_there_or_a_missing_right_is_one_sentence(ctl, server):
    status, out, err = ctl("secret", "create", "-n", "nowhere")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert 'namespaces "nowhere" not found; apply deploy/' in err
    server.request("POST", "/api/v1/namespaces/kmesh-system/serviceaccounts", {"metadata": {"name": "nobody"}})
    nobody = server.kubeconfig("nobody", server.service_account_token("kmesh-system", "nobody"))
    status, out, err = ctl("secret", "get", kubeconfig=nobody)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("kmeshctl: may not list secrets of namespace kmesh-system: no role of user ")
    assert "; bind the role kmesh-ipsec-operator: kubectl create clusterrolebinding " in err
    assert err.endswith(" --role=kmesh-ipsec-operator --serviceaccount=kmesh-system:nobody\n")


@pytest.mark.parametrize(
    ("changes", "status", "sentence"),
    [
        (
            {"certificate-authority": "/etc/ssl/certs/ca-certificates.crt"},
            1,
            "its certificate is not trusted (self-signed",
        ),
        (
            {"certificate-authority": "/nowhere"},
            2,
            "certificate-authority /nowhere cannot be read: No such file or directory",
        ),
        ({"server": "https://127.0.0.1:1"}, 1, "https://127.0.0.1:1 cannot be reached: Connection refused"),
        ({"server": "nonsense"}, 2, "server 'nonsense' is no URL; write https://HOST:PORT"),
    ],
)
def test_a_server_that_cannot_be_spoken_to_is_one_sentence(ctl, server, tmp_path, changes, status, sentence):
    config = json.loads(server.kubeconfig("admin", server.token).read_text())
    config["clusters"][0]["cluster"] |= changes
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    answer = ctl("secret", "create", kubeconfig=path)
    assert (answer[0], answer[1], answer[2].count("\n")) == (status, "", 1)
    assert sentence in answer[2]


def test_the_daemon_s_dry_run_sees_the_cluster_through_kubeconfig(server, tmp_path):
    objects.put(server, kube.namespace("default", **ENROLLED))
    objects.put(server, kube.node(1))
    objects.put(server, kube.pod("near", 1, 10))
    objects.put(server, kube.pod("far", 2, 11))
    objects.put(server, kube.secret(kube.entry(1)))
    objects.put(server, kube.node_info(2))
    environment = {**os.environ, "NODE_NAME": "n1"}
    command = [
        str(ROOT / ".venv/bin/kmesh-daemon"),
        "--enable-ipsec=true",
        "--dry-run",
        f"--pin-root={tmp_path / 'none'}",
    ]
    done = subprocess.run(
        [*command, f"--kubeconfig={server.kubeconfig('admin', server.token)}"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "key hex 10 00 00 00 0a 60 00 00" in done.stdout  # 10.96.0.0/16, from the ServiceCIDR
    assert "src 10.10.0.2 dst 10.10.0.1 proto esp spi 0x00000001" in done.stdout
    assert "key hex 0a f4 02 0b" in done.stdout  # the far pod


def test_with_a_mounted_key_file_the_secret_is_not_asked_for(server, account, tmp_path):
    """Whoever asked for it would be refused: the account has no rule for it."""
    path = tmp_path / "ipSec"
    path.write_text(json.dumps(kube.entry(4)))
    objects.put(server, kube.secret(kube.entry(9)))
    file = account("mounted", without="secrets")
    source = launcher._source(parse([f"--kubeconfig={file}", f"--key-file={path}"], "n1", "host"), {})
    try:
        found = source.read()
        assert (found.complete, found.problems) == (True, ())
        assert '"spi": 4' in path.read_text()
        assert found.secret["data"] == kube.secret(path.read_bytes())["data"]
    finally:
        source.close()

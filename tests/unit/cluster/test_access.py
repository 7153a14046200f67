# SPDX-License-Identifier: Apache-2.0
"""The files and programs behind a kubeconfig: what cannot be had is refused by name, and no secret is ever shown."""

import base64
import json
import os
import stat
import subprocess
import threading
import time
import traceback

import pytest
from kmesh.cluster.kubernetes import access, plugins
from kmesh.cluster.kubernetes.access import TokenFile, enter, of_kubeconfig, of_pod
from kmesh.cluster.kubernetes.connection import connect

from kmesh_bpf import ConfigError
from tests.unit.cluster.test_kubeconfig import SECRET, config

SERVER = "https://127.0.0.1:1"
API = "client.authentication.k8s.io/v1"


@pytest.fixture
def kubeconfig(tmp_path):
    def kubeconfig(user: dict | None = None, cluster: dict | None = None, **top: object) -> str:
        path = tmp_path / "config"
        path.write_text(json.dumps(config(user, cluster, **top)))
        return str(path)

    return kubeconfig


def refused(path: object, context: str | None = None) -> str:
    """Give the sentence; no secret may stand in it, nor in what a traceback would show of it."""
    with pytest.raises(ConfigError) as caught:
        connect(str(path), context, {})
    said = str(caught.value)
    assert said.startswith("the cluster's configuration cannot be used: ")
    assert said.isprintable()
    assert len(said) < 500
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return said


def entered(path: str):
    return enter(of_kubeconfig([path], None, {}))


# --- kubeconfigs of odd content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"{token: " + SECRET.encode(), "is no YAML (line 2)"),
        (b"token: *" + SECRET.encode(), "is no YAML (line 1)"),
        (b"token: !" + SECRET.encode() + b" x", "is no YAML"),
        (b"root:x:0:0:root:/root:/bin/bash\nbin:x:1:1::/bin:/bin/sh\n", "no YAML"),
        (b"- a\n- b\n", "holds no YAML mapping"),
        (b"just words " + SECRET.encode(), "holds no YAML mapping"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"\x7fELF\x02\x01\x01\x00", "is no YAML"),
        (b"[" * 100_000, "no YAML"),
        (b"{a: " * 100_000, "no YAML"),
        (b"kind: Config\n---\nkind: Config\n", "holds 2 documents, not one"),
        (b"kind: Secret\ndata: {}\n", "is no kubeconfig"),
        (b"kind: Config\nclusters: &a [*a]\nusers: *a\ncontexts: *a\ncurrent-context: x\n", "is no YAML"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None,
)
def test_what_is_no_kubeconfig_is_refused_in_a_sentence(tmp_path, content, said):
    (tmp_path / "config").write_bytes(content)
    assert said in refused(tmp_path / "config")


def test_etc_passwd_is_no_kubeconfig():
    assert "no YAML" in refused("/etc/passwd")


def test_aliases_of_aliases_cost_nothing(tmp_path):
    levels = [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 13)]
    text = "\n".join(["a0: &a0 [x, x]", *levels, "users: *a12", "current-context: x"])
    (tmp_path / "config").write_text(text)
    assert "config" in refused(tmp_path / "config")


def test_only_regular_files_are_read_and_at_most_so_far(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        assert "is no regular file" in refused(path)
    assert "Is a directory" in refused(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(8 << 30)
    assert f"is longer than {16 << 20} bytes" in refused(tmp_path / "large")


@pytest.mark.parametrize(
    "user", [{"tokenFile": "/dev/zero"}, {"client-certificate": "/dev/zero", "client-key": "/dev/zero"}]
)
def test_nor_is_anything_else_that_it_names(kubeconfig, user):
    assert "/dev/zero is no regular file" in refused(kubeconfig(user))
    assert "/dev/zero is no regular file" in refused(kubeconfig({}, {"certificate-authority": "/dev/zero"}))


def test_a_file_that_is_not_there_is_named(kubeconfig, tmp_path):
    assert f"the token file {tmp_path}/t cannot be read: No such file" in refused(kubeconfig({"tokenFile": "t"}))
    said = refused(kubeconfig({"client-certificate": "me.crt", "client-key": "me.key"}))
    assert f"client-certificate {tmp_path}/me.crt cannot be read: No such file" in said
    assert "certificate-authority /no/ca cannot be read" in refused(kubeconfig({}, {"certificate-authority": "/no/ca"}))


@pytest.mark.parametrize("path", ["/no/such", "~nobody-of-this-name/x", "a\0b", "\ud800"])
def test_a_kubeconfig_that_is_not_there_is_said_so(path):
    with pytest.raises(ConfigError, match="is not there"):
        connect(path, None, {})


# --- certificates


def coded(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_certificate_and_key_are_taken_from_files_and_from_the_kubeconfig(kubeconfig, pair):
    certificate, key = pair
    for user in (
        {"client-certificate": str(certificate), "client-key": str(key)},
        {"client-certificate-data": coded(certificate), "client-key-data": coded(key)},
        {"client-certificate": str(certificate), "client-key-data": coded(key)},
    ):
        assert entered(kubeconfig(user, {"certificate-authority": str(certificate)})).tls is not None
    trusting = entered(kubeconfig({}, {"certificate-authority-data": coded(certificate)})).tls
    assert len(trusting.get_ca_certs()) == 1


def test_what_is_no_certificate_or_not_that_of_the_key_is_refused(kubeconfig, pair, tmp_path):
    certificate, key = pair
    (tmp_path / "junk").write_text(f"-----BEGIN CERTIFICATE-----\n{SECRET}\n")
    junk = str(tmp_path / "junk")
    assert f"certificate-authority {junk} holds no certificate" in refused(
        kubeconfig({}, {"certificate-authority": junk})
    )
    data = base64.b64encode(b"\xff\0").decode()
    said = refused(kubeconfig({}, {"certificate-authority-data": data}))
    assert "certificate-authority-data holds no certificate in PEM" in said
    no_pair = "client-certificate and client-key are no certificate in PEM and its key"
    assert no_pair in refused(kubeconfig({"client-certificate": str(certificate), "client-key": junk}))
    assert no_pair in refused(kubeconfig({"client-certificate-data": coded(key), "client-key-data": coded(key)}))


def test_an_encrypted_key_asks_nobody_for_its_password(kubeconfig, pair, tmp_path):
    certificate, key = pair
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", f"pass:{SECRET}", "-in", key, "-out", tmp_path / "locked"],
        check=True, capture_output=True,
    )  # fmt: skip
    said = refused(kubeconfig({"client-certificate": str(certificate), "client-key": str(tmp_path / "locked")}))
    assert "client-key is encrypted" in said


# --- tokens


def test_a_token_s_file_is_read_anew_after_a_minute_and_the_last_good_one_counts_meanwhile(tmp_path, caplog):
    now, path = [100.0], tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    token = TokenFile(str(path), lambda: now[0])
    path.write_text("new\n")
    assert token() == SECRET
    now[0] += 60.0
    assert token() == "new"
    path.write_text("two\nlines")
    now[0] += 60.0
    assert token() == "new"
    path.unlink()
    now[0] += 60.0
    assert token() == "new"
    assert "holds line ends" in caplog.text
    assert "No such file" in caplog.text
    path.write_text("newest")
    now[0] += 60.0
    assert token() == "newest"
    assert SECRET not in caplog.text + repr(token)


@pytest.mark.parametrize("content", [b"", b" \n", f"{SECRET}\n{SECRET}".encode(), b"\xff" + SECRET.encode(), b"a b"])
def test_a_token_s_file_that_holds_none_is_refused(kubeconfig, tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    assert f"the token file {tmp_path}/token " in refused(kubeconfig({"tokenFile": "token"}))


def test_in_a_pod_its_account_counts(tmp_path, monkeypatch, pair):
    monkeypatch.setattr(access, "ACCOUNT", tmp_path)
    (tmp_path / "token").write_text(f"{SECRET}\n")
    (tmp_path / "ca.crt").write_bytes(pair[0].read_bytes())
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = enter(of_pod(environment))
    assert (found.target.server, found.token()) == ("https://[fd00::1]:443", SECRET)
    assert SECRET not in repr(found)
    with pytest.raises(ConfigError, match="do not say where the API server is"):
        of_pod({"KUBERNETES_SERVICE_HOST": "a", "KUBERNETES_SERVICE_PORT": ""})


# --- plugins


@pytest.fixture
def plugin(kubeconfig, tmp_path):
    """Make a kubeconfig whose plugin is this shell script."""

    def plugin(script: str, **more: object) -> str:
        path = tmp_path / "login"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return kubeconfig({"exec": {"apiVersion": API, "command": "./login", "interactiveMode": "Never", **more}})

    return plugin


def says(status: object, **top: object) -> str:
    answer = {"apiVersion": API, "kind": "ExecCredential", "status": status, **top}
    return f"cat <<'E'\n{json.dumps(answer)}\nE"


def test_what_a_plugin_makes_is_used_until_it_expires(plugin):
    found = entered(plugin(says({"token": f"{SECRET}\n", "expirationTimestamp": "2026-01-01T00:00:10Z"})))
    assert (found.token(), found.expires) == (SECRET, 1767225600.0)
    assert SECRET not in repr(found)


def test_a_plugin_may_make_a_certificate(plugin, pair):
    status = {"clientCertificateData": pair[0].read_text(), "clientKeyData": pair[1].read_text()}
    assert entered(plugin(says(status))).token() == ""


def test_a_plugin_is_told_what_it_asks_for(plugin, tmp_path):
    script = f'echo "$KUBERNETES_EXEC_INFO $1 $PROFILE" >{tmp_path}/told\n' + says({"token": "t"})
    env = [{"name": "PROFILE", "value": "p"}]
    entered(plugin(script, args=["one"], env=env, provideClusterInfo=True))
    told, _, rest = (tmp_path / "told").read_text().rpartition("} ")
    assert rest == "one p\n"
    assert json.loads(f"{told}}}")["spec"] == {
        "interactive": False,
        "cluster": {"server": "https://10.0.0.1:6443", "insecure-skip-tls-verify": False},
    }


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (f"echo {SECRET}; echo 'first' >&2; echo 'log in with {SECRET} first' >&2; exit 3",
         "has failed (status 3): log in with (hidden) first"),
        ("exit 1", "has failed (status 1): it says nothing"),
        ("kill -9 $$", "has failed (status -9)"),
        (f"echo {SECRET}", "gives no JSON"),
        ("true", "gives no JSON"),
        ("echo '[]'", "gives no ExecCredential"),
        (says({"token": "t"}, kind="Secret"), "gives no ExecCredential"),
        (says({"token": "t"}, apiVersion="client.authentication.k8s.io/v1beta1"), "gives no ExecCredential"),
        (says(None), "gives no ExecCredential"),
        (says({}), "gives neither a token nor a certificate"),
        (says({"clientCertificateData": "x"}), "gives neither a token nor a certificate"),
        (says({"token": [SECRET]}), "gives what is no text"),
        (says({"token": f"a {SECRET}"}), "as token holds blanks"),
        (says({"token": SECRET, "expirationTimestamp": "soon"}), "expirationTimestamp that is no time"),
        (says({"clientCertificateData": SECRET, "clientKeyData": SECRET}), "are no certificate in PEM"),
    ],
)  # fmt: skip
def test_a_plugin_that_does_not_do_its_work_is_named(plugin, script, said):
    assert said in refused(plugin(script))


def test_a_plugin_that_is_missing_is_named_with_how_to_get_it(kubeconfig):
    user = {"exec": {"apiVersion": API, "command": "no-such-login", "installHint": "apt install login"}}
    said = refused(kubeconfig(user))
    assert "the plugin no-such-login cannot be run: No such file or directory; apt install login" in said


def test_a_plugin_that_does_not_answer_is_given_up(plugin, monkeypatch):
    monkeypatch.setattr(plugins, "PLUGIN_SECONDS", 0.2)
    assert "has not answered in 0.2 s" in refused(plugin(f"exec sleep 60 # {SECRET}", args=[SECRET]))


def test_a_plugin_that_must_ask_somebody_is_not_started_without_a_terminal(plugin, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert "there is no terminal" in refused(plugin("true", interactiveMode="Always"))


def test_reading_a_token_from_many_threads_reads_the_file_once(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("t")
    now, reads = [0.0], []
    token = TokenFile(str(tmp_path / "token"), lambda: now[0])
    read = access.read_file
    monkeypatch.setattr(access, "read_file", lambda *given: reads.append(given) or read(*given))
    now[0] = 60.0
    threads = [threading.Thread(target=token) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(reads) == 1


@pytest.mark.parametrize("where", ["", ">&2"])
def test_a_plugin_that_prints_without_end_is_ended(plugin, where):
    assert "gives more than 1 MiB" in refused(plugin(f"exec cat /dev/zero {where}"))


def test_a_plugin_that_closes_its_output_and_stays_is_ended(plugin, monkeypatch):
    monkeypatch.setattr(plugins, "PLUGIN_SECONDS", 0.3)
    assert "has not answered in 0.3 s" in refused(plugin("exec sleep 20 >&- 2>&-"))


def test_what_a_plugin_leaves_behind_is_not_waited_for(plugin):
    began = time.monotonic()
    assert entered(plugin("sleep 20 &\n" + says({"token": "t"}))).token() == "t"
    assert time.monotonic() - began < 10


# --- logins


def id_token(**claims: object) -> str:
    def coded(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{coded({'alg': 'RS256'})}.{coded({'sub': SECRET} | claims)}.{SECRET}"


def logged_in(token: str) -> dict:
    return {"auth-provider": {"name": "oidc", "config": {"id-token": token, "refresh-token": SECRET}}}


def test_a_login_that_is_over_is_refused_by_name(kubeconfig):
    token = id_token(exp=1767225600)
    said = refused(kubeconfig(logged_in(token)))
    assert said.endswith(
        "auth-provider: its id-token expired at 2026-01-01 00:00:00 UTC, and is not renewed here; "
        "kubectl renews it (kubectl get ns), or use exec with a plugin that logs in"
    )
    assert token not in said


def test_a_login_is_used_until_it_is_over_and_then_read_anew(kubeconfig):
    found = entered(kubeconfig(logged_in(token := id_token(exp=4102444800))))
    assert (found.token(), found.expires) == (token, 4102444800.0)


@pytest.mark.parametrize(
    "token",
    [
        SECRET,
        "a.b.c",
        "..",
        f"a.{base64.b64encode(b'[]').decode()}.c",
        *(id_token(exp=one) for one in ("x", True, 1e30)),
    ],
)
def test_a_login_that_does_not_say_when_it_ends_is_for_the_server_to_judge(kubeconfig, token):
    assert (entered(kubeconfig(logged_in(token))).token(), entered(kubeconfig(logged_in(token))).expires) == (
        token,
        float("inf"),
    )

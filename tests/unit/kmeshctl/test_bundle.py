# SPDX-License-Identifier: Apache-2.0
"""The archive for a bug report: what is in it, what is said to be missing, and that no key is."""

import base64
import io
import json
import re
import tarfile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.status import to_lease
from kmesh.errors import ApiError
from kmesh.kmeshctl import bundle, cluster_facts, node_facts
from kmesh.kmeshctl.cli import main
from kmesh.kmeshctl.cluster_facts import pairs, plain, trimmed
from kmesh.kmeshctl.scrubbing import Scrubber
from kmesh.kmeshctl.traffic import Cluster

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_explain import API, BASE, NAMESPACE, NOW, ONE, OTHER, WEB
from tests.unit.kmeshctl.test_status import OURS, Source

MATERIAL = bytes(range(90, 126))
PREVIOUS = bytes(range(170, 206))
SA_KEY = bytes(range(36, 72))
KEYS = (MATERIAL, PREVIOUS, SA_KEY)


def looks(key):
    """Give what a key may look like: as it is, hexadecimal, base64; wherever in a text it begins."""
    for part in (key, key[:32]):
        yield part
        yield part.hex().encode()
        yield part.hex().upper().encode()
        yield base64.b64encode(part).rstrip(b"=")[:-1]  # the last digit is shared with what follows
        yield base64.b64encode(b"x" + part)[4:-4]
        yield base64.b64encode(b"xx" + part)[4:-4]


def decoded(content):
    """Give what is coded in base64 somewhere in it, wherever that begins, once and twice over."""
    for run in re.findall(rb"[A-Za-z0-9+/]{24,}", content):
        for start in range(4):
            piece = run[start : start + (len(run) - start) // 4 * 4]
            once = base64.b64decode(piece)
            yield once
            yield from decoded(once)


def members(path):
    with tarfile.open(path) as archive:
        return {one.name.partition("/")[2]: archive.extractfile(one).read() for one in archive.getmembers()}


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """Make a bundle of a folder, on a node whose tools say what they are told to; give its members and what was printed."""
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    secret = kube.secret(kube.entry(2, MATERIAL), [kube.entry(1, PREVIOUS)])
    things = [*BASE[:4], NAMESPACE, WEB, API, secret]
    (cluster / "all.yaml").write_text(yaml.safe_dump_all(things))
    (cluster / "lease-kmesh-ipsec-n1.yaml").write_text(yaml.safe_dump(to_lease(ONE)))

    def run(answer, *argv):
        monkeypatch.setattr(node_facts, "answer", answer)
        out, err = io.StringIO(), io.StringIO()
        file = tmp_path / "bundle.tar.gz"
        argv = ["bundle", "--manifests", str(cluster), "--file", str(file), *argv]
        status = main(argv, io.StringIO(), out, err, {})
        return status, members(file) if status == 0 else {}, out.getvalue(), err.getvalue()

    return run


def leaky(command):
    """Say all keys in all forms, whatever is asked: as a tool would that knows no ``nokeys``."""
    if command == ("ip", "xfrm", "state", "list"):
        return b"src 10.0.0.1 dst 10.0.0.2\n\taead rfc4106(gcm(aes)) 0x" + SA_KEY.hex().encode() + b" 128\n"
    every = b"\n".join(
        form
        for key in KEYS
        for form in (
            key,
            key.hex().encode(),
            base64.b64encode(key),
            base64.b64encode(json.dumps(kube.entry(1, key)).encode()),
        )
    )
    return f"{' '.join(command)} says\n".encode() + every


def test_no_key_is_in_any_member_in_any_form_whatever_a_node_s_tools_print(collected):
    status, found, _, _ = collected(leaky, "--node")
    assert status == 0
    assert found["node/xfrm/state.txt"].startswith(b"ip -s -d xfrm state list nokeys says\n(hidden)")
    for name, content in found.items():
        for key in KEYS:
            for text in (content, *decoded(content)):
                for form in looks(key):
                    assert form not in text, name


def test_of_the_secret_its_versions_stand_there_and_nothing_else(collected):
    _, found, _, _ = collected(leaky, "--node")
    assert found["cluster/secret.txt"] == b"versions (SPI): 1, 2; in force: 2\n"
    assert "secret" not in json.loads(found["cluster/objects.json"])


def test_what_is_in_it_and_what_is_not_is_told_by_name(collected):
    def absent(command):
        raise node_facts.MissingError(f"{command[0]} is not installed here")

    status, found, out, err = collected(absent, "--node")
    assert (status, err) == (0, "")
    assert {"cluster/status.txt", "cluster/status.json", "cluster/explain.txt", "cluster/leases.json"} <= found.keys()
    assert b"of 2 nodes ready" in found["cluster/status.txt"]
    assert b"10.244.1.10 -> 10.244.2.11" in found["cluster/explain.txt"]
    missing = found["what-is-missing.txt"].decode()
    for line in ("node/xfrm/state.txt: ip is not installed here", "node/nft/ruleset.txt: nft is not installed here"):
        assert line in missing
        assert f"not had: {line}" in out
    assert "logs/: a folder of manifests has none" in missing


def test_off_a_node_the_kernel_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(node_facts, "answer", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    file, out = tmp_path / "x.tar.gz", io.StringIO()
    flags = bundle_flags(file)
    assert bundle.run(flags, {}, out, io.StringIO(), tmp_path / "no pins") == 0
    assert set(members(file)) == {"versions/kmeshctl.txt", "what-is-missing.txt"}
    assert "cluster/: there is no cluster" in out.getvalue()
    assert "node/: no maps of this project are pinned in" in out.getvalue()
    assert file.stat().st_mode & 0o777 == 0o600


def bundle_flags(file):
    from kmesh.kmeshctl.arguments import parser  # noqa: PLC0415

    return parser().parse_args(["bundle", "--file", str(file)])


def test_what_is_there_is_not_overwritten(collected, tmp_path):
    (tmp_path / "bundle.tar.gz").write_bytes(b"")
    status, _, _, err = collected(leaky)
    assert status == 2
    assert err.endswith("bundle.tar.gz cannot be written: File exists\n")


@given(st.sampled_from(KEYS), st.binary(max_size=7), st.binary(max_size=7))
def test_a_key_is_found_wherever_it_begins_in_what_is_coded(key, before, after):
    scrub = Scrubber([key])
    for held in (key, base64.b64encode(key), key.hex().encode()):
        text = before + held + after
        for content in (text, base64.b64encode(text), base64.urlsafe_b64encode(text)):
            scrubbed = scrub(content)
            assert not any(form in scrubbed for form in looks(key))


def test_what_looks_like_a_key_or_a_token_is_hidden_though_nobody_knows_it_and_digests_stay():
    scrub = Scrubber([])
    token = b"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl"
    for secret in (b"ab" * 36, token, b"-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----"):
        assert scrub(b"x " + secret + b" y") == b"x (hidden) y"
    assert scrub(b"Authorization: Bearer abc.def") == b"Authorization: Bearer (hidden)"
    digest = b"sha256:" + b"0123456789abcdef" * 4
    assert scrub(digest) == digest


def test_environments_and_bookkeeping_are_left_out_of_manifests():
    pod = kube.pod("daemon", 1)
    pod["metadata"] |= {"managedFields": [1], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x"}}
    pod["spec"]["containers"][0]["env"] = [{"name": "HTTPS_PROXY", "value": "http://u:p@proxy"}, {"name": "N"}]
    shown = trimmed(pod)
    assert shown["spec"]["containers"][0]["env"] == [{"name": "HTTPS_PROXY", "value": "(left out)"}, {"name": "N"}]
    assert shown["metadata"]["annotations"] == {}
    assert "managedFields" not in shown["metadata"]
    assert pod["metadata"]["managedFields"] == [1], "what was read is nobody's to change"


def test_objects_are_plain_values_without_the_secret():
    found = json.loads(json.dumps(plain(Source((*BASE, WEB)).read())))
    assert found["nodes"][0]["pod_cidrs"] == ["10.244.1.0/24", "fd00:244:1::/64"]
    assert found["pods"][0]["containers"] == ["app"]
    assert "secret" not in found


def test_pairs_that_do_not_reach_each_other_are_asked_about_and_else_any():
    from dataclasses import replace  # noqa: PLC0415

    from kmesh.cluster.status import PeerStatus  # noqa: PLC0415

    third = kube.pod("third", 3, 11)
    source = Source((*BASE, kube.node(3), kube.node_info(3, **OURS), NAMESPACE, WEB, API, third))
    apart = replace(ONE, peers=(PeerStatus("n3", False, 0, 0, 0.0),))
    for reports, wanted in (
        ({"n1": ONE, "n2": OTHER, "n3": replace(OTHER, node="n3")}, [("default/web", "default/api")]),
        (
            {"n2": OTHER},
            [("default/api", "default/web"), ("default/web", "default/third"), ("default/third", "default/api")],
        ),
        ({"n1": apart, "n2": OTHER, "n3": replace(OTHER, node="n3")}, [("default/web", "default/third")]),
    ):
        assert list(pairs(source.read(), reports, Cluster(source.read(), reports, (), NOW), NOW)) == wanted


class Server(Source):
    """A cluster behind an API server that gives logs of one pod and refuses those of another."""

    def raw(self, kind):
        return [{"kind": kind, "metadata": {"name": "one", "managedFields": []}}]

    def daemon_pods(self):
        pods = [kube.pod(name, 1) for name in ("kmesh-a", "kmesh-b")]
        pods[0]["status"]["containerStatuses"] = [{"restartCount": 2}]
        return pods

    def log(self, pod, _lines, previous):
        if pod == "kmesh-b":
            raise ApiError("may not get pods/log of kmesh-b", 403)
        return b"before\n" if previous else b"now " + MATERIAL.hex().encode() + b"\n"


def test_logs_come_with_those_before_a_restart_and_what_is_refused_is_told(tmp_path):
    archive = bundle.Archive(lambda _: None)
    cluster_facts.collect(archive, Server((*BASE[:4], kube.secret(kube.entry(1, MATERIAL)))), NOW)
    archive.write(tmp_path / "x.tar.gz", NOW)
    found = members(tmp_path / "x.tar.gz")
    assert found["logs/kmesh-a.log"] == b"now (hidden)\n"
    assert found["logs/kmesh-a.previous.log"] == b"before\n"
    assert found["what-is-missing.txt"] == b"logs/kmesh-b.log: may not get pods/log of kmesh-b\n"
    assert json.loads(found["cluster/kmeshnodeinfos.json"]) == [{"kind": "KmeshNodeInfo", "metadata": {"name": "one"}}]


def test_every_fact_of_a_node_is_had_or_says_why_not():
    """On whatever machine this runs."""
    for fact in node_facts.facts():
        try:
            assert isinstance(fact.read(), bytes), fact.name
        except node_facts.MissingError as error:
            assert str(error), fact.name

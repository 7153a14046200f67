# SPDX-License-Identifier: Apache-2.0
import io
import json

import pytest
from kmesh import dump_maps
from kmesh.kmeshctl import cli as kmeshctl
from kmesh.launcher import cli as launcher
from kmesh.launcher.config import parse

from kmesh_bpf import ConfigError, Options

KEY = bytes(range(36)).hex()


def ctl(*argv, stdin=""):
    out, err = io.StringIO(), io.StringIO()
    status = kmeshctl.main(argv, io.StringIO(stdin), out, err)
    return status, out.getvalue(), err.getvalue()


def test_the_guide_s_form_creates_and_replaces_and_never_shows_the_key(tmp_path):
    where = ("--manifests", str(tmp_path))
    assert ctl(*where, "secret", f"--key={KEY}") == (0, "key stored: SPI 1, rfc4106(gcm(aes))\n", "")
    assert ctl("secret", *where, f"--key={KEY[2:]}00")[1].startswith("key stored: SPI 2")
    status, out, err = ctl("secret", "get", *where)
    assert (status, err) == (0, "")
    assert KEY not in out
    assert out.count("(hidden)") == 2
    assert KEY in ctl("secret", "get", "--show-key", *where)[1]


@pytest.mark.parametrize("bad", ["", "xyz", "abc", "abcd"])
def test_a_refused_key_writes_nothing(tmp_path, bad):
    status, out, err = ctl("--manifests", str(tmp_path), "secret", f"--key={bad}")
    assert (status, out) == (2, "")
    assert err.startswith("kmeshctl: the key ")
    assert list(tmp_path.glob("*.yaml")) == []


def test_create_takes_standard_input_or_makes_a_random_key(tmp_path):
    where = ("--manifests", str(tmp_path))
    assert ctl("secret", "create", "--key-file=-", *where, stdin=KEY + "\n")[0] == 0
    assert ctl("secret", "create", *where)[1].startswith("key stored: SPI 2")
    rows = json.loads(ctl("secret", "get", "-o", "json", "--show-key", *where)[1])
    assert [row["spi"] for row in rows] == [2, 1]
    assert rows[1]["key"] == KEY != rows[0]["key"]


def test_delete_then_get_says_what_to_do(tmp_path):
    where = ("--manifests", str(tmp_path))
    ctl(*where, "secret", "create")
    assert ctl(*where, "secret", "delete")[0] == 0
    status, _, err = ctl(*where, "secret", "get")
    assert status == 1
    assert "kmeshctl secret create" in err


def test_without_a_cluster_or_an_action_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "or --manifests DIR" in ctl("secret", f"--key={KEY}")[2]
    assert "secret create" in ctl("--manifests", str(tmp_path), "secret")[1]
    assert ctl("version")[1].startswith("kmeshctl ")
    assert ctl("nonsense")[0] == 2


def test_the_daemon_refuses_what_this_project_does_not_provide_in_one_sentence():
    for flag in ("--mode=kernel-native", "--enable-bypass=true", "--node-mark-mask=0xff", "--service-cidr=x", "--foo"):
        err = io.StringIO()
        assert launcher.main([flag], {}, err) == 2
        assert len(err.getvalue().splitlines()) == 1


def test_encryption_needs_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    err = io.StringIO()
    assert launcher.main(["--enable-ipsec=true"], {}, err) == 2
    assert "--kubeconfig FILE or --manifests DIR" in err.getvalue()


def test_a_folder_and_an_api_server_are_not_one_cluster(tmp_path):
    err = io.StringIO()
    assert launcher.main([f"--manifests={tmp_path}", "--context=lab"], {}, err) == 2
    assert "name two clusters" in err.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "file is empty"), ("{token: x", "is no YAML"), ("apiVersion: v1\nkind: Config\n", "current-context")],
)
def test_a_kubeconfig_that_cannot_be_used_is_one_sentence(tmp_path, content, reason):
    (tmp_path / "config").write_text(content)
    err = io.StringIO()
    assert launcher.main(["--enable-ipsec=true"], {"KUBECONFIG": str(tmp_path / "config")}, err) == 2
    assert len(err.getvalue().splitlines()) == 1
    assert err.getvalue().startswith("kmesh-daemon: the cluster's configuration cannot be used: ")
    assert reason in err.getvalue()
    assert "token" not in err.getvalue()


def test_flags_become_settings():
    config = parse(
        ["--enable-ipsec=true", "--permissive", "--uplink=a", "--uplink=b", "--service-cidr=10.96.0.0/12"], "n1", "host"
    )
    assert (config.node, config.options.uplinks) == ("n1", ("a", "b"))
    assert not config.settings.strict
    assert not config.options.strict
    assert parse([], None, "host").node == "host"
    assert parse([], None, "Host-7.Example\n").node == "host-7.example", "as kubelets register"
    assert parse([], "As-It-Is", "host").node == "As-It-Is"
    assert not parse([], None, "host").enable_ipsec


@pytest.mark.parametrize(
    ("flags", "mask"),
    [
        ([], 0xFFF0_1F00),
        (["--node-mark-mask=0xff00"], 0xFF00),
        (["--node-mark-mask", "0xFFF00000"], 0xFFF0_0000),
        (["--node-mark-mask=65280"], 0xFF00),
    ],
)
def test_the_node_mark_mask_reaches_the_programs_and_the_plan(flags, mask):
    config = parse(flags, "n1", "host")
    assert (config.settings.node_mark_mask, config.options.node_mark_mask) == (mask, mask)


@pytest.mark.parametrize("mask", ["", "x", "0", "-0x100", "0x100000000", "0xff80", "0x7f00"])
def test_a_node_mark_mask_that_cannot_be_used_is_refused_and_named(mask):
    with pytest.raises(ConfigError, match=f"node.mark.mask.*{mask}"):
        parse([f"--node-mark-mask={mask}"], "n1", "host")


@pytest.mark.parametrize(("flags", "mask"), [([], 0xFF), (["--mark-mask=0x7f"], 0x7F), (["--mark-mask", "48"], 0x30)])
def test_the_mark_mask_reaches_the_programs_and_the_plan(flags, mask):
    config = parse(flags, "n1", "host")
    assert (config.settings.mark_mask, config.options.mark_mask) == (mask, mask)


@pytest.mark.parametrize("mask", ["", "x", "0", "-0x1", "0x1ff", "0xef", "0xdf"])
def test_a_mark_mask_that_cannot_be_used_is_refused_and_named(mask):
    with pytest.raises(ConfigError, match=f"mark.mask.*{mask}"):
        parse([f"--mark-mask={mask}"], "n1", "host")


def test_the_bound_of_exact_addresses_and_strictness_reach_the_plan():
    assert parse([], "n1", "host").options == Options()
    options = parse(["--max-exact-addresses=0", "--permissive"], "n1", "host").options
    assert (options.max_exact, options.strict) == (0, False)
    for bad in ("-1", "many"):
        with pytest.raises(ConfigError, match=f"max.exact.addresses.*{bad}"):
            parse([f"--max-exact-addresses={bad}"], "n1", "host")


def test_dump_maps_says_when_nothing_is_pinned(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    assert dump_maps.main(["--pin-root", str(tmp_path)], out, err) == 1
    assert "is the daemon running" in err.getvalue()
    (tmp_path / "maps-0-1").mkdir()
    assert dump_maps.main(["--pin-root", str(tmp_path)], out, err) == 1
    assert "this version reads" in err.getvalue()

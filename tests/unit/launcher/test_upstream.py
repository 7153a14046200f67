# SPDX-License-Identifier: Apache-2.0
"""Command lines of Go Kmesh's kmesh-daemon, in the spellings that cobra takes."""

import io
import logging
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.launcher import cli, upstream
from kmesh.launcher.config import parse

from kmesh_bpf import DEFAULT_PIN_ROOT, ConfigError, __version__

GUIDE = "--mode=dual-engine --enable-bypass=false --enable-ipsec=true"
E2E = "--mode=dual-engine --enable-bypass=false --monitoring=true --enable-ipsec=true"
FULL = (
    "--bpf-fs-path=/sys/fs/bpf --cgroup2-path=/mnt/kmesh_cgroup2 --cni-etc-path=/etc/cni/net.d --conflist-name= "
    "--enable-bypass=false --enable-ipsec=true --enable-mda=false --enable-secret-manager=false --mode=dual-engine "
    "--monitoring=true --periodic-report=false --plugin-cni-chained=true --profiling=false --enable-dns-proxy=false"
)
BOOLEANS = frozenset(flag.name for flag in upstream.IGNORED if flag.metavar == "BOOL")
TEXTS = frozenset(flag.name for flag in upstream.IGNORED) - BOOLEANS
GO_TRUE, GO_FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


def read(line: str):
    return parse(shlex.split(line), "n1", "host")


@pytest.mark.parametrize(
    ("line", "ignored"),
    [
        (GUIDE, ()),
        (E2E, ("--monitoring",)),
        (FULL, tuple(flag.name for flag in upstream.IGNORED if flag.name[2:] in FULL)),
    ],
)
def test_upstream_s_own_lines_mean_what_they_mean_there(line, ignored):
    config = read(line)
    assert (config.command, config.enable_ipsec, config.pin_root) == ("run", True, DEFAULT_PIN_ROOT)
    assert config.ignored == ignored


def test_every_flag_of_upstream_s_main_is_taken():
    assert {flag.split("=")[0] for flag in FULL.split()} <= BOOLEANS | TEXTS | {
        "--mode",
        "--enable-bypass",
        "--enable-ipsec",
        "--bpf-fs-path",
    }


@pytest.mark.parametrize("name", sorted(BOOLEANS))
@pytest.mark.parametrize("form", ["{name}", "{name}=true", "{name}=F", "{name} false", "{name} T"])
def test_a_boolean_without_meaning_is_taken_in_every_spelling_and_named(name, form):
    config = read(f"{form.format(name=name)} --enable-ipsec")
    assert (config.ignored, config.enable_ipsec) == ((name,), True)


@pytest.mark.parametrize("name", sorted(TEXTS))
@pytest.mark.parametrize("form", ["{name}=/x", "{name} /x", "{name}="])
def test_a_text_without_meaning_is_taken_in_every_spelling_and_named(name, form):
    assert read(form.format(name=name)).ignored == (name,)


@pytest.mark.parametrize("name", ["--enable-ipsec", *sorted(BOOLEANS)])
@pytest.mark.parametrize("value", ["maybe", "", "yes", "2"])
def test_a_boolean_that_is_none_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"argument {name}: '{value}' is neither true nor false"):
        read(f"{name}={value}")


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_text_without_its_value_is_refused(name):
    with pytest.raises(ConfigError, match=f"argument {name}: expected one argument"):
        read(name)


@pytest.mark.parametrize(
    ("line", "encrypts"),
    [
        ("--enable-ipsec", True),
        ("--enable-ipsec true", True),
        ("--enable-ipsec false", False),
        ("--enable-ipsec --strict", True),
        ("--enable-ipsec=false --enable-ipsec", True),
        ("--enable-ipsec --enable-ipsec=false", False),
        *((f"--enable-ipsec={word}", True) for word in GO_TRUE),
        *((f"--enable-ipsec={word}", False) for word in GO_FALSE),
    ],
)
def test_encryption_is_asked_for_as_in_go(line, encrypts):
    assert read(line).enable_ipsec is encrypts


@pytest.mark.parametrize("command", ["run", "uninstall", "boot-guard", "version"])
def test_a_command_behind_a_boolean_is_not_its_value(command):
    config = read(f"--enable-ipsec {command}")
    assert (config.command, config.enable_ipsec) == (command, True)


@pytest.mark.parametrize("flag", ["--enable-bypass", "--enable-bypass=true", "--enable-bypass 1"])
def test_bypass_asked_for_without_a_value_is_refused_too(flag):
    with pytest.raises(ConfigError, match="--enable-bypass=true is not provided"):
        read(flag)


@pytest.mark.parametrize(
    "flag", ["--enable-ipse", "--enable-ipsecs=true", "--enable-IPsec", "-enable-ipsec", "--foo=1"]
)
def test_a_flag_that_nobody_knows_is_refused_where_cobra_is_silent(flag):
    with pytest.raises(ConfigError, match="unrecognized arguments"):
        read(flag)


def test_the_pins_are_below_bpffs_wherever_that_is():
    assert read("--bpf-fs-path=/run/bpf").pin_root == Path("/run/bpf/kmesh-ipsec")
    assert read("--bpf-fs-path /sys/fs/bpf").pin_root == DEFAULT_PIN_ROOT
    assert read("--bpf-fs-path=/run/bpf").ignored == ()
    with pytest.raises(ConfigError, match="not allowed with argument"):
        read("--bpf-fs-path=/run/bpf --pin-root=/sys/fs/bpf/x")


WORDS = st.sampled_from(["--a", "--b", "--b=x", "true", "F", "x", "run", "--"])


@given(st.lists(WORDS))
def test_spelling_out_gives_each_boolean_its_value_and_changes_nothing_else(argv):
    line = " ".join(argv)
    before, end, behind = re.fullmatch(r"((?:(?!--(?: |$))\S+ ?)*)((?:--(?= |$))?)(.*)", line).groups()
    meant = re.sub(r"(?<!\S)--a(?: (true|F))?(?!\S)", lambda found: f"--a={found[1] or 'true'}", before)
    assert " ".join(upstream.spelled_out(argv, frozenset({"--a"}))) == meant + end + behind


def test_what_has_no_meaning_is_told_in_one_warning(tmp_path, capsys):
    err = io.StringIO()
    line = f"{FULL} --manifests={tmp_path} --state-dir={tmp_path} --log-level=warning boot-guard"
    assert cli.main(shlex.split(line), {}, err) == 0
    (warning,) = err.getvalue().splitlines()
    assert "WARNING flags of Go Kmesh that have no meaning here are ignored: --monitoring, --periodic-report" in warning
    for name in read(FULL).ignored:
        assert warning.count(name) == 1
    err = io.StringIO()
    assert cli.main(shlex.split(f"{GUIDE} --state-dir={tmp_path} --log-level=warning boot-guard"), {}, err) == 0
    assert err.getvalue() == ""
    assert capsys.readouterr().out == ""
    logging.getLogger("kmesh").handlers.clear()


def test_the_version_is_told_and_nothing_else_is_done(capsys):
    assert cli.main(["version", "--monitoring"], {}, io.StringIO()) == 0
    assert capsys.readouterr().out == f"kmesh-daemon {__version__}\n"


@pytest.mark.parametrize("argv", [["help"], ["--help"], ["-h"]])
def test_help_is_printed(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv, {}, io.StringIO())
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: kmesh-daemon [-h]")


@pytest.mark.parametrize("line", ["dump", "dump dual-engine", "log", "log default", "log --set default:debug"])
def test_a_command_that_is_not_provided_says_so_with_a_way_out(line):
    with pytest.raises(ConfigError, match=r"is not provided by this project: .*(--log-level|dump_maps)"):
        read(line)

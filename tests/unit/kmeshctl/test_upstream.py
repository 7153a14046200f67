# SPDX-License-Identifier: Apache-2.0
"""What those write who come from Go Kmesh's kmeshctl."""

import io

import pytest
from kmesh.cluster.manifests import SECRET_FILE
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.cli import main
from kmesh.kmeshctl.completion import commands_of
from kmesh.kmeshctl.upstream import NOT_PROVIDED

KEY = bytes(range(36)).hex()


def ctl(*argv):
    out, err = io.StringIO(), io.StringIO()
    status = main(argv, io.StringIO(), out, err)
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("form", [["-k", KEY], [f"-k={KEY}"], [f"-k{KEY}"], ["--key", KEY], [f"--key={KEY}"]])
@pytest.mark.parametrize("command", [["secret", "create"], ["secret"]])
def test_a_key_is_stored_in_each_spelling_that_cobra_takes(tmp_path, command, form):
    assert ctl(*command, *form, "--manifests", str(tmp_path))[:2] == (0, "key stored: SPI 1, rfc4106(gcm(aes))\n")
    assert (tmp_path / SECRET_FILE).exists()


HELP = {
    "kmeshctl": ([], ["help"], ["-h"], ["--help"], ["-n", "x"]),
    "kmeshctl secret": (["secret"], ["help", "secret"], ["secret", "--help"], ["-n", "x", "secret"]),
    "kmeshctl secret create": (["help", "secret", "create"], ["secret", "create", "-h"]),
    "kmeshctl help": (["help", "help"], ["help", "--help"]),
    "kmeshctl status": (["help", "status"], ["-n", "x", "help", "status"]),
}


@pytest.mark.parametrize(("prog", "argv"), [(prog, argv) for prog, lines in HELP.items() for argv in lines])
def test_help_is_printed_as_cobra_does_and_no_cluster_is_asked(prog, argv):
    status, out, err = ctl(*argv)
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: {prog} [-h]")


LINES = {
    "accesslog": ["kmesh-x", "enable"],
    "authz": ["status", "kmesh-x", "kmesh-y"],
    "dnsproxy": ["enable"],
    "dump": ["kmesh-x", "dual-engine"],
    "install": ["--version", "0.5"],
    "log": ["kmesh-x", "--set", "bpf:debug"],
    "mcp": ["serve"],
    "monitoring": ["--all", "enable"],
    "namespace": ["list"],
    "node-summary": [],
    "service": ["kmesh-x", "httpbin"],
    "trace": ["kmesh-x", "--dst", "10.96.46.87", "--port", "80"],
    "waypoint": ["apply", "-n", "default", "--enroll-namespace", "--for=all", "-w"],
}


@pytest.mark.parametrize("before", [[], ["-n", "x"], ["--manifests=/nowhere"], ["help"]])
@pytest.mark.parametrize("command", NOT_PROVIDED)
def test_a_command_that_is_not_provided_says_so_in_one_line_with_a_way_out(command, before):
    status, out, err = ctl(*before, command, *LINES[command])
    assert (status, out) == (2, "")
    assert err == f"kmeshctl: {command} is not provided by this project: {NOT_PROVIDED[command]}\n"


def test_the_version_of_a_daemon_is_elsewhere():
    status, out, err = ctl("version", "kmesh-x")
    assert (status, out) == (2, "")
    assert "kmeshctl status" in err


def test_the_ways_out_name_commands_that_are_there():
    there = {command.path for command in commands_of(parser(), "kmeshctl")}
    for way_out in NOT_PROVIDED.values():
        for part in way_out.split("kmeshctl ")[1:]:
            assert f"kmeshctl {part.split()[0].strip(',;')}" in there


def test_they_stand_in_no_help_and_in_no_pod_s_way(tmp_path):
    assert not any(f" {command} " in ctl("--help")[1] for command in NOT_PROVIDED)
    assert "default/dump" in ctl("explain", "dump", "log", "--manifests", str(tmp_path))[2]

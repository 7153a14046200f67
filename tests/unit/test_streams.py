# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, full, or have nobody at the other end: one sentence, status 1, and what was done."""

import errno
import os
import subprocess
import sys

import pytest
import yaml
from kmesh.cluster.manifests import SECRET_FILE
from kmesh.cluster.secret import parse_keys
from kmesh.errors import OutputError
from kmesh.kmeshctl import cli as kmeshctl
from kmesh.launcher import cli as launcher

from tests.unit.cluster import kube

CTL = [sys.executable, "-c", "from kmesh.kmeshctl.cli import entry; entry()"]
DAEMON = [sys.executable, "-c", "from kmesh.launcher.cli import entry; entry()"]
DUMP = [sys.executable, "-m", "kmesh.dump_maps"]
FULL, CLOSED = "No space left on device", "Bad file descriptor"


def run(command, redirection):
    """Run a command as a shell does with its streams; give status, output and errors."""
    line = ["bash", "-c", f'"$@" {redirection}', "bash", *map(str, command)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("redirection", "why"), [(">/dev/full", FULL), (">&-", CLOSED)])
@pytest.mark.parametrize(
    ("command", "program"),
    [
        ([*CTL, "version"], "kmeshctl"),
        ([*CTL, "version", "-o", "json"], "kmeshctl"),
        ([*CTL, "--help"], "kmeshctl"),
        ([*CTL, "completion", "bash"], "kmeshctl"),
        ([*DAEMON, "--help"], "kmesh-daemon"),
        ([*DAEMON, "--dry-run"], "kmesh-daemon"),
        ([*DUMP, "--help"], "dump_maps"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_sentence(command, program, redirection, why):
    assert run(command, redirection) == (1, "", f"{program}: standard output cannot be written: {why}\n")


@pytest.mark.parametrize(("redirection", "why"), [(">/dev/full", FULL), (">&-", CLOSED), ("| true", "Broken pipe")])
def test_a_key_that_was_stored_is_told_as_stored_and_so_is_one_that_was_deleted(tmp_path, redirection, why):
    where = ["--manifests", tmp_path]
    gone = "sleep 1; " if "|" in redirection else ""  # until whoever should read is gone
    command = ["bash", "-c", f'{gone}exec "$@"', "bash", *CTL, "secret"]
    status, out, err = run([*command, "create", *where], f"{redirection}; exit ${{PIPESTATUS[0]}}")
    assert (status, out) == (1, "")
    assert err == f"kmeshctl: key stored: SPI 1, rfc4106(gcm(aes)); standard output cannot be written: {why}\n"
    assert parse_keys(yaml.safe_load((tmp_path / SECRET_FILE).read_text())).current == 1
    status, out, err = run([*command, "delete", *where], f"{redirection}; exit ${{PIPESTATUS[0]}}")
    assert err.startswith("kmeshctl: key deleted; ")
    assert err.endswith(f"; standard output cannot be written: {why}\n")


def test_status_and_get_say_it_too(tmp_path):
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([kube.node(1), kube.secret(kube.entry())]))
    for command in (["status"], ["status", "-o", "yaml"], ["status", "--watch=1"], ["secret", "get"]):
        line = [*CTL, "--manifests", tmp_path, *command]
        assert run(line, ">/dev/full") == (1, "", f"kmeshctl: standard output cannot be written: {FULL}\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&- >&- <&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("command", [[*CTL, "bogus"], [*DAEMON, "--bogus"], [*CTL, "version"]])
def test_where_not_even_errors_can_be_written_the_status_still_tells(command, redirection):
    status, _, err = run(command, redirection)
    assert (status == 0) == (
        command[-1] == "version" and ">&-" not in redirection.split() and ">/dev/full" not in redirection.split()
    )
    assert err == ""


def test_no_file_takes_the_place_of_a_stream_that_is_closed(tmp_path):
    assert run([*CTL, "--manifests", tmp_path, "secret", "create"], ">&- 2>&- <&-")[0] == 1
    text = (tmp_path / SECRET_FILE).read_text()
    assert "kmeshctl" not in text
    assert parse_keys(yaml.safe_load(text)).current == 1


def test_what_is_opened_gets_no_number_of_a_stream_s(tmp_path):
    code = (
        "import os, sys; from kmesh import streams;"
        "streams.run('x', lambda *_: open(sys.argv[1], 'w').write(str(os.open('/', os.O_RDONLY))))"
    )
    run([sys.executable, "-c", code, tmp_path / "number"], ">&- 2>&- <&-")
    assert int((tmp_path / "number").read_text()) > 2


def test_without_standard_input_there_is_no_key_to_read(tmp_path):
    status, _, err = run([*CTL, "--manifests", tmp_path, "secret", "create", "--key-file=-"], "<&-")
    assert (status, err) == (2, "kmeshctl: the key is empty; give 72 hexadecimal digits\n")


def test_a_name_that_the_terminal_has_no_letters_for_is_written_all_the_same(tmp_path):
    info = kube.node_info(2)
    info["metadata"]["name"] = "m\u00fcnchen"
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(info))
    command = [*CTL, "--manifests", str(tmp_path), "status"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "m\\xfcnchen" in done.stdout
    assert done.stderr == ""


NUL_FLAGS = [
    (launcher, ["--pin-root=/sys/fs/bpf/a\0b"]),
    (launcher, ["--state-dir=a\0b"]),
    (launcher, ["--manifests=a\0b"]),
    (launcher, ["--key-file=a\0b"]),
    (launcher, ["--kubeconfig=a\0b"]),
    (launcher, ["--pin-root="]),
    (kmeshctl, ["--manifests=a\0b", "status"]),
    (kmeshctl, ["--kubeconfig=a\0b", "status"]),
    (kmeshctl, ["secret", "create", "--key-file=a\0b"]),
    (kmeshctl, ["version", "--output=\n"]),
    (kmeshctl, ["version", "--out\nput"]),
    (kmeshctl, ["status", "--watch=1\n2"]),
    (kmeshctl, ["explain", "a\nb", "c", "--service-cidr=\n"]),
    (launcher, ["--mode=a\nb"]),
    (launcher, ["--log-level=\x1b[2J"]),
    (launcher, ["--bogus\n"]),
    (launcher, ["--replay-window=" + "9" * 5000]),
    (launcher, ["--max-exact-addresses=0x" + "f" * 5000]),
    (launcher, ["--health-address=:" + "9" * 5000]),
    (launcher, ["--max-view-age=" + "x" * 5000]),
    (launcher, ["--service-cidr=10.0.0.0/\n"]),
]


@pytest.mark.parametrize(
    ("program", "argv"), NUL_FLAGS, ids=lambda one: repr(one)[:40] if isinstance(one, list) else ""
)
def test_a_flag_that_no_shell_would_give_is_refused_in_one_short_line(program, argv, capsys):
    if program is kmeshctl:
        status = kmeshctl.main(argv, sys.stdin, sys.stdout, sys.stderr)
    else:
        status = launcher.main(argv, {}, sys.stderr)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < 300


def test_an_error_of_the_output_tells_what_was_done_whoever_reads():
    assert not OutputError(errno.EPIPE).told
    assert OutputError(errno.EPIPE, "key stored").told
    assert OutputError(errno.ENOSPC).told

# SPDX-License-Identifier: Apache-2.0
"""What the flags make of the daemon's log: which lines are in it, and in which form."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime

import pytest
from kmesh.launcher import cli as launcher

LEVELS = ["debug", "info", "warning", "error"]
TIME = "%Y-%m-%d %H:%M:%S,%f"


@pytest.fixture
def logged(monkeypatch) -> Callable[..., list[str]]:
    """Start a daemon with these flags that has only one thing to say, a line a level; give the lines."""
    log = logging.getLogger("kmesh")

    def speak(*_) -> int:
        for name in LEVELS:
            log.log(getattr(logging, name.upper()), 'peer %s:\n"%s"', "n2", name)
        return 0

    def logged(*flags: str) -> list[str]:
        stderr = io.StringIO()
        assert launcher.main(flags, {}, stderr) == 0
        return stderr.getvalue().splitlines()

    monkeypatch.setattr(launcher, "_run", speak)
    return logged


@pytest.mark.parametrize("level", LEVELS)
def test_the_log_holds_its_level_and_what_is_worse(logged, level):
    found = [json.loads(line)["level"] for line in logged("--log-format=json", f"--log-level={level}")]
    assert found == LEVELS[LEVELS.index(level) :]


def test_unless_told_otherwise_the_log_is_text_from_info_on(logged):
    found = logged()
    assert [line.split()[2:] for line in found[::2]] == [[name.upper(), "peer", "n2:"] for name in LEVELS[1:]]
    assert all(datetime.strptime(" ".join(line.split()[:2]), TIME) for line in found[::2])


def test_in_json_each_record_is_one_line_with_time_level_and_message(logged):
    began = datetime.now().replace(microsecond=0)
    for line, level in zip(logged("--log-format=json", "--log-level=debug"), LEVELS, strict=True):
        found = json.loads(line)
        assert began <= datetime.strptime(found.pop("time"), TIME) <= datetime.now()
        assert found == {"level": level, "message": f'peer n2:\n"{level}"'}


@pytest.mark.parametrize("flag", ["--log-level=loud", "--log-format=xml"])
def test_a_level_or_format_that_there_is_not_is_refused_in_a_sentence(flag):
    stderr = io.StringIO()
    assert launcher.main([flag], {}, stderr) == launcher.EXIT_REFUSED
    assert stderr.getvalue().startswith(f"kmesh-daemon: argument {flag.partition('=')[0]}: invalid choice: ")
    assert len(stderr.getvalue().splitlines()) == 1


@pytest.mark.timeout(30)
def test_a_daemon_logs_to_standard_error_and_ends_when_it_is_told():
    command = [sys.executable, "-c", "from kmesh.launcher.cli import entry; entry()", "--log-format=json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            first = daemon.stderr.readline()
            daemon.send_signal(signal.SIGTERM)
            assert (daemon.wait(20), *daemon.communicate()) == (0, "", "")
        finally:
            daemon.kill()
    assert json.loads(first)["message"].startswith("encryption is off: ")


TWICE = """
import contextlib, os, signal, threading
import kmesh_bpf
from kmesh.launcher import cli
from tests.unit.core import mesh


class Kernel(kmesh_bpf.FakeKernel):
    compiled, former_roots = False, ()

    def __init__(self, *_, **__):
        super().__init__(mesh.LINKS, lambda: 1.0)
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()


@contextlib.contextmanager
def claim(_):
    yield
    os.kill(os.getpid(), signal.SIGINT)


kmesh_bpf.LinuxKernel, cli.claim = Kernel, claim
cli.entry()
"""


@pytest.mark.timeout(60)
def test_whoever_tells_it_twice_is_not_shown_a_traceback(tmp_path):
    flags = [
        "--enable-ipsec=true",
        f"--manifests={tmp_path}",
        f"--state-dir={tmp_path}",
        "--health-address=127.0.0.1:0",
    ]
    environment = {**os.environ, "NODE_NAME": "n1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", TWICE, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "")
    assert "stopped; encryption stays in place" in done.stderr
    assert "Traceback" not in done.stderr

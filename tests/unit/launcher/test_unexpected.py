# SPDX-License-Identifier: Apache-2.0
"""What no error of ours is: a daemon that has no process, descriptor or memory left tells it, counts it and goes on."""

import errno
import logging
import os
import re
import select
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from kmesh import unexpected
from kmesh.cluster.secret import parse_keys
from kmesh.launcher.looks import Looks

from kmesh_bpf import KernelError
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.errors import LoadError, UnsupportedError
from kmesh_bpf.kernel import boot_guard, nat, nft, programs
from kmesh_bpf.kernel.rules import Rules
from tests.unit.cluster import kube
from tests.unit.launcher.standin import Node

KEY = "5a" * 36


def no_processes():
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def no_descriptors():
    raise OSError(errno.EMFILE, "Too many open files", "/proc/self/net")


def no_memory():
    raise MemoryError


def a_mistake():
    raise ValueError(f"what is {KEY}?")


def half_a_character():
    "\ud800".encode()


FAILURES = [
    (no_processes, r"Resource temporarily unavailable \(EAGAIN\), at kmesh[\w.]*:\d+"),
    (no_descriptors, r"/proc/self/net: Too many open files \(EMFILE\), at kmesh[\w.]*:\d+"),
    (no_memory, r"out of memory, at kmesh[\w.]*:\d+"),
    (a_mistake, r"ValueError at kmesh[\w.]*:\d+, a mistake of this program; please report it"),
    (half_a_character, r"UnicodeEncodeError at kmesh[\w.]*:\d+, a mistake of this program; please report it"),
]


class Loop:
    """A daemon's loop, until so many passes were tried; ``fails``: what each of its places does at first."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
        self.node, self.left = node, passes
        node.memory.subscribe = lambda: ()
        node.memory.changed = lambda: Keys(rest=True)
        node.memory.attach_missing = lambda *_: ((), ())
        for name, seconds in (("FIRST_RETRY", 0.01), ("TRANSITION_PERIOD", 0.05), ("LAST_RETRY", 0.05)):
            monkeypatch.setattr(f"kmesh.launcher.daemon.{name}", seconds)
        self.step = node.daemon.step
        monkeypatch.setattr(node.daemon, "step", self.count)

    def count(self) -> float:
        self.left -= 1
        if not self.left:
            self.node.daemon.stop()
        self.node.clock.now += 1
        self.node.announcer.write()
        return self.step()

    def run(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.node.daemon.run(theirs)


def once(failure, then=lambda *_: (), times=1):
    """Fail at the first call."""
    failures = [failure] * times

    def call(*arguments):
        return failures.pop()() if failures else then(*arguments)

    return call


@pytest.mark.parametrize(("failure", "said"), FAILURES)
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_a_pass_that_meets_with_it_is_told_in_a_line_counted_and_followed_by_the_next(
    node, monkeypatch, caplog, failure, said, level
):
    node.key(1)
    loop = Loop(node, monkeypatch, 4)
    monkeypatch.setattr(
        node.memory, "observe", once(failure, node.memory.observe, times=2)
    )  # before the first pass, and in it
    with caplog.at_level(level, "kmesh"):
        loop.run()
    (line,) = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    assert re.fullmatch(said + r"; trying again in 0\.0 s", line)
    assert ("Traceback (most recent call last):" in caplog.text) == (level == "DEBUG")
    assert KEY not in caplog.text
    assert node.ready() == (200, [])
    page = node.recorder.answer("/metrics").body
    assert 'kmesh_ipsec_passes_total{result="failed"} 1' in page


@pytest.mark.parametrize(("failure", "said"), FAILURES)
@pytest.mark.parametrize("place", ["changed", "attach_missing", "look"])
def test_so_is_what_happens_between_two_passes(node, monkeypatch, caplog, failure, said, place):
    node.key(1)
    loop = Loop(node, monkeypatch, 5)
    if place == "look":
        monkeypatch.setattr("kmesh.launcher.looks.LOOK", 0.01)
        monkeypatch.setattr("kmesh.launcher.daemon.PERIOD", 0.05)
        node.daemon.looks = Looks(node.daemon.passes, time.monotonic)
    then = {"changed": Keys(rest=True), "attach_missing": ((), ()), "look": [Keys(rest=True)]}
    node.memory.changed = lambda: Keys(rest=place == "attach_missing")
    setattr(node.memory, place, once(failure, lambda *_: then[place]))
    with caplog.at_level(logging.INFO, "kmesh"):
        loop.run()
    assert any(re.match(said, record.getMessage()) for record in caplog.records)
    assert node.ready() == (200, [])


def test_where_even_the_wait_fails_the_daemon_waits_all_the_same_and_can_be_stopped(node, monkeypatch):
    polled = []

    class Poll:
        def register(self, *_):
            pass

        def poll(self, milliseconds):
            polled.append(milliseconds)

    loop = Loop(node, monkeypatch, 8)
    node.memory.changed = no_descriptors
    node.daemon.memory.addresses = ()
    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(node.recorder, "failed", lambda _: no_memory())
    loop.run()
    assert polled == sorted(polled)
    assert len(polled) >= 6


def test_a_mistake_is_named_by_type_and_place_and_what_it_says_is_not_repeated():
    try:
        a_mistake()
    except ValueError as error:
        assert KEY not in unexpected.sentence(error) + unexpected.origin(error)
        assert unexpected.origin(error).endswith("\nValueError")


def test_the_causes_are_told_first():
    try:
        try:
            a_mistake()
        except ValueError as error:
            raise KeyError(KEY) from error
    except KeyError as error:
        told = unexpected.origin(error)
        assert (told.count("Traceback"), KEY in told) == (2, False)
        assert told.index("ValueError") < told.index("KeyError")


def test_an_error_of_ours_says_what_it_says():
    assert unexpected.sentence(KernelError("open", "it", errno.EPERM)) == "open it: Operation not permitted (EPERM)"


def test_what_stands_last_in_our_own_code_is_named():
    try:
        parse_keys(None)
    except AttributeError as error:
        assert " at kmesh.cluster.secret:" in unexpected.sentence(error)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EAGAIN, "it cannot be started \\(Resource temporarily unavailable\\)"),
        (errno.EMFILE, "it cannot be started \\(Too many open files\\)"),
        (errno.ENOMEM, "it cannot be started \\(Cannot allocate memory\\)"),
        (errno.ENOEXEC, "it cannot be started \\(Exec format error\\)"),
        (errno.EACCES, "it cannot be started \\(Permission denied\\)"),
        (errno.ENOENT, "install Debian's nftables"),
    ],
)
def test_an_nft_that_cannot_be_started_is_an_error_of_ours_and_no_reason_to_give_up_a_pass(monkeypatch, number, words):
    def run(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", run)
    with pytest.raises(UnsupportedError, match=f"nft is not available: {words}"):
        nft.run("list", "it", [])
    assert not nat.installed()
    if number == errno.ENOENT:
        boot_guard.remove()  # what is not there cannot have made it
        return
    with pytest.raises(UnsupportedError):  # it may still be there
        boot_guard.remove()


def test_an_nft_that_may_not_be_run_is_one_really(tmp_path, monkeypatch):
    (tmp_path / "nft").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"nft is not available: it cannot be started \(Permission denied\)"):
        nft.run("list", "it", [])


def test_an_nft_that_hangs_is_ended_though_a_child_of_it_stays(tmp_path, monkeypatch):
    (tmp_path / "nft").write_text("#!/bin/sh\n/bin/sleep 5 &\nexec /bin/sleep 5\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nft, "TIMEOUT", 0.2)
    with pytest.raises(KernelError, match=r"list it: .*ETIMEDOUT.*: nft took more than 0.2 s and was ended"):
        nft.run("list", "it", [])


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """Give a function that tells how many nft were started, each of which hangs."""
    (tmp_path / "nft").write_text(f"#!/bin/sh\necho >> {tmp_path}/starts\nexec /bin/sleep 30\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nft, "TIMEOUT", 0.5)
    return lambda: len((tmp_path / "starts").read_text().splitlines())


def test_an_nft_that_hangs_costs_one_pass_its_time_and_then_none_for_a_minute(hanging):
    now = [100.0]
    tables = nat.Tables(clock=lambda: now[0])
    assert not tables.installed()
    for _ in range(5):
        now[0] += 10
        assert not tables.installed()
        with pytest.raises(
            KernelError, match=r"install nft tables ip and ip6 .*: nft took more than 0.5 s and was ended"
        ):
            tables.install()
    assert hanging() == 1
    now[0] += 11
    with pytest.raises(KernelError, match=r"nft took more than 0.5 s and was ended"):
        tables.install()
    assert not tables.installed()
    assert hanging() == 2


def test_rules_of_others_are_not_waited_for(hanging):
    now = [100.0]
    rules = Rules(lambda: now[0])
    for _ in range(29):
        assert rules.suspects() == ()
        now[0] += 10
    assert hanging() == 1
    now[0] += 20
    assert rules.suspects() == ()
    assert hanging() == 2


def test_a_process_that_the_kernel_does_not_end_is_left_behind(monkeypatch):
    class Stuck:
        stdin = stdout = stderr = None
        killed = 0

        def communicate(self, script, timeout):
            raise subprocess.TimeoutExpired("nft", timeout)

        def kill(self):
            Stuck.killed += 1

        def wait(self, timeout=None):
            assert timeout is not None, "it would be waited for for ever"
            raise subprocess.TimeoutExpired("nft", timeout)

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Stuck())
    with pytest.raises(KernelError, match="ETIMEDOUT"):
        nft.run("list", "it", [])
    assert Stuck.killed == 1


def test_what_nft_prints_in_any_encoding_is_read(tmp_path, monkeypatch):
    (tmp_path / "nft").write_bytes(b"#!/bin/sh\necho '\xff'\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nft.run("list", "it", []) == "\ufffd\n"


def test_without_a_folder_for_temporary_files_nothing_is_compiled_and_the_way_out_is_named(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(LoadError, match=r"no folder for temporary files \(No usable .*: .*TMPDIR"):
        programs._compile(Path(__file__).parents[3] / "bpf", [], tmp_path)


def test_a_boot_id_that_is_too_long_harms_nothing(node):
    long = kube.node(1)
    long["status"]["nodeInfo"]["bootID"] = "b" * 1000
    node.put(long)
    info = kube.node_info(1)
    info["spec"]["bootID"] = "b" * 1000
    node.put(info)
    node.key(1)
    node.steps()
    assert node.ready() == (200, [])
    assert len(node.daemon.source.read().node_infos[-1].boot_id) <= 1000

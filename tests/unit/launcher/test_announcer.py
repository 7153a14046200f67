# SPDX-License-Identifier: Apache-2.0
"""What a node announces is written by a thread of its own: a server that hangs holds up nothing, and in its order."""

import logging
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from kmesh.errors import ClusterError
from kmesh.launcher import announcer
from kmesh.launcher.announcer import Announced, Announcer, AnnouncerThread, Draft

from kmesh_bpf import KernelError
from kmesh_bpf.core import operations as ops
from tests.unit.cluster import kube
from tests.unit.launcher.standin import Clock, Node


class Server:
    """Takes what is published, when it is let; ``fails``: what it answers before."""

    def __init__(self, *fails: Exception) -> None:
        self.done: list[tuple] = []
        self.fails = list(fails)
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()

    def withdraw(self, name: str, *, status: bool = True) -> None:
        self.done.append(("withdraw", name, status))

    def publish(self, node_info) -> None:
        self.asked.set()
        assert self.open.wait(10)
        if self.fails:
            raise self.fails.pop(0)
        self.done.append(("publish", node_info["spec"]["spi"]))


def draft(spi: int, *, recreate: bool = False) -> Draft:
    return Draft({"metadata": {"name": "n1"}, "spec": {"spi": spi, "bootID": f"boot-{spi}"}}, recreate)


def soon(true: Callable[[], object]) -> bool:
    until = time.monotonic() + 5
    while not true() and time.monotonic() < until:
        time.sleep(0.005)
    return bool(true())


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def writing(server: Server) -> Iterator[AnnouncerThread]:
    with closing(AnnouncerThread(server, Clock())) as made:
        yield made


def test_it_counts_as_announced_when_the_server_has_taken_it_and_as_of_then():
    clock, server = Clock(), Server()
    made = Announcer(server, clock)
    made.put(draft(1))
    assert (made.take(), made.news) == (None, False)
    clock.now = 1234.0
    assert made.write()
    assert made.news
    assert made.take() == Announced(draft(1), 1234.0)
    assert (made.take(), made.news) == (None, False)
    assert made.write()
    assert server.done == [("publish", 1)], "once"


def test_what_is_wanted_now_takes_the_place_of_what_waits_and_what_stands_there_is_not_written():
    server = Server()
    made = Announcer(server, Clock())
    made.put(draft(1))
    made.put(draft(2))
    made.write()
    made.put(draft(3))
    made.put(None)
    made.write()
    assert server.done == [("publish", 2)]


def test_one_that_must_be_recreated_is_deleted_first_and_its_report_stays():
    server = Server(ClusterError("no"))
    made = Announcer(server, Clock())
    made.put(draft(2, recreate=True))
    assert not made.write()
    assert made.write()
    assert server.done == [("withdraw", "n1", False), ("withdraw", "n1", False), ("publish", 2)]
    assert made.take() == Announced(draft(2, recreate=True), 1000.0)


def test_what_hinders_it_is_told_once_and_gone_with_the_first_success(caplog):
    server = Server(ClusterError("no"), ClusterError("no"), ClusterError("never"))
    made = Announcer(server, Clock())
    made.put(draft(1))
    told = []
    with caplog.at_level(logging.INFO, "kmesh"):
        for _ in range(4):
            made.write()
            told.append((made.hindrance, made.news))
            made.take()
    assert told == [("no", True), ("no", False), ("never", True), ("", True)]
    assert [one.getMessage() for one in caplog.records] == [
        "no; trying again",
        "never; trying again",
        "announced: SPI 1, incarnation boot-1",
    ]


def test_what_hindered_a_draft_that_is_not_wanted_any_more_is_forgotten():
    made = Announcer(Server(ClusterError("no")), Clock())
    made.put(draft(1))
    made.write()
    made.put(None)
    assert made.hindrance == ""


def test_a_fault_of_this_program_ends_no_thread(caplog):
    server = Server(ValueError("what is 5a5a?"))
    made = Announcer(server, Clock())
    made.put(draft(1))
    with caplog.at_level(logging.INFO, "kmesh"):
        assert not made.write()
    assert "a mistake of this program" in made.hindrance
    assert "5a5a" not in caplog.text
    assert made.write()


def test_a_server_that_hangs_holds_up_nobody_and_the_newest_is_written_last(server, writing):
    server.open.clear()
    writing.put(draft(1))
    assert server.asked.wait(5)
    writing.put(draft(2))
    writing.put(draft(3))
    assert writing.take() is None
    server.open.set()
    assert soon(lambda: ("publish", 3) in server.done)
    assert server.done == [("publish", 1), ("publish", 3)]


def test_its_descriptor_is_readable_when_there_is_something_to_take(server, writing):
    def readable() -> bool:
        return bool(select.select([writing.wake], [], [], 0)[0])

    assert not readable()
    writing.put(draft(1))
    assert soon(readable)
    assert writing.take() == Announced(draft(1), 1000.0)
    assert not readable()


def test_it_tries_again_and_another_draft_at_once(server, writing, monkeypatch):
    monkeypatch.setattr(announcer, "FIRST_RETRY", 0.01)
    server.fails = [ClusterError("no"), ClusterError("no")]
    writing.put(draft(1))
    assert soon(lambda: server.done == [("publish", 1)])
    monkeypatch.setattr(announcer, "FIRST_RETRY", 60.0)
    server.fails = [ClusterError("no")]
    writing.put(draft(2))
    assert soon(lambda: writing.hindrance)
    writing.put(draft(3))
    assert soon(lambda: server.done[-1] == ("publish", 3))


def test_the_end_tries_what_waits_once_more_and_waits_for_no_server_that_hangs(server, monkeypatch):
    monkeypatch.setattr(announcer, "LAST_SECONDS", 0.1)
    made = AnnouncerThread(server, Clock())
    made.put(draft(1))
    made.close()
    assert server.done == [("publish", 1)]
    server.open.clear()
    made = AnnouncerThread(server, Clock())
    made.put(draft(2))
    made.close()
    assert server.done == [("publish", 1)]
    server.open.set()


# In a daemon.


def test_while_the_server_hangs_pods_that_come_are_encrypted_and_no_key_counts_as_announced(node):
    node.key(1)
    node.announcer.write = lambda: False
    node.steps()
    assert node.daemon.memory.announced == 0
    assert node.ready() == (503, ["the key with SPI 1 is not announced yet"])
    node.put(kube.pod("late", 2, 77))
    node.steps(1)
    assert any(str(address) == "10.244.2.77" for address in node.memory.pods)
    del node.announcer.write
    node.steps(2)
    assert (node.daemon.memory.announced, node.ready()) == (1, (200, []))


def test_a_new_key_counts_from_when_the_server_took_it(node):
    node.key(1)
    node.steps()
    node.key(2)
    node.announcer.write = lambda: False
    node.steps(1)
    took = node.clock.now
    node.steps(20)
    assert node.daemon.memory.announced == 1
    assert {sa.spi for sa in node.memory.sas.values() if sa.mark} == {1, 2}
    del node.announcer.write
    node.steps(1)
    at = node.clock.now
    node.steps(1)
    assert (node.daemon.memory.announced, node.daemon.memory.announced_at) == (2, at)
    assert at - took == 21


def test_what_was_overtaken_is_not_taken_for_what_is_wanted_now(node):
    """The server takes what was announced of an incarnation while the node becomes another one."""
    node.key(1)
    node.steps()
    slow = node.announcer
    write, slow.write = slow.write, lambda: False
    node.memory.sas.clear()
    node.steps(1)
    first = node.memory.remembered
    old = slow._draft
    node.memory.sas.clear()
    node.steps(1)
    second = node.memory.remembered
    assert first != second
    with slow._condition:
        newest, slow._draft = slow._draft, old
    write()
    slow.put(newest)
    node.daemon.step()
    assert node.daemon.passes.memory.unseen == second, "what stands in the cluster is of the one before"
    slow.write = write
    node.steps(2)
    assert (node.memory.remembered, node.daemon.passes.memory.unseen) == (second, "")


def test_one_that_was_taken_though_the_answer_was_lost_counts_when_it_is_seen(node):
    node.key(1)
    node.steps()
    node.memory.sas.clear()
    stored = node.source.publish

    def lost(info):
        stored(info)
        raise ClusterError("the answer was lost")

    node.source.publish = lost
    node.steps(2)
    assert node.daemon.passes.memory.unseen == ""
    assert node.ready() == (200, [])


def test_no_key_is_announced_ahead_of_its_inbound_sas_however_the_server_is(node):
    refuse = lambda op: KernelError("add", "SA", 12) if isinstance(op, ops.AddSa) and op.sa.mark else None  # noqa: E731
    node.key(1)
    node.steps()
    node.key(2)
    published = []
    stored = node.source.publish

    def publish(info):
        published.append((info["spec"]["spi"], {sa.spi for sa in node.memory.sas.values() if sa.mark}))
        stored(info)

    node.source.publish = publish
    node.memory.refuse = refuse
    with suppress(ClusterError):
        node.steps(5)
    assert published == []
    node.memory.refuse = lambda op: None
    node.steps(5)
    assert published == [(2, {1, 2})]


def test_the_loop_wakes_when_the_server_has_taken_it(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.key(1)
    with closing(AnnouncerThread(node.source)) as writing:
        node.daemon.announcer = node.announcer = writing
        node.memory.subscribe = lambda: ()
        waits = []
        step, passed = node.daemon.step, []

        def counted() -> float:
            passed.append(step())
            if node.daemon.memory.announced:
                node.daemon.stop()
            return 30.0

        monkeypatch.setattr(node.daemon, "step", counted)
        ours, theirs = __import__("socket").socketpair()
        with ours, theirs:
            began = time.monotonic()
            node.daemon.run(theirs)
            waits.append(time.monotonic() - began)
    assert waits[0] < 20
    assert len(passed) <= 4

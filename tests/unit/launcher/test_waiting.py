# SPDX-License-Identifier: Apache-2.0
"""How long a daemon waits between two passes, and what ends the wait."""

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
from kmesh.launcher.daemon import LONGEST_SETTLE, SETTLE
from kmesh.launcher.looks import AUDIT, DEAREST, LOOK, OVERDUE, SLOWLY, Looks

from kmesh_bpf import KernelError
from kmesh_bpf.core.mirror import Keys
from tests.unit.cluster import kube
from tests.unit.launcher.standin import Node


@pytest.mark.parametrize(
    ("took", "ago", "settled"),
    [
        (0.0, 0.0, [SETTLE]),
        (0.0, SETTLE, []),
        (0.5, 0.0, [0.5]),
        (0.5, 0.25, [0.25]),
        (0.5, 0.5, []),
        (0.5, 9.0, []),
        (60.0, 0.0, [LONGEST_SETTLE]),
        (60.0, LONGEST_SETTLE, []),
    ],
)
def test_an_event_after_quiet_is_acted_on_at_once_and_one_soon_after_a_pass_is_a_burst_s(
    tmp_path, monkeypatch, took, ago, settled
):
    """Between two passes is as long as the first took, within bounds."""
    node, slept = Node(tmp_path), []
    node.steps(1)
    node.daemon.took, node.daemon.ended = took, 100.0 - ago
    monkeypatch.setattr("kmesh.launcher.daemon.time.monotonic", lambda: 100.0)
    node.put(kube.pod("late", 2, 77))
    node.memory.changed = Keys
    monkeypatch.setattr("kmesh.launcher.daemon.time.sleep", slept.append)
    node.daemon._sleep(SimpleNamespace(select=lambda seconds: []), 30.0)
    assert slept == pytest.approx(settled)


class Waiting:
    """The daemon's wait, over a clock that goes on by what is waited for."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, *, device_after: float = 999.0) -> None:
        self.node, self.now, self.looked = node, 100.0, []
        self.device_at, self.attached_at, self.found_after = self.now + device_after, None, 999
        monkeypatch.setattr("kmesh.launcher.daemon.time.monotonic", lambda: self.now)
        monkeypatch.setattr("kmesh.launcher.daemon.time.sleep", self.rest)
        self.slept: list[float] = []
        monkeypatch.setattr(node.memory, "changed", self.changed)
        monkeypatch.setattr(node.memory, "look", self.look)
        monkeypatch.setattr(node.memory, "attach_missing", self.attach)
        node.source.changed = lambda: False
        node.daemon.looks = Looks(node.daemon.passes, lambda: self.now)

    def select(self, seconds: float) -> None:
        self.now += seconds

    def rest(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def changed(self) -> Keys:
        told, self.device_at = self.now >= self.device_at, self.device_at if self.now < self.device_at else 999.0
        return Keys(rest=told)

    def look(self) -> Iterator[Keys]:
        self.looked.append(self.now)
        yield Keys()
        yield Keys(rest=len(self.looked) > self.found_after)

    def attach(self, addresses, uplinks):
        self.attached_at = self.now
        return (), ()

    def sleep(self, seconds: float) -> float:
        began = self.now
        self.node.daemon._sleep(SimpleNamespace(select=self.select), seconds)
        return self.now - began


def test_the_first_event_of_all_is_acted_on_at_once(tmp_path, monkeypatch):
    node = Node(tmp_path)
    waiting = Waiting(node, monkeypatch)
    node.source.changed = lambda: True
    waiting.sleep(30.0)
    assert waiting.now - 100.0 == pytest.approx(0.0, abs=LOOK + 0.01), "a select, and nothing else"
    assert waiting.slept == []


def test_what_an_event_leaves_to_tell_is_told_when_no_other_one_is_waiting(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    node.clock.now += 5
    node.daemon.step()
    node.daemon.ended = 0.0
    waiting, told = Waiting(node, monkeypatch), []
    tell = node.recorder.tell
    monkeypatch.setattr(node.recorder, "tell", lambda: told.append(waiting.now) or tell())
    node.source.changed = lambda: waiting.now < 100.5
    waiting.sleep(30.0)
    assert told == [], "an event was waiting"
    waiting.now = 101.0
    waiting.sleep(30.0)
    assert told == [101.0], "at once, and once"


def test_where_events_never_end_it_is_told_while_a_burst_settles(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting, told = Waiting(node, monkeypatch), []
    tell = node.recorder.tell
    monkeypatch.setattr(node.recorder, "tell", lambda: told.append(waiting.now) or tell())
    node.source.changed = lambda: True
    for _ in range(200):
        node.daemon.ended = waiting.now
        node.clock.now = waiting.now
        node.daemon.recorder.failed("x")
        waiting.sleep(30.0)
    assert len(told) == pytest.approx(waiting.now - 100.0, abs=1.1)
    assert waiting.now > 103.0


def test_while_nothing_happens_the_daemon_looks_twice_a_second_and_makes_no_pass(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting = Waiting(node, monkeypatch)
    assert waiting.sleep(30.0) == pytest.approx(30.0)
    gaps = [after - before for before, after in pairwise(waiting.looked)]
    assert len(waiting.looked) == pytest.approx(30.0 / LOOK, abs=1)
    assert max(gaps) < LOOK + 0.3


def test_a_look_that_finds_something_ends_the_wait_at_once(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting = Waiting(node, monkeypatch)
    waiting.found_after = 2
    assert waiting.sleep(30.0) == pytest.approx(3 * LOOK, abs=0.7)


def test_after_a_pass_that_was_given_up_the_daemon_looks_and_keeps_its_distance(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting = Waiting(node, monkeypatch)
    waiting.found_after = 0
    began = waiting.now
    node.daemon._sleep(SimpleNamespace(select=waiting.select), 10.0, heed=False)
    assert waiting.now - began == pytest.approx(10.0)
    assert len(waiting.looked) >= 8


def test_a_device_that_comes_has_its_programs_before_the_daemon_waits_for_more_and_makes_a_pass(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    node.daemon.took, node.daemon.ended = 2.0, 100.0
    waiting = Waiting(node, monkeypatch, device_after=0.0)
    waiting.sleep(30.0)
    assert waiting.attached_at - 100.0 == pytest.approx(node.source.poll_interval)
    assert waiting.now > waiting.attached_at


class Passes:
    """Steps of looks and audits that take some seconds each, and find something at their numbers in ``finding``."""

    def __init__(self) -> None:
        self.now, self.seconds, self.steps = 0.0, 0.002, 5
        self.finding, self.failing, self.log = (), (), []
        self.looks = Looks(self, lambda: self.now)

    def look(self) -> Iterator[bool]:
        return self.round("look")

    def audit(self) -> Iterator[bool]:
        return self.round("audit")

    def round(self, what: str) -> Iterator[bool]:
        for number in range(self.steps):
            self.now += self.seconds
            self.log.append(what)
            if what in self.failing:
                raise KernelError("dump", "the map", 12)
            yield (what, number) in self.finding

    def until(self, end: float) -> list[float]:
        """Do what is due until then, as a daemon to which nothing happens; give when something was found."""
        found = []
        while self.now < end:
            if self.looks.step():
                found.append(self.now)
            self.now += max(self.looks.left(), 1e-6)
        return found


def test_a_look_that_fails_leaves_it_to_a_pass_to_tell_and_a_dear_one_comes_rarely():
    passes = Passes()
    passes.seconds, passes.failing = 0.1, ("look",)
    assert passes.looks.left() == LOOK
    passes.now += LOOK
    assert passes.looks.left() == 0
    assert passes.looks.step()
    assert passes.looks.left() == pytest.approx(DEAREST * 0.1)


def test_between_two_steps_nothing_is_waited_for_and_what_is_found_is_told_at_once():
    passes = Passes()
    passes.finding = (("look", 1),)
    passes.now += LOOK
    assert [passes.looks.step() for _ in range(3)] == [False, True, False]
    assert passes.looks.left() == 0
    assert passes.now == pytest.approx(LOOK + 3 * passes.seconds)


def test_looks_and_audits_take_their_share_of_a_processor_and_no_more():
    passes = Passes()
    passes.steps = 100
    passes.until(2000.0)
    spent = {what: passes.log.count(what) * passes.seconds for what in ("look", "audit")}
    assert 0.8 / DEAREST < spent["look"] / 2000 < 1.02 / DEAREST
    assert 0.5 / SLOWLY < spent["audit"] / 2000 < 1.02 / SLOWLY


def test_a_small_cluster_is_audited_twice_a_minute_whole():
    passes = Passes()
    passes.until(300.0)
    assert passes.log.count("audit") / passes.steps == pytest.approx(300 / (AUDIT + 4 * SLOWLY * passes.seconds), abs=1)


def test_where_events_never_cease_a_step_is_done_once_a_second_all_the_same():
    passes = Passes()
    for _ in range(400):
        passes.now += 0.01
        passes.looks.catch_up()
    assert passes.log.count("look") >= 1
    passes.now += OVERDUE
    passes.looks.catch_up()
    before = len(passes.log)
    passes.looks.catch_up()
    assert len(passes.log) == before, "one step, and then the events"

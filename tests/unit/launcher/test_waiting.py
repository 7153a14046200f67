"""How long a daemon waits between two passes, and what ends the wait."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from kmesh.launcher.daemon import LONGEST_SETTLE, SETTLE
from kmesh.launcher.looks import DEAREST, LOOK, Looks

from kmesh_bpf import KernelError
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
    node.memory.changed = lambda: False
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

    def select(self, seconds: float) -> None:
        self.now += seconds

    def rest(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def changed(self) -> bool:
        told, self.device_at = self.now >= self.device_at, self.device_at if self.now < self.device_at else 999.0
        return told

    def look(self) -> bool:
        self.looked.append(self.now)
        return len(self.looked) > self.found_after

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


def test_a_look_that_fails_leaves_it_to_a_pass_to_tell_and_a_dear_one_comes_rarely():
    now = [0.0]

    def look() -> bool:
        now[0] += 0.1
        raise KernelError("dump", "the map", 12)

    looks = Looks(SimpleNamespace(look=look), lambda: now[0])
    assert looks.left() == LOOK
    now[0] += LOOK
    assert looks.left() == 0
    assert looks.finds_anything()
    assert looks.left() == pytest.approx(DEAREST * 0.1)

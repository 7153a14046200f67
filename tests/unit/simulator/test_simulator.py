# SPDX-License-Identifier: Apache-2.0
"""The simulator itself: a seed decides everything, the judge fires, and what fails becomes a short story."""

from dataclasses import replace

import pytest
from kmesh.kmeshctl import health
from kmesh.kmeshctl.agreement import PATIENCE as AGREEMENT_PATIENCE

from tests.simulator import mistakes
from tests.simulator.events import EVENTS
from tests.simulator.history import History, Step, live, make
from tests.simulator.judge import ViolationError
from tests.simulator.packets import Fate, Frame
from tests.simulator.shrink import command, shrink
from tests.simulator.story import Story
from tests.simulator.telling import Telling
from tests.simulator.world import World

CALM = History(1, 3, 1, (4, 6), ())


@pytest.fixture
def world():
    world = World("a test", 3, 1, (4,), Story())
    world.quiet = True
    world.advance(3.0, 3)
    world.quiet = False
    for source, target in world.every_pair():
        assert world.send(source, target)
    yield world
    world.close()


def test_a_daemon_that_comes_back_with_another_window_and_knows_no_key_of_its_sas_is_understood():
    """Seed 2053, shrunk: peers had made SAs for the next keys by the window that it had announced before."""
    steps = (
        Step(5, "server_is_away", 0.3),
        Step(10, "key_is_replaced", 0.3),
        Step(11, "key_is_replaced", 0.3),
        Step(16, "replay_window_is_changed", 35.0),
        Step(20, "key_is_replaced", 0.3),
        Step(21, "key_is_replaced_twice", 35.0),
    )
    outcome = live(History(2053, 4, 2, (6,), steps))
    assert outcome.violation is None, "\n".join(outcome.story.lines)
    assert sum(outcome.events.values()) == len(steps)


def trip_and_frame(world):
    source, target = next(world.every_pair())
    world.send(source, target)
    return world.recorded[-1]


def test_a_seed_decides_everything():
    one, other = live(make(3)), live(make(3))
    assert one.story.lines == other.story.lines
    assert (one.packets, one.arrivals, one.passes) == (other.packets, other.arrivals, other.passes)


def test_where_nothing_happens_all_packets_arrive_and_nothing_is_lost():
    outcome = live(CALM)
    assert outcome.violation is None
    assert outcome.reasons.keys() <= {"it has just booted", "a new incarnation"}
    assert outcome.arrivals > 20


def test_an_event_draws_the_same_whatever_was_left_out_before_it():
    steps = tuple(Step(number, "key_is_replaced", 1.2) for number in (4, 9))
    assert live(replace(CALM, steps=steps)).events == {"key_is_replaced": 2}


def test_every_kind_of_event_that_can_be_drawn_is_drawn_within_a_few_hundred_seeds():
    drawn = {step.name for seed in range(300) for step in make(seed).steps}
    assert drawn == {event.name for event in EVENTS.values() if event.weight}


def test_what_leaves_in_clear_between_managed_pods_is_a_violation(world):
    recorded = trip_and_frame(world)
    inner = recorded.frame.inner
    with pytest.raises(ViolationError) as caught:
        world.judge.on_wire(recorded.trip, recorded.sender, Frame(inner.src, inner.dst, inner))
    assert caught.value.check == 1


def test_what_is_accepted_in_clear_is_a_violation(world):
    recorded = trip_and_frame(world)
    inner, target = recorded.frame.inner, recorded.trip.target.machine
    with pytest.raises(ViolationError) as caught:
        world.judge.arrived(recorded.trip, target, Frame(inner.src, inner.dst, inner), recorded.sender)
    assert caught.value.check == 2


def test_what_is_accepted_twice_or_in_anothers_name_is_a_violation(world):
    recorded = trip_and_frame(world)
    target = recorded.trip.target.machine
    with pytest.raises(ViolationError, match="a second time"):
        world.judge.arrived(recorded.trip, target, recorded.frame, recorded.sender)
    third = next(one for one in world.machines if one not in (target, recorded.sender))
    new = replace(recorded.trip, ident=-1)
    with pytest.raises(ViolationError, match="in another node's name"):
        world.judge.arrived(new, target, recorded.frame, third)


def test_a_number_used_twice_is_a_violation(world):
    recorded = trip_and_frame(world)
    with pytest.raises(ViolationError) as caught:
        world.judge.on_wire(recorded.trip, recorded.sender, recorded.frame)
    assert caught.value.check == 3


def test_a_loss_that_nothing_explains_is_a_violation_and_one_that_is_excused_is_not(world):
    trip = trip_and_frame(world).trip
    with pytest.raises(ViolationError) as caught:
        world.judge.lost(trip, "just so")
    assert caught.value.check == 4
    world.judge.blame(trip.source.machine, "a fault")
    world.judge.lost(trip, "just so")
    assert world.judge.reasons["a fault"] == 1


def test_a_silent_loss_is_told_of_or_a_violation(world):
    source, target = next(world.every_pair())
    target.machine.kernel.receive = lambda _: Fate(why="nobody knows")
    world.judge.blame(source.machine, "a fault that nobody sees")
    world.judge._settle = lambda _: None
    world.send(source, target)
    world.quiet = True
    world.advance(140.0, 6)
    with pytest.raises(ViolationError) as caught:
        Telling(world).check()
    assert caught.value.check == 5


def test_what_fails_is_shrunk_to_what_it_takes():
    mistake = next(one for one in mistakes.MISTAKES if one.name == "SPI ahead of the peer")
    found = mistakes.search(mistake, 20)
    assert found is not None
    with mistake.made():
        failed = live(make(found.seed))
        short = shrink(failed, tries=25)
    assert short.violation is not None
    assert short.violation.check == failed.violation.check
    assert len(short.history.steps) < len(failed.history.steps)
    assert f"--seed {found.seed} --only" in command(short.history)


def test_a_flush_beside_a_daemon_that_was_killed_is_told_within_seconds_by_status_and_explain(world):
    """The flushed node becomes another one; the other's kernel goes on with what it held, and nobody is there to say so."""
    source, target = next(world.every_pair())
    dead, telling = target.machine, Telling(world)
    world.quiet = True
    world.advance(40.0, 2)
    assert health.examine(telling.cluster().objects, telling.leases(), world.now).findings == ()
    dead.stop()
    world.advance(20.0, 2)
    assert world.send(source, target), "a killed daemon costs nothing by itself"
    world.judge.blame(source.machine, "its SAs were flushed")
    source.machine.kernel.flush_sas()
    world.advance(AGREEMENT_PATIENCE + 4.0, 14)
    assert not world.send(source, target)
    assert not world.send(target, source)
    told = list(map(str, health.examine(telling.cluster().objects, telling.leases(), world.now).findings))
    assert [one.partition(": ")[0] for one in told] == [dead.name]
    assert f"no keys for the present incarnation of {source.machine.name} by its last report" in told[0]
    answer = telling.explain(source, target)
    assert {way.trace.fate.value for way in answer.ways} == {"dropped"}
    assert {way.trace.reason for way in answer.ways} == {told[0]}
    dead.start()
    world.advance(30.0, 6)
    assert world.send(source, target)
    assert health.examine(telling.cluster().objects, telling.leases(), world.now).findings == ()
    assert telling.explain(source, target).encrypted

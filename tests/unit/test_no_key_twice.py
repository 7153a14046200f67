"""No sequence starts anew under a key that was in use, and no recorded packet is accepted later, whatever happens."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.wire import EVENTS, World

SECONDS = st.sampled_from((0.3, 3.0, 45.0, 700.0))


def live(history) -> World:
    world = World()
    world.passes(3.0)
    for name, seconds in history:
        EVENTS[name](world)
        world.passes(seconds)
    world.passes(3.0)
    return world


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), SECONDS), max_size=10))
def test_in_any_history_no_number_is_used_twice_and_no_packet_is_accepted_twice(history):
    live(history)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_each_event_is_survived_by_the_traffic_of_two_nodes_of_ours(name):
    world = live([(name, 45.0), (name, 45.0), ("nothing", 700.0), ("other_comes", 700.0), ("nothing", 45.0)])
    before = sum(world.accepted.values())
    world.passes(3.0, number=1)
    assert sum(world.accepted.values()) >= before + 4, "both ways, before and after"

# SPDX-License-Identifier: Apache-2.0
"""No sequence starts anew under a key that was in use, and no recorded packet is accepted later, whatever happens."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kmesh.cluster.secret import Keyring

from kmesh_bpf.core.incarnation import RENEWAL_SECONDS
from tests.unit.amount import examples
from tests.unit.wire import World, material
from tests.unit.wire_events import EVENTS

STOP_SENDING, STOP_TAKING = "outbound_states_are_deleted1", "oldest_inbound_states_are_deleted2"
SECONDS = st.sampled_from((0.3, 3.0, 45.0, 700.0))
OF_THE_OTHER = [name for name in sorted(EVENTS) if name.startswith("other_")]


def live(history) -> World:
    world = World()
    world.passes(3.0)
    for name, seconds in history:
        EVENTS[name](world)
        world.passes(seconds)
    world.passes(3.0)
    return world


@examples(150)
@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), SECONDS), max_size=10))
@example([("other_goes", 0.3), ("killed_after_more_operations1", 0.3), (STOP_SENDING, 0.3), (STOP_TAKING, 0.3)])
@example(
    [
        ("key_is_replaced_by_the_first", 0.3),
        ("killed_after_one_operation1", 0.3),
        ("address_changes2", 0.3),
        ("older_keys_are_forgotten", 0.3),
    ]
)
def test_in_any_history_no_number_is_used_twice_and_no_packet_is_accepted_twice(history):
    live(history)


def test_a_key_that_is_stored_again_without_its_history_is_used_under_other_incarnations_only():
    world = World()
    world.passes(3.0)
    before = {host.kernel.remembered for host in world.hosts}
    # The Secret was deleted, and the daemons remember nothing; what tells of the key are the SAs.
    world.keyring = Keyring(2, {2: material(1)})
    world.change_other(spi=2)
    for host in world.hosts:
        host.start()
    world.passes(3.0)
    world.passes(45.0)
    assert before.isdisjoint(host.kernel.remembered for host in world.hosts)
    assert {sa.spi for host in world.hosts for sa in host.kernel.sas.values()} == {2}


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_each_event_is_survived_by_the_traffic_of_two_nodes_of_ours(name):
    world = live([(name, 45.0), (name, 45.0), ("nothing", 700.0), ("other_comes", 700.0), ("nothing", 45.0)])
    before = sum(world.accepted.values())
    world.passes(3.0, number=1)
    assert sum(world.accepted.values()) >= before + 4, "both ways, before and after"


@examples(60)
@given(st.lists(st.tuples(st.sampled_from(OF_THE_OTHER), SECONDS), max_size=14))
def test_what_one_peer_does_makes_others_change_their_keys_once_in_ten_minutes_at_most(history):
    world = World()
    world.passes(3.0)
    began, seen = world.now, {info["spec"]["bootID"] for info in world.infos.values()}
    for name, seconds in history:
        EVENTS[name](world)
        world.passes(seconds)
        seen |= {world.infos[host.name]["spec"]["bootID"] for host in world.hosts}
    others = {one for one in seen if not one.startswith("other-")}
    assert len(others) <= 2 * (2 + (world.now - began) / RENEWAL_SECONDS)

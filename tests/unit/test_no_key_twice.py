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


CONTACTS = {
    "a peer is met": ("other_goes", "other_boots", "other_comes"),
    "a peer boots": ("other_boots",),
    "a key is new": ("key_is_replaced",),
    "a peer is met while a key is new": ("other_goes", "other_boots", "key_is_replaced", "other_comes"),
    "a peer has one address more": ("other_boots", "other_has_one_address_more"),
    "its announcement is gone": ("announcement_is_deleted1",),
    "all is made anew": ("pins_and_states_are_lost1",),
    "a peer is met that is behind": (
        "other_goes",
        "other_boots",
        "key_is_replaced",
        "older_keys_are_forgotten",
        "other_rolls_its_spi_back",
        "other_comes",
    ),
}
NEEDED = ("its announcement is gone", "all is made anew")
"""What makes a node another one anyway."""


def contact(what, after, victim) -> tuple[bool, bool]:
    """Have a daemon killed before an operation, and an SA removed then; tell whether it was, and there was that SA."""
    world = World()
    world.passes(3.0)
    host = world.hosts[0]
    for name in CONTACTS[what]:
        EVENTS[name](world)
    before = [one.kernel.remembered for one in world.hosts]
    killed = world.kill(host, after)
    held = sorted(host.kernel.sas, key=repr)
    if victim is not None and victim < len(held):
        host.kernel.delete_sa(held[victim])
    world.passes(3.0, number=2)
    if victim is None and what not in NEEDED and not host.kernel.halfway:
        assert [one.kernel.remembered for one in world.hosts] == before, "nobody removed anything"
    return killed, victim is None or victim < len(held)


@pytest.mark.parametrize("what", CONTACTS)
def test_whenever_a_daemon_is_killed_and_whichever_sa_goes_then_no_packet_is_accepted_twice(what):
    killed, after = True, 0
    while killed:
        killed, _ = contact(what, after, None)
        victim = 0
        while contact(what, after, victim)[1]:
            victim += 1
        after += 1
    assert after > 4, "there were operations to be killed between"


def test_what_was_announced_though_no_answer_came_counts_as_announced():
    world = World()
    world.passes(3.0)
    world.silent = True
    EVENTS["key_is_replaced"](world)
    world.change_other(spi=1)
    world.holds = 2
    world.passes(1.0, number=1)
    host = world.hosts[0]
    assert (world.infos[host.name]["spec"]["spi"], host.daemon.memory.announced) == (2, 1)
    EVENTS["newest_inbound_states_are_deleted1"](world)
    world.passes(1.0, number=1)
    assert {sa.spi for sa in host.kernel.sas.values() if sa.mark is not None} >= {2}


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

# SPDX-License-Identifier: Apache-2.0
"""The table of core/incarnation.py, row by row, and what peers that went leave behind."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kmesh_bpf.core import formers, keys, marks
from kmesh_bpf.core.formers import DEPARTED_LINGER
from kmesh_bpf.core.incarnation import (
    MOST_FORMERS,
    RENEWAL_SECONDS,
    Announcement,
    Cause,
    Memory,
    Needs,
    decide,
    remember,
)
from kmesh_bpf.core.planner import Options, make_plan
from kmesh_bpf.core.state import KernelState, Observation, PeerEntry
from tests.unit.core import mesh

X, FRESH = "x" * 36, "fresh".ljust(36, "0")
VIEW = mesh.view(node=replace(mesh.node(1), boot_id=X))
R2, R3 = ip_address("10.10.0.2"), ip_address("10.10.0.3")
FORMER3 = {
    keys.pair(here, there, X, VIEW.peers[1].node.boot_id): 1
    for here, there in zip(VIEW.node.addresses, VIEW.peers[1].node.addresses, strict=True)
}
"""What is remembered of the third node once it is gone: both its tunnels, with version 1."""
ADDRESSES = tuple(map(str, VIEW.node.addresses))
SHOWN = Announcement(X, ADDRESSES, "uid")
NOW = 5000.0


def settled(view=VIEW, before: Observation | None = None, now: float = NOW) -> Observation:
    """Give a kernel that holds what the view calls for, and remembers it."""
    observed = before or Observation(KernelState(), {}, mesh.LINKS, X)
    for _ in range(2):
        observed = replace(observed, state=make_plan(view, observed, Options(), now).state)
    return observed


KERNEL = settled()


def only(**objects) -> Observation:
    """Give a kernel that keeps X, and holds nothing but these."""
    return Observation(KernelState(**objects), incarnation=X)


NO_NEEDS, NO_MEMORY = Needs(), Memory()


def decided(observed=KERNEL, needs=NO_NEEDS, shown=SHOWN, memory=NO_MEMORY, addresses=VIEW.node.addresses):
    return decide(observed, needs, shown, addresses, VIEW.peers, memory, FRESH, NOW, mesh.WINDOW)


ROWS = [
    ({}, Cause.KEPT),
    ({"observed": Observation(KernelState())}, Cause.FIRST),
    ({"observed": replace(KERNEL, incarnation=None)}, Cause.FIRST),
    ({"observed": replace(KERNEL, incarnation=None), "shown": Announcement()}, Cause.FIRST),
    ({"needs": Needs(lost=tuple(KERNEL.state.sas))}, Cause.LOST),
    ({"needs": Needs(lost=tuple(KERNEL.state.sas)), "memory": Memory(unseen=X)}, Cause.LOST),
    ({"needs": Needs(formers=MOST_FORMERS)}, Cause.KEPT),
    ({"needs": Needs(formers=MOST_FORMERS + 1)}, Cause.CROWDED),
    ({"shown": None}, Cause.KEPT),
    ({"shown": Announcement()}, Cause.FORGOTTEN),
    ({"shown": Announcement(), "memory": Memory(unseen=X)}, Cause.KEPT),
    ({"shown": Announcement(), "observed": Observation(KernelState(), incarnation=X)}, Cause.KEPT),
    # In use by either: SAs of which no entry tells, or an entry whose SAs are gone.
    ({"shown": Announcement(), "observed": only(sas=KERNEL.state.sas)}, Cause.FORGOTTEN),
    ({"shown": Announcement(), "observed": only(peers=KERNEL.state.peers)}, Cause.FORGOTTEN),
    ({"shown": Announcement(), "observed": only(peers={R2: PeerEntry(1, 1, 0, 1)})}, Cause.KEPT),
    ({"shown": replace(SHOWN, boot_id="other")}, Cause.FORGOTTEN),
    ({"shown": replace(SHOWN, boot_id="other"), "memory": Memory(unseen=X)}, Cause.KEPT),
    ({"memory": Memory(uid="uid")}, Cause.KEPT),
    ({"memory": Memory(uid="before")}, Cause.FORGOTTEN),
    ({"memory": Memory(uid="before"), "shown": replace(SHOWN, uid="")}, Cause.KEPT),
    ({"memory": Memory(uid="before", unseen=X)}, Cause.KEPT),
    ({"addresses": VIEW.node.addresses[:1]}, Cause.ADDRESSES),
    ({"addresses": VIEW.node.addresses[:1], "memory": Memory(unseen=X)}, Cause.KEPT),
    ({"shown": replace(SHOWN, replay_window=mesh.WINDOW)}, Cause.KEPT),
    ({"shown": replace(SHOWN, replay_window=64)}, Cause.WINDOW),
    ({"shown": replace(SHOWN, replay_window=0)}, Cause.WINDOW),
    ({"shown": replace(SHOWN, replay_window=0), "observed": Observation(KernelState(), incarnation=X)}, Cause.WINDOW),
    ({"shown": replace(SHOWN, replay_window=0, boot_id="before"), "memory": Memory(unseen=X)}, Cause.KEPT),
    ({"needs": Needs(returned=frozenset({"n3"}))}, Cause.RETURNED),
    ({"needs": Needs(returned=frozenset({"n3"})), "memory": Memory(renewed_at=NOW - RENEWAL_SECONDS)}, Cause.RETURNED),
    ({"needs": Needs(returned=frozenset({"n3"})), "memory": Memory(renewed_at=NOW - 599)}, Cause.KEPT),
]


@pytest.mark.parametrize(("facts", "cause"), ROWS)
def test_the_table(facts, cause):
    decision = decided(**facts)
    assert decision.cause is cause
    assert decision.incarnation == (X if cause is Cause.KEPT else FRESH)
    assert (decision.new, decision.renewed) == (cause is not Cause.KEPT, cause not in (Cause.KEPT, Cause.FIRST))
    assert decision.why == cause.value + (": n3" if cause is Cause.RETURNED else "")


def test_who_is_back_is_named():
    assert decided(needs=Needs(returned=frozenset({"n3", "n2"}))).why.endswith(": n2, n3")


@pytest.mark.parametrize(
    ("shown", "change", "recreate"),
    [
        (SHOWN, {"replay_window": 0}, False),
        (Announcement(), {"replay_window": 0}, False),
        (None, {"replay_window": 0}, False),
        (replace(SHOWN, boot_id="other"), {}, False),
        (replace(SHOWN, boot_id="other"), {"replay_window": 0, "node_traffic": True}, False),
        (replace(SHOWN, boot_id="other"), {"replay_window": 0}, True),
    ],
)
def test_our_announcement_is_made_anew_where_another_incarnation_must_reach_a_go_node(shown, change, recreate):
    peers = (VIEW.peers[0], replace(VIEW.peers[1], **change))
    memory = Memory(unseen=X)
    assert (
        decide(KERNEL, Needs(), shown, VIEW.node.addresses, peers, memory, FRESH, NOW, mesh.WINDOW).recreate is recreate
    )


def test_what_is_remembered_from_one_decision_to_the_next():
    new = decided(shown=Announcement())
    assert remember(Memory(uid="uid"), new, None, NOW).uid == ""
    memory = remember(Memory(uid="uid"), new, Announcement(), NOW)
    assert (memory.unseen, memory.uid, memory.renewed_at) == (FRESH, "", None)
    kept = remember(memory, decided(memory=memory), replace(SHOWN, uid="theirs"), NOW)
    assert (kept.unseen, kept.uid) == (FRESH, "theirs")
    assert kept.announced(recreated=False) == replace(kept, unseen="")
    assert kept.announced(recreated=True) == replace(kept, unseen="", uid="")
    returned = decided(needs=Needs(returned=frozenset({"n3"})))
    assert remember(memory, returned, SHOWN, NOW).renewed_at == NOW


def without(observed: Observation, gone) -> Observation:
    sas = {identity: sa for identity, sa in observed.state.sas.items() if not gone(sa)}
    return replace(observed, state=replace(observed.state, sas=sas))


def test_an_sa_that_is_gone_or_must_be_otherwise_is_lost():
    assert make_plan(VIEW, KERNEL, Options(), NOW).lost == ()
    for gone in (lambda sa: sa.src == R2, lambda sa: sa.dst == R2):
        assert make_plan(VIEW, without(KERNEL, gone), Options(), NOW).lost
    assert make_plan(VIEW, KERNEL, Options(replay_window=64), NOW).lost
    other = replace(VIEW, keys={1: mesh.key(9)})
    assert make_plan(other, KERNEL, Options(), NOW).lost, "another key under its SPI: the one before may come back"


def test_what_receives_with_an_announced_version_is_lost_too_when_it_is_not_the_one_sent_with():
    rotating = replace(VIEW, keys={1: mesh.key(1), 2: mesh.key(2)}, announced=2, announced_at=NOW)
    observed = settled(rotating, KERNEL)
    assert {sa.spi for sa in observed.state.sas.values() if sa.src == R2} == {1, 2}
    assert make_plan(rotating, without(observed, lambda sa: sa.src == R2 and sa.spi == 2), Options(), NOW).lost
    unannounced = replace(rotating, announced=1)
    assert not make_plan(unannounced, without(observed, lambda sa: sa.src == R2 and sa.spi == 2), Options(), NOW).lost


def test_removed_entries_of_the_peer_map_are_told_by_the_keys_in_use():
    gone = VIEW.peers[0].node.addresses
    state = replace(KERNEL.state, peers={a: entry for a, entry in KERNEL.state.peers.items() if a not in gone})
    assert {one.src for one in make_plan(VIEW, replace(KERNEL, state=state), Options(), NOW).lost} == set(gone)
    rotating = replace(VIEW, keys={1: mesh.key(1), 2: mesh.key(2)}, announced=2, announced_at=NOW)
    one_left = replace(KERNEL, state=replace(KERNEL.state, peers={R3: KERNEL.state.peers[R3]}))
    assert make_plan(rotating, one_left, Options(), NOW).lost


def test_a_peer_that_is_missed_keeps_its_sas_for_a_while_and_its_policies_not_at_all():
    alone = replace(VIEW, peers=VIEW.peers[:1])
    plan = make_plan(alone, KERNEL, Options(), NOW)
    (missed,) = plan.departing
    assert (plan.departing[missed], plan.due, plan.lost) == (NOW, NOW + DEPARTED_LINGER, ())
    assert {sa.id for sa in plan.state.sas.values()} == set(KERNEL.state.sas)
    assert plan.state.peers == KERNEL.state.peers
    assert not any(R3 in (policy.tunnel_src, policy.tunnel_dst) for policy in plan.state.policies.values())
    later = make_plan(alone, KERNEL, Options(), NOW + DEPARTED_LINGER - 1, plan.departing)
    assert later.departing == plan.departing
    gone = make_plan(alone, KERNEL, Options(), NOW + DEPARTED_LINGER, plan.departing)
    assert (gone.departing, gone.due, gone.state.formers) == ({}, None, FORMER3)
    assert not any(R3 in (sa.src, sa.dst) for sa in gone.state.sas.values())
    assert R3 not in gone.state.peers


def test_who_is_back_under_used_keys_is_quarantined_and_told_until_we_are_another():
    gone = replace(
        KERNEL,
        state=make_plan(
            replace(VIEW, peers=VIEW.peers[:1]),
            KERNEL,
            Options(),
            NOW,
            {marks.incarnations(VIEW.node, VIEW.peers[1].node): 0.0},
        ).state,
    )
    back = make_plan(VIEW, gone, Options(), NOW)
    assert back.returned == {"n3"}
    assert (back.ready_peers, back.lost) == ({"n2"}, ())
    (problem,) = back.problems
    assert problem.sentence.startswith("peer n3: it is back, and its keys were in use before")
    assert "kmeshctl secret create" in problem.sentence
    assert not any(R3 in (sa.src, sa.dst) for sa in back.state.sas.values())
    another = make_plan(replace(VIEW, node=replace(VIEW.node, boot_id=FRESH)), gone, Options(), NOW)
    assert (another.returned, another.ready_peers, another.state.formers) == (frozenset(), {"n2", "n3"}, {})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "renamed"},
        {"addresses": (ip_address("10.10.0.3"),)},
        {"addresses": (ip_address("10.10.0.3"), ip_address("fd00:10::3"), ip_address("192.0.2.3"))},
    ],
)
def test_who_comes_under_another_name_or_with_other_addresses_has_the_same_keys(change):
    node = replace(VIEW.peers[1].node, **change)
    view = replace(VIEW, peers=(VIEW.peers[0], replace(VIEW.peers[1], node=node)))
    assert make_plan(view, KERNEL, Options(), NOW).returned == {node.name}


def test_who_comes_with_another_address_has_other_keys_and_is_welcome_until_it_is_back_under_the_one_before():
    here, there = VIEW.peers
    moved = replace(there, node=replace(there.node, addresses=(ip_address("10.10.0.99"),)))
    plan = make_plan(replace(VIEW, peers=(here, moved)), KERNEL, Options(), NOW)
    assert (plan.returned, plan.lost) == (frozenset(), ())
    now = NOW + DEPARTED_LINGER
    state = make_plan(
        replace(VIEW, peers=(here, moved)), KERNEL, Options(), now, dict.fromkeys(plan.departing, NOW)
    ).state
    assert state.formers == FORMER3
    assert make_plan(VIEW, replace(KERNEL, state=state), Options(), now).returned == {"n3"}


def test_a_node_that_announces_the_incarnation_of_another_one_costs_that_one_nothing():
    """It has keys of its own, for its addresses are others. Found by scripts/simulate."""
    innocent, liar = VIEW.peers
    lying = replace(liar, node=replace(liar.node, boot_id=innocent.node.boot_id))
    told = settled(replace(VIEW, peers=(innocent, lying)), KERNEL)
    assert len(told.state.formers) == 2, "who lies has left the one that it was"
    without = replace(
        told.state,
        sas={one: sa for one, sa in told.state.sas.items() if R2 not in (sa.src, sa.dst)},
        peers={one: entry for one, entry in told.state.peers.items() if one != R2},
    )
    for view in (VIEW, replace(VIEW, peers=(innocent,))):
        plan = make_plan(view, told, Options(), NOW)
        assert "n2" not in plan.returned
        assert "n2" in plan.ready_peers
        assert not plan.lost
    alone = replace(VIEW, peers=(innocent,))
    assert make_plan(alone, replace(told, state=without), Options(), NOW).returned == frozenset(), "an SA is made"


@pytest.mark.parametrize("back", [VIEW.peers[1], replace(VIEW.peers[1], node=mesh.node(4, boot="boot-3"))])
def test_what_contract_version_2_remembers_counts_for_all_tunnels_of_its_incarnations(back):
    node = replace(back.node, boot_id=VIEW.peers[1].node.boot_id)
    former = {marks.second_pair(VIEW.node, node): 1}
    view = replace(VIEW, peers=(VIEW.peers[0], replace(back, node=node)))
    observed = Observation(KernelState(formers=former), {}, mesh.LINKS, X)
    assert make_plan(view, observed, Options(), NOW).returned == {node.name}


def test_of_entries_as_contract_version_2_left_them_nothing_is_forgotten_when_their_peer_goes_and_comes_back():
    pair = marks.second_pair(VIEW.node, VIEW.peers[1].node)
    ends = VIEW.peers[1].node.addresses
    peers = {one: replace(e, pair=pair) if one in ends else e for one, e in KERNEL.state.peers.items()}
    left = replace(KERNEL, state=replace(KERNEL.state, peers=peers))
    alone, away = replace(VIEW, peers=VIEW.peers[:1]), {marks.incarnations(VIEW.node, VIEW.peers[1].node): 0.0}
    gone = replace(left, state=make_plan(alone, left, Options(), NOW, away).state)
    assert gone.state.formers == {pair: 1}
    assert make_plan(VIEW, gone, Options(), NOW).returned == {"n3"}
    assert make_plan(VIEW, left, Options(), NOW).state == KERNEL.state, "who is there is as it was, its pair made anew"


def test_who_comes_with_another_boot_id_is_welcome_and_the_one_before_remembered():
    node = replace(VIEW.peers[1].node, boot_id="another".ljust(36, "0"))
    plan = make_plan(replace(VIEW, peers=(VIEW.peers[0], replace(VIEW.peers[1], node=node))), KERNEL, Options(), NOW)
    assert (plan.returned, plan.lost) == (frozenset(), ())
    assert plan.state.formers == FORMER3


def test_a_key_that_was_not_in_use_with_who_is_back_is_no_reason_to_change_anything():
    newer = replace(VIEW, keys={2: mesh.key(2)}, announced=2, peers=tuple(replace(one, spi=2) for one in VIEW.peers))
    observed = Observation(KernelState(formers=FORMER3), {}, mesh.LINKS, X)
    plan = make_plan(newer, observed, Options(), NOW)
    assert (plan.returned, plan.ready_peers, plan.state.formers) == (frozenset(), {"n2", "n3"}, FORMER3)


def test_a_new_key_lets_who_is_back_in_again_past_what_was_used():
    peers = (VIEW.peers[0], replace(VIEW.peers[1], spi=2))
    newer = replace(VIEW, keys={1: mesh.key(1), 2: mesh.key(2)}, announced=2, announced_at=NOW, peers=peers)
    observed = Observation(KernelState(formers=FORMER3), {}, mesh.LINKS, X)
    plan = make_plan(newer, observed, Options(), NOW)
    assert (plan.returned, plan.ready_peers) == (frozenset(), {"n2", "n3"})
    assert {sa.spi for sa in plan.state.sas.values() if R3 in (sa.src, sa.dst)} == {2}
    assert plan.state.peers[R3].retired == 1
    assert make_plan(replace(newer, announced=1), observed, Options(), NOW).returned == {"n3"}


def test_the_highest_version_counts_whatever_tells_of_it():
    assert formers.highest_version(PeerEntry(1, 1, 2, 7), ()) == 2
    assert formers.highest_version(PeerEntry(1, 1, 0, 7, retired=3), ()) == 3
    assert formers.highest_version(PeerEntry(1, 1, 0, 7), tuple(KERNEL.state.sas.values())) == 1


def test_nothing_is_remembered_of_what_was_made_for_another_incarnation_of_ours():
    view = replace(VIEW, peers=(), node=replace(VIEW.node, boot_id=FRESH))
    plan = make_plan(view, KERNEL, Options(), NOW)
    assert (plan.state.formers, plan.state.sas, plan.departing) == ({}, {}, {})


def test_a_peer_that_rolls_its_spi_back_is_sent_what_it_was_and_changes_nothing():
    newer = replace(
        VIEW, keys={1: mesh.key(1), 2: mesh.key(2)}, announced=2, peers=tuple(replace(p, spi=2) for p in VIEW.peers)
    )
    observed = settled(newer, KERNEL, NOW + 100)
    assert observed.state.peers[R2].retired == 1
    back = replace(newer, peers=(replace(newer.peers[0], spi=1), newer.peers[1]))
    plan = make_plan(back, observed, Options(), NOW + 100)
    assert (plan.lost, plan.ready_peers, plan.returned) == ((), {"n2", "n3"}, frozenset())
    assert plan.state.sas == observed.state.sas
    assert plan.state.peers == observed.state.peers


def test_a_peer_that_changes_its_window_keeps_the_one_that_its_sas_were_made_with():
    toggled = replace(VIEW, peers=(replace(VIEW.peers[0], replay_window=0), VIEW.peers[1]))
    plan = make_plan(toggled, KERNEL, Options(), NOW)
    assert (plan.lost, plan.state.sas) == ((), KERNEL.state.sas)

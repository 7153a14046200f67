# SPDX-License-Identifier: Apache-2.0
import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core import keys
from kmesh_bpf.core.keys import Retirement
from kmesh_bpf.core.state import SaUsage
from kmesh_bpf.core.view import Key
from kmesh_bpf.errors import ConfigError

PSK = Key(bytes(range(36)))
A, B = ip_address("10.10.0.1"), ip_address("fd00:10::2")
BOOT_A, BOOT_B = "a" * 36, "b" * 36
NOW = 1000.0


def used(at: float) -> SaUsage:
    return SaUsage(added=0, last_used=int(at), packets=1, bytes=1)


def test_a_direction_s_key_is_the_formula_of_the_design():
    expected = hashlib.sha512(
        bytes(range(36)) + b"10.10.0.1" + b"fd00:10::2" + BOOT_A.encode() + BOOT_B.encode()
    ).digest()[:36]
    assert keys.derive(PSK, A, B, BOOT_A, BOOT_B).reveal() == expected


def test_only_36_characters_of_a_boot_id_count():
    assert keys.derive(PSK, A, B, BOOT_A + "x", BOOT_B) == keys.derive(PSK, A, B, BOOT_A, BOOT_B)


def test_the_two_directions_have_different_keys():
    assert keys.derive(PSK, A, B, BOOT_A, BOOT_B) != keys.derive(PSK, B, A, BOOT_B, BOOT_A)


TUNNELS = st.tuples(
    st.sampled_from((A, ip_address("10.10.0.11"))),
    st.sampled_from((B, ip_address("10.10.0.2"), ip_address("fd00:10::20"))),
    st.sampled_from((BOOT_A, BOOT_B)),
    st.sampled_from((BOOT_A, BOOT_B, BOOT_B + "x", BOOT_B + "y", "short")),
)


@given(TUNNELS, TUNNELS)
def test_tunnels_are_one_pair_exactly_if_their_keys_are_the_same_both_ways(one, other):
    def both(local, remote, here, there):
        return keys.derive(PSK, local, remote, here, there), keys.derive(PSK, remote, local, there, here)

    shared = set(both(*one)) & set(both(*other))
    assert (keys.pair(*one) == keys.pair(*other)) is bool(shared)
    assert 0 < keys.pair(*one) < 1 << 64


@pytest.mark.parametrize("length", [0, 32, 35, 37, 72])
def test_a_key_of_another_length_is_refused_with_both_lengths(length):
    with pytest.raises(ConfigError, match=rf"36 bytes .* not {length}"):
        Key(bytes(length))


def test_a_key_never_shows():
    assert "00" not in repr(PSK)
    assert repr(PSK) == str(PSK) == "Key(hidden)"


@pytest.mark.parametrize(
    ("held", "announced", "expected"),
    [({1}, 1, 1), ({1, 2}, 1, 1), ({1, 2}, 2, 2), ({1}, 2, 1), ({2}, 1, None), (set(), 5, None), ({1, 3}, 2, 1)],
)
def test_outbound_is_the_highest_version_held_that_the_peer_can_decrypt(held, announced, expected):
    assert keys.outbound_version(held, announced) == expected


def inbound(held, peer, ours, announced_for=100.0, usage=None):
    since = NOW - announced_for
    return tuple(keys.inbound_versions(held, peer, ours, since, usage or {}, NOW, Retirement(grace=10, idle=10)))


def test_both_versions_are_accepted_until_the_peer_announces_the_new_one():
    assert inbound({1, 2}, peer=1, ours=2) == (1, 2)


def test_both_versions_are_accepted_until_we_announced_the_new_one():
    assert inbound({1, 2}, peer=2, ours=1) == (1, 2)


def test_both_versions_are_accepted_during_the_grace_period():
    assert inbound({1, 2}, peer=2, ours=2, announced_for=9.9) == (1, 2)


def test_both_versions_are_accepted_while_the_old_one_is_in_use():
    assert inbound({1, 2}, peer=2, ours=2, usage={1: used(NOW - 9)}) == (1, 2)


def test_the_old_version_goes_when_the_peer_moved_grace_is_over_and_the_sa_is_idle():
    assert inbound({1, 2}, peer=2, ours=2, usage={1: used(NOW - 10)}) == (2,)


def test_a_second_replacement_inside_the_first_keeps_all_three():
    assert inbound({1, 2, 3}, peer=1, ours=3) == (1, 2, 3)
    assert inbound({1, 2, 3}, peer=2, ours=3) == (2, 3)


RULES = Retirement(grace=10, idle=10, silence=1000)


def of_one_that_tells(sends, usage, announced_for=100.0, held=(1, 2, 3), peer=3):
    since = NOW - announced_for
    return keys.inbound_versions(set(held), peer, 3, since, usage, NOW, RULES, sends)


def quiet(seconds, packets=0):
    return SaUsage(added=int(NOW - seconds), last_used=0, packets=packets, bytes=packets)


def test_of_a_peer_that_tells_what_it_sends_with_old_versions_stay_until_it_tells_of_a_newer_one():
    """Found by scripts/simulate: its daemon was stopped before it had heard of our announcement."""
    usage = {1: quiet(500, packets=7), 2: quiet(500), 3: quiet(100)}
    assert set(of_one_that_tells(1, usage)) == {1, 2, 3}
    assert set(of_one_that_tells(2, usage)) == {2, 3}
    assert set(of_one_that_tells(3, usage)) == {3}
    assert set(of_one_that_tells(0, usage)) == {3}, "it does not tell, and is taken to have moved"


def test_a_packet_over_a_newer_sa_proves_it_too_for_all_before_that_and_none_behind():
    usage = {1: quiet(500, packets=7), 2: quiet(500), 3: quiet(100)}
    assert set(of_one_that_tells(1, usage | {2: quiet(300, packets=1)})) == {2, 3}
    assert set(of_one_that_tells(1, usage | {3: quiet(100, packets=1)})) == {3}


def test_what_is_proven_must_be_idle_all_the_same():
    usage = {1: used(NOW - 9), 2: quiet(500), 3: used(NOW - 1)}
    assert set(of_one_that_tells(3, usage)) == {1, 3}


def test_without_any_proof_an_old_version_goes_after_long_silence_that_begins_no_earlier_than_our_announcement():
    usage = {1: quiet(2000, packets=7), 2: quiet(999), 3: quiet(100)}
    assert of_one_that_tells(1, usage) == {1: NOW + 900, 2: NOW + 900, 3: None}
    assert of_one_that_tells(1, usage, announced_for=999.5) == {1: NOW + 0.5, 2: NOW + 1, 3: None}
    assert set(of_one_that_tells(1, usage, announced_for=1000)) == {2, 3}


def test_of_a_version_without_an_sa_nothing_has_to_be_proven():
    assert set(of_one_that_tells(1, {})) == {3}


versions = st.sets(st.integers(1, 6), min_size=1)


@given(held=versions, peer=st.integers(0, 7), ours=st.integers(0, 7), announced_for=st.floats(0, 100))
def test_whatever_a_peer_may_send_with_is_accepted(held, peer, ours, announced_for):
    """A peer holds some of our keys and sends with the highest not above what we announce."""
    kept = inbound(held, peer, ours, announced_for)
    assert set(kept) <= held
    assert max(held) in kept or peer > max(held)
    # If the peer holds all that it announces, its version towards us is accepted.
    sends_with = keys.outbound_version({version for version in held if version <= peer}, ours)
    if sends_with == min(peer, ours):
        assert sends_with in kept

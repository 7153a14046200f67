# SPDX-License-Identifier: Apache-2.0
"""Replay windows: what is promised of them, over numbers in any order, and across 2^32."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.simulator.xfrm import LOW, Window

SIZES = st.sampled_from([1, 31, 32, 64, 4096])
EDGE = 1 << 32


def arrive(window, number):
    """Tell whether a number is accepted: not refused, and its upper part taken for what it is."""
    if window.refuses(number) or window.high(number) != number >> 32:
        return False
    window.take(number)
    return True


@given(SIZES, st.lists(st.integers(1, 200), max_size=80))
def test_each_number_is_accepted_once_and_within_the_window_always(size, numbers):
    window, accepted, top = Window(size), set(), 0
    for number in numbers:
        expected = number not in accepted and number > top - size
        assert arrive(window, number) is expected
        if expected:
            accepted.add(number)
            top = max(top, number)


@settings(deadline=None)
@given(SIZES, st.integers(EDGE - 5000, EDGE + 5000), st.lists(st.integers(-5000, 5000), max_size=80))
@example(32, EDGE - 1, [1, 0, 2])
def test_numbers_go_on_beyond_what_the_wire_carries(size, start, steps):
    window = Window(size)
    window.take(start)
    accepted = {start}
    for step in steps:
        number = window.top + step
        expected = number not in accepted and number > window.top - size
        assert arrive(window, number) is expected
        if expected:
            accepted.add(number)


def test_without_a_window_everything_is_accepted_and_nothing_kept():
    window = Window(0)
    assert all(arrive(window, number) for number in (1, 1, 7, LOW, 1))
    assert window.taken == set()


def test_what_is_kept_stays_within_bounds():
    window = Window(64)
    for number in range(1, 10_000):
        assert arrive(window, number)
    assert len(window.taken) <= 128
    assert not arrive(window, 9_999 - 64)
    assert not arrive(window, 9_990)

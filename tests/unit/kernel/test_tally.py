# SPDX-License-Identifier: Apache-2.0
"""A map that is read piece by piece while it is written: what we wrote is never taken for another's, another's is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.kernel.tally import MOST_SUMS, Tally


def number(key: int, value: int | None) -> int:
    """Stand for an entry; 0: there is none."""
    return 0 if value is None else hash((key, value, "an entry")) & (2**64 - 1)


class Written:
    """A hash of a few keys, its tally, and a reading of it under way."""

    def __init__(self, entries):
        self.entries = dict(entries)
        self.tally = Tally()
        self.begin()
        self.rest()
        self.tally.learn(self.reading)

    def begin(self):
        self.reading = self.tally.begin()
        self.left = list(range(8))

    def read(self):
        """Read one key, if any is left."""
        if self.left:
            key = self.left.pop()
            self.reading.take(number(key, self.entries.get(key)))

    def rest(self):
        while self.left:
            self.read()

    def set(self, key, value):
        before = number(key, self.entries.get(key))
        self.others(key, value)
        self.tally.wrote(number(key, value) - before)

    def others(self, key, value):
        self.entries.pop(key, None)
        if value is not None:
            self.entries[key] = value


keys, values = st.integers(0, 7), st.one_of(st.none(), st.integers(0, 3))
writes = st.lists(st.one_of(st.none(), st.tuples(keys, values)), max_size=16)


@given(st.dictionaries(keys, st.integers(0, 3)), st.lists(writes, min_size=1, max_size=4))
def test_what_we_write_before_and_during_readings_is_nobody_else_s_doing(entries, readings):
    one = Written(entries)
    for during in readings:
        one.begin()
        for write in during:
            one.read() if write is None else one.set(*write)
        one.rest()
        if one.reading.tells:
            assert one.tally.agrees(one.reading)


@given(st.dictionaries(keys, st.integers(0, 3)), writes, keys, values, writes)
def test_what_somebody_else_has_written_is_found_until_all_is_read_again(entries, before, key, value, during):
    one = Written(entries)
    for write in filter(None, before):
        one.set(*write)
    held = one.entries.get(key)
    one.others(key, value)
    one.begin()
    for write in during:
        if write is None:
            one.read()
        elif write[0] != key:
            one.set(*write)
    one.rest()
    if one.reading.tells:
        assert one.tally.agrees(one.reading) == (held == value)
    one.begin()
    one.rest()
    one.tally.learn(one.reading)
    one.begin()
    one.rest()
    assert one.tally.agrees(one.reading)


def test_more_than_can_be_followed_makes_a_reading_tell_nothing():
    one = Written({})
    one.begin()
    for step in range(14):
        one.set(step % 8, step)
    assert not one.reading.tells
    one.rest()
    assert not one.tally.agrees(one.reading)
    assert len(one.tally.sums) <= MOST_SUMS


@pytest.mark.parametrize("write", [lambda tally: tally.wrote_many(), lambda tally: tally.wrote_together(5)])
def test_what_is_written_at_once_makes_a_reading_under_way_tell_nothing(write):
    one = Written({1: 1})
    one.begin()
    write(one.tally)
    assert not one.reading.tells
    one.tally.give_up(one.reading)
    assert not one.tally.readings

# SPDX-License-Identifier: Apache-2.0
"""Node ids: no two peers have one, none that lives in an SA is given again, and the lowest free ones are found."""

from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core import marks
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.node_ids import NodeIds
from kmesh_bpf.core.state import KernelState, Observation
from tests.unit.amount import examples

NARROW = 0xFF00
"""A mask with room for 255 ids."""
numbers = st.integers(1, 40)


def kernel(entries: set[int], of_sas: set[int], mask: int = NARROW) -> Mirror:
    """Give a mirror that holds just these ids, in its entries and in the marks of its SAs."""
    mirror = Mirror(Observation(KernelState()))
    mirror.node_ids.update(entries)
    mirror.node_marks.update(marks.node_mark(one, mask) | 0xD0 for one in of_sas)
    return mirror


def ids(entries: set[int], of_sas: set[int], mask: int = NARROW) -> NodeIds:
    found, mirror = NodeIds(mask), kernel(entries, of_sas, mask)
    found.update(mirror, mirror.node_ids, mirror.node_marks)
    return found


def lowest(number: int, taken: set[int], room: int) -> list[int]:
    return [one for one in range(1, room + 1) if one not in taken][:number]


def test_an_id_that_stands_in_an_entry_or_lives_in_an_old_sa_is_not_given():
    assert ids({3}, {1}, contract.NODE_MARK_MASK).free(3) == [2, 4, 5]


def test_where_there_is_no_room_for_all_there_are_fewer():
    found = ids({7}, {9})
    assert found.free(300) == [one for one in range(1, 256) if one not in (7, 9)]
    assert found.free(2) == [1, 2], "asking for them takes none"


@examples(300)
@given(st.lists(st.tuples(st.sets(numbers, max_size=20), st.sets(numbers, max_size=20), st.integers(0, 6)), max_size=8))
def test_the_free_ones_are_the_lowest_after_whatever_came_and_went(states):
    found = NodeIds(NARROW)
    before: tuple[set[int], set[int]] = (set(), set())
    for entries, of_sas, number in states:
        mirror = kernel(entries, of_sas)
        changed = of_sas ^ before[1]
        found.update(mirror, entries ^ before[0], {marks.node_mark(one, NARROW) | 0xD0 for one in changed})
        assert found.free(number) == lowest(number, entries | of_sas, 255)
        assert all(found.is_taken(one) == (one in entries | of_sas) for one in range(1, 42))
        before = entries, of_sas

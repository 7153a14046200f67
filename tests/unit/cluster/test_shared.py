# SPDX-License-Identifier: Apache-2.0
"""What two states of a cluster share, and what they differ in."""

from collections import ChainMap
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.shared import Objects, find, stacked

from kmesh_bpf import SharedMap
from kmesh_bpf.core.shared import FULL

NAMES = st.sampled_from([f"p{number}" for number in range(12)])
KEYS = st.tuples(st.sampled_from(["", "a", "b"]), NAMES)


@dataclass(eq=False)
class Thing:
    """Equal to itself only."""

    name: str
    namespace: str = ""


EDITS = st.lists(st.dictionaries(KEYS, st.booleans(), max_size=6), max_size=8)
"""Of each round, what is put anew, and what is taken out."""


def edited(edits: dict) -> dict:
    return {(space, name): Thing(name, space) if there else None for (space, name), there in edits.items()}


def after(before: dict, edits: dict) -> dict:
    return {key: one for key, one in {**before, **edits}.items() if one is not None}


@given(EDITS)
def test_objects_are_what_a_dict_would_hold_and_former_states_stay_as_they_were(rounds):
    states = [({}, Objects())]
    for edits in map(edited, rounds):
        model, objects = states[-1]
        states.append((after(model, edits), objects.changed(edits.items())))
    for model, objects in states:
        assert dict(objects.items()) == model
        assert list(objects) == [model[key] for key in sorted(model)]
        assert len(objects) == len(model)
        assert objects == tuple(model[key] for key in sorted(model))
        assert all(objects.get(*key) is one and one in objects for key, one in model.items())
        assert find(objects, "p1", "a") is model.get(("a", "p1")) is find(tuple(objects), "p1", "a")


@given(EDITS)
def test_the_difference_between_any_two_states_is_told_whatever_was_missed_in_between(rounds):
    states = [({}, Objects())]
    for edits in map(edited, rounds):
        model, objects = states[-1]
        states.append((after(model, edits), objects.changed(edits.items())))
    for old, before in states:
        for new, objects in states:
            told = [((space, name), was, one) for space, name, was, one in objects.changes(before)]
            keys = old.keys() | new.keys()
            wanted = [(key, old.get(key), new.get(key)) for key in keys if old.get(key) is not new.get(key)]
            assert sorted(told, key=lambda one: one[0]) == sorted(wanted, key=lambda one: one[0])


@pytest.mark.parametrize("count", [1, FULL, FULL + 1, 20 * FULL])
def test_a_change_copies_a_bucket_and_not_the_rest(count):
    before = SharedMap().changed({f"p{number}": Thing(f"p{number}") for number in range(count)})
    now = before.changed({"p0": Thing("p0")})
    assert sum(one is not other for one, other in zip(now._buckets, before._buckets, strict=True)) == 1
    assert max(map(len, now._buckets)) <= 3 * FULL
    assert [name for name, _, _ in now.changes(before)] == ["p0"]


def test_what_changes_nothing_gives_the_very_same():
    one = Thing("one", "a")
    objects = Objects.of([one])
    assert objects.changed([(("a", "one"), one), (("a", "two"), None), (("b", "one"), None)]) is objects
    assert Objects.of(objects) is objects
    gone = objects.changed([(("a", "one"), None)])
    assert (gone, list(gone.changed_parts(Objects()))) == ((), [])


def test_objects_are_equal_to_a_sequence_of_equal_ones_in_their_order_only():
    one, other = Thing("one"), Thing("other")
    assert Objects.of([other, one]) == (one, other) != Objects.of([one])
    assert Objects.of([one, other]) != (other, one)
    assert Objects.of([one, other])[1] is other


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.none() | st.dictionaries(KEYS, st.booleans(), max_size=6))))
def test_layers_give_of_each_name_what_the_last_one_has_however_they_come_and_go(rounds):
    """``None``: a layer is dropped; else it is there from now on, and changed."""
    layers: dict[str, Objects] = {}
    merged: Objects = Objects()
    for layer, edits in rounds:
        now = dict(layers)
        if edits is None:
            now.pop(layer, None)
        else:
            now[layer] = now.get(layer, Objects()).changed(edited(edits).items())
        now = {name: now[name] for name in sorted(now)}
        merged = stacked(now, layers, merged)
        layers = now
        assert dict(merged.items()) == dict(ChainMap(*(dict(one.items()) for one in reversed(layers.values()))))


def test_what_one_layer_alone_has_is_not_copied():
    layer = Objects.of([Thing("one", "a")])
    other = Objects.of([Thing("two", "b")])
    merged = stacked({"x": layer, "y": other}, {}, Objects())
    assert merged.part("a") is layer.part("a")
    both = stacked({"x": layer, "y": layer}, {"x": layer, "y": other}, merged)
    assert list(both) == list(layer)
    assert stacked({"x": layer}, {"x": layer, "y": layer}, both).part("a") is layer.part("a")

# SPDX-License-Identifier: Apache-2.0
"""The digest of whom a node holds: whoever differs is named, surely or not at all."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.holdings import BYTES, MISNAMED, decode, differing, digest, encode, item

from kmesh_bpf import ConfigError

NODES = st.dictionaries(st.text("abc-", min_size=1, max_size=5), st.sampled_from(["x", "y", "z"]), max_size=12)


@given(NODES, NODES)
def test_it_is_the_same_for_the_same_nodes_in_any_order_and_else_another(one, other):
    assert digest(one.items()) == digest(reversed(one.items()))
    assert (digest(one.items()) == digest(other.items())) == (one == other)


@given(NODES, st.text(min_size=1), st.sampled_from(["x", "y"]))
def test_a_node_is_put_in_and_taken_out_in_the_same_way(nodes, name, incarnation):
    nodes.pop(name, None)
    whole = digest([*nodes.items(), (name, incarnation)])
    assert whole ^ item(name, incarnation) == digest(nodes.items())


@given(NODES, st.data())
def test_who_has_another_incarnation_or_is_missing_is_named(nodes, data):
    changed = data.draw(st.sets(st.sampled_from(sorted(nodes) or ["nobody"]), max_size=3)) & nodes.keys()
    gone = data.draw(st.sets(st.sampled_from(sorted(nodes) or ["nobody"]), max_size=2)) & nodes.keys()
    held = {name: "before" if name in changed else one for name, one in nodes.items() if name not in gone}
    found = differing(digest(nodes.items()), digest(held.items()), nodes)
    assert found is None or found >= changed | gone


@pytest.mark.parametrize(("size", "changed"), [(3, 0), (3, 2), (20, 10), (100, 5), (500, 3), (5000, 1), (5000, 2)])
def test_of_few_that_differ_all_are_named_and_hardly_anybody_else(size, changed):
    chance, wrong, told = random.Random(f"{size} {changed}"), 0, 0
    for _ in range(20):
        nodes = {f"node-{chance.getrandbits(64):x}": "now" for _ in range(size)}
        others = set(chance.sample(sorted(nodes), changed))
        held = {name: "before" if name in others else one for name, one in nodes.items()}
        found = differing(digest(nodes.items()), digest(held.items()), nodes)
        told += found is not None
        wrong += len((found or others) - others)
        assert found is None or found >= others
    assert told >= 18
    assert wrong <= 20 * 2 * MISNAMED


@pytest.mark.parametrize("size", [100, 5000])
def test_where_nearly_all_differ_nobody_is_named(size):
    nodes = [f"n{index}" for index in range(size)]
    assert differing(digest((one, "a") for one in nodes), digest((one, "b") for one in nodes[5:]), nodes) is None


@given(NODES)
def test_as_text_it_is_short_and_read_back(nodes):
    text = encode(digest(nodes.items()))
    assert len(text) < 350
    assert decode(text) == digest(nodes.items())


@pytest.mark.parametrize("text", ["", "x", "AAAA", "ä" * 344, "A" * 348, "A" * 343 + "\n"])
def test_a_text_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=f"is no digest of {BYTES} bytes in base64"):
        decode(text)

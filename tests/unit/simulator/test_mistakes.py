# SPDX-License-Identifier: Apache-2.0
"""Known mistakes are found: a simulator that misses one would let it into the code.

Those without a first seed were not seen to be found yet: `scripts/simulate --mistakes` looks for them all.
"""

import pytest

from tests.simulator.mistakes import MISTAKES, search

BUDGET = 300


SEEN = [one for one in MISTAKES if one.first is not None]


@pytest.mark.parametrize("mistake", SEEN, ids=lambda one: one.name)
def test_a_mistake_is_found(mistake):
    found = search(mistake, BUDGET, first=mistake.first)
    assert found is not None, f"not found in {BUDGET} histories"
    assert found.check > 0, found.sentence

# SPDX-License-Identifier: Apache-2.0
"""The simulator's kernel against the real one: see :mod:`tests.simulator.differential`."""

from collections.abc import Iterator

import pytest

from tests.simulator.differential import live, real_nodes
from tests.simulator.real_nodes import RealNodes


@pytest.fixture(scope="module")
def real() -> Iterator[RealNodes]:
    with real_nodes() as nodes:
        yield nodes


@pytest.mark.parametrize("seed", (1, 2))
def test_packets_fare_as_they_do_in_the_real_kernel(real: RealNodes, seed: int) -> None:
    live(real, seed)

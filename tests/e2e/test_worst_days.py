# SPDX-License-Identifier: Apache-2.0
"""The quick rows of the fault matrix (scripts/faults runs all): what is lost and what is in clear, counted.

By its name the last file here: keys are replaced in it, and others count SPIs from the first one on.
"""

import math

import pytest

from tests.faults.matrix import Matrix, told
from tests.faults.meter import machine
from tests.faults.registry import ROWS
from tests.faults.rows import misses
from tests.lab.kernels import KERNEL


@pytest.fixture(scope="module")
def matrix(lab):
    lab.label("Kmesh")
    # How fast things heal is not judged here: a busy machine must not fail a test.
    made = Matrix(lab, machine("this checkout", slowness=math.inf), seed=1)
    yield made
    made.close()


@pytest.mark.parametrize("row", [row for row in ROWS if row.quick and row.is_of(KERNEL)], ids=lambda row: row.name)
def test_a_bad_day_costs_no_more_than_its_row_says(matrix, row):
    was = matrix.run(row)
    print(told(row, was))
    assert misses(row, was) == ()

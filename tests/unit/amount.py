# SPDX-License-Identifier: Apache-2.0
"""How many examples of a property are tried: all, or few where another run of the same tests tries them all."""

import os

from hypothesis import settings

FEW = 5
SPARING = os.environ.get("KMESH_TEST_EXAMPLES") == "few"
"""Set by the part ``lowest`` of scripts/test: it is about the libraries' versions, and ``unit`` about our own code."""


def examples(number: int) -> settings:
    """Give the settings of a property that takes this many examples; they are not timed, for machines are busy."""
    return settings(deadline=None, max_examples=FEW if SPARING else number)

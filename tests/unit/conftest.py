# SPDX-License-Identifier: Apache-2.0
"""Properties are not timed: a busy machine must not fail them. No test sees the log that another has set up."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.amount import examples

settings.register_profile("untimed", examples(settings.default.max_examples))
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def the_log_stays_as_it_was() -> Iterator[None]:
    """A daemon's command line that is run in this process sets up the logger of all programs."""
    log = logging.getLogger("kmesh")
    level, propagate, handlers = log.level, log.propagate, log.handlers[:]
    yield
    log.setLevel(level)
    log.propagate, log.handlers[:] = propagate, handlers

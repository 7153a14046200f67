# SPDX-License-Identifier: Apache-2.0
"""What simulated daemons would log is nobody's."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL + 1, "kmesh")

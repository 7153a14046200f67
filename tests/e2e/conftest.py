# SPDX-License-Identifier: Apache-2.0
"""One lab for the whole session: starting three daemons takes a minute under emulation."""

import tempfile
import time
from pathlib import Path

import pytest

from tests.lab.lab import SERVICES, Lab


@pytest.fixture
def enrolled(lab):
    """The lab with its namespace labelled."""
    lab.label("Kmesh")
    time.sleep(1)  # pod maps are written before devices get their programs
    return lab


@pytest.fixture(scope="session")
def lab():
    made = Lab(Path(tempfile.mkdtemp(prefix="kmesh-e2e-")), *SERVICES)
    made.begin()
    yield made
    made.close()

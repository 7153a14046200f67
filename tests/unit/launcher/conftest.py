# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from tests.unit.launcher.standin import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)

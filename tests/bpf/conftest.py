"""Programs loaded once for all tests of this folder, pinned below a folder of their own."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.bpf.node import NodeUnderTest

BPFFS = Path("/sys/fs/bpf")


@pytest.fixture(scope="session")
def roots():
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", BPFFS], check=True)
    folder = BPFFS / f"kmesh-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def root(roots):
    """A pin root of one test's own."""
    return roots / uuid.uuid4().hex[:8]


@pytest.fixture(scope="session")
def strict(roots):
    return NodeUnderTest(roots / "strict")


@pytest.fixture(scope="session")
def permissive(roots):
    return NodeUnderTest(roots / "permissive", strict=False)

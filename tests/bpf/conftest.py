# SPDX-License-Identifier: Apache-2.0
"""Programs loaded once for all tests of this folder, pinned below a folder of their own."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.bpf.node import LO, OTHER_DEVICE, POD_DEVICE, UPLINK, Devices, NodeUnderTest, number
from tests.lab.network import inside, run

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
def devices():
    """A namespace of devices that a test run may name as the one a packet came by."""
    name = f"kmesh-test-{uuid.uuid4().hex[:8]}"
    run(f"ip netns add {name}")
    with inside(name):
        run(
            f"ip link add {POD_DEVICE} type veth peer name {OTHER_DEVICE}; ip link add {UPLINK} type veth peer name far"
        )
        found = Devices(name, {device: number(device) for device in (LO, UPLINK, POD_DEVICE, OTHER_DEVICE)})
    yield found
    run(f"ip netns del {name}")


@pytest.fixture(scope="session")
def strict(roots, devices):
    return NodeUnderTest(roots / "strict", devices)


@pytest.fixture(scope="session")
def permissive(roots, devices):
    return NodeUnderTest(roots / "permissive", devices, strict=False)


@pytest.fixture(scope="session")
def masked(roots, devices):
    """Bit 0x80 of marks is somebody else's."""
    return NodeUnderTest(roots / "masked", devices, mark_mask=0x7F)

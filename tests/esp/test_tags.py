# SPDX-License-Identifier: Apache-2.0
"""A VLAN on a VLAN, whose inner tag the kernel writes in band where it leaves: this needs the module 8021q."""

import contextlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel import bpf
from tests.bpf.node import ADDRESSES, FAR, LOCAL, NodeUnderTest, number
from tests.lab.network import inside, run

NAME = "tagged"
BPFFS = Path("/sys/fs/bpf")
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture(scope="module")
def node() -> Iterator[NodeUnderTest]:
    if not os.path.ismount(BPFFS):
        run(f"mount -t bpf bpf {BPFFS}")
    root = BPFFS / f"kmesh-test-{uuid.uuid4().hex[:8]}"
    run(f"modprobe 8021q; ip netns add {NAME}")
    with inside(NAME):
        run("ip link add out type veth peer name in; ip link set out up; ip link set in up")
        run("ip link add link out name out.5 type vlan id 5; ip link set out.5 up")
        run("ip link add link out.5 name out.5.6 type vlan id 6; ip link set out.5.6 up")
        yield NodeUnderTest(root)
    run(f"ip netns del {NAME}")
    shutil.rmtree(root)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("program", [Program.LEAK_GUARD, Program.INNER_GUARD], ids=lambda program: program.value)
def test_the_tags_of_a_vlan_on_a_vlan_hide_nothing_where_it_leaves(node, program, version):
    """The network header stays where it was, behind the tag in band."""
    named, host = ADDRESSES[version], 32 if version == 4 else 128
    nodad = "nodad" if version == 6 else ""
    run(f"ip addr replace {named[LOCAL]}/{host} dev out.5.6 {nodad}; ip route replace {named[FAR]}/{host} dev out.5.6")
    run(f"ip neigh replace {named[FAR]} lladdr 02:00:00:00:00:09 dev out.5.6")
    with bpf.opened(node.build.path(program)) as fd:
        link = bpf.check(bpf.create_link(fd, number("out"), bpf.TCX_EGRESS), "attach", "out")
    before = node.maps.counters()["dropped_by_guard"]
    try:
        with socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as sender:
            sender.bind((named[LOCAL], 0))
            with contextlib.suppress(OSError):  # how the sender learns of a drop
                sender.sendto(b"payload", (named[FAR], 9))
        assert node.maps.counters()["dropped_by_guard"] == before + 1
    finally:
        os.close(link)

# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, a folder in bpffs and a device, made for one test and removed after it."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from kmesh_bpf.kernel import bpf
from tests.kernel import tiny_bpf
from tests.kernel.device import Device
from tests.lab.network import inside, run

BPFFS = Path("/sys/fs/bpf")
NUMBERS = count()


@pytest.fixture
def new_netns() -> Iterator[Callable[[], str]]:
    """Makes a network namespace, lo up, and gives its name; as often as wanted."""
    names: list[str] = []

    def make() -> str:
        name = f"kmesh-test-{os.getpid()}-{next(NUMBERS)}"
        names.append(name)
        run(f"ip netns add {name}; ip -n {name} link set lo up")
        return name

    yield make
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def netns(new_netns: Callable[[], str]) -> Iterator[str]:
    """A network namespace, by name; the test lives in it."""
    name = new_netns()
    with inside(name):
        yield name


@pytest.fixture
def pin_root() -> Iterator[Path]:
    """A folder in bpffs."""
    if not os.path.ismount(BPFFS):
        run(f"mount -t bpf bpf {BPFFS}")
    folder = BPFFS / f"kmesh-test-{os.getpid()}-{next(NUMBERS)}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def device(netns: str, new_netns: Callable[[], str], pin_root: Path) -> Iterator[Device]:
    there = new_netns()
    run(f"ip link add dev0 type veth peer name eth0 netns {there}")
    run(f"ip addr add 10.0.0.1/24 dev dev0; ip -n {there} addr add 10.0.0.2/24 dev eth0")
    # Known neighbours: no ARP between the packets that are counted.
    run(f"ip link set dev0 address 02:00:00:00:00:01 up; ip -n {there} link set eth0 address 02:00:00:00:00:02 up")
    run("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev dev0")
    run(f"ip -n {there} neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0")
    made = Device("dev0", socket.if_nametoindex("dev0"), there, pin_root)
    yield made
    for attacher in made.attachers:
        attacher.close()


@pytest.fixture
def foreign_tcx(device: Device) -> Iterator[Callable[[int, int, int], None]]:
    """Attaches other people's programs at the end of a TCX chain, for as long as the test runs."""
    links: list[int] = []

    def attach(digit: int, attach_type: int, verdict: int = tiny_bpf.TC_ACT_UNSPEC) -> None:
        program = tiny_bpf.load(digit, verdict)
        links.append(bpf.check(bpf.lib.kmesh_link_create(program, device.ifindex, attach_type, 0), "attach", "foreign"))
        os.close(program)

    yield attach
    for link in links:
        os.close(link)

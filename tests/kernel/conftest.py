"""Network namespaces and a folder in bpffs, made for one test and removed after it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from kmesh_bpf.core.state import Link
from kmesh_bpf.kernel.links import list_links
from tests.lab.network import inside, run

BPFFS = Path("/sys/fs/bpf")
NUMBERS = count()


def links() -> tuple[Link, ...]:
    with IPRoute() as ip:
        return list_links(ip)


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

# SPDX-License-Identifier: Apache-2.0
"""A pod behind a netkit device: found, bound, and its packets marked, as of a veth. Here because many kernels lack it."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from kmesh_bpf import LinuxKernel, Settings
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.devices import decide
from kmesh_bpf.core.state import PodFlags, Program
from tests.lab.network import inside, run, socket_in

POD, REMOTE = ip_address("10.244.1.7"), ip_address("10.244.2.7")
NODE, THERE = "nknode", "nkpod"
ROOT = Path("/sys/fs/bpf/kmesh-netkit")


@pytest.fixture
def node() -> Iterator[str]:
    run("modprobe -a veth netkit 2>/dev/null || :")
    run(f"ip netns add {NODE}; ip netns add {THERE}")
    with inside(NODE):
        run("ip link set lo up; ip link add pod0 type netkit")
        run(f"for d in nk0 nk1; do ip link set $d netns {THERE} 2>/dev/null && break; done")
        run(f"ip link add eth0 type veth peer name far netns {THERE}; ip addr add 10.10.0.1/24 dev eth0")
        run(f"ip link set pod0 up; ip link set eth0 up; ip route add {POD} dev pod0; sysctl -qw net.ipv4.ip_forward=1")
        run(f"name=$(ip -n {THERE} -br link | grep -o '^nk[0-9]'); ip -n {THERE} link set $name name eth0")
        run(
            f"ip -n {THERE} addr add {POD}/32 dev eth0; ip -n {THERE} link set eth0 up; ip -n {THERE} route add default dev eth0"
        )
        yield NODE
    run(f"ip netns del {NODE}; ip netns del {THERE}")
    shutil.rmtree(ROOT, ignore_errors=True)


def test_what_a_netkit_pod_sends_to_a_managed_one_elsewhere_is_marked(node: str) -> None:
    with closing(LinuxKernel(ROOT, Settings())) as kernel:
        wanted = decide(kernel.observe().links, [ip_address("10.10.0.1")], (), [POD])
        index = socket.if_nametoindex("pod0")
        programs = {one.program for one in wanted.attachments if one.ifindex == index}
        assert programs == {Program.MARK_ENCRYPT, Program.POD_GUARD}
        assert (wanted.sources, wanted.problems) == ({POD: index}, ())
        flags = {POD: PodFlags.LOCAL, REMOTE: PodFlags.REMOTE | PodFlags.READY}
        assert kernel.apply([ops.SetPod(address, flag) for address, flag in flags.items()]) == ()
        assert kernel.apply([ops.Attach(one) for one in wanted.attachments]) == ()
        assert kernel.observe().state.attachments == wanted.attachments
        before = kernel.counters()["marked"]
        with closing(socket_in(THERE, socket.AF_INET, socket.SOCK_DGRAM)) as pod:
            for _ in range(5):
                pod.sendto(b"x", (str(REMOTE), 9))
        assert kernel.counters()["marked"] == before + 5
        assert kernel.remove_everything() == ()

# SPDX-License-Identifier: Apache-2.0
"""What an overlay's device sends around packets that our programs have marked."""

import re
import socket
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

from kmesh_bpf import LinuxKernel, Settings, claim
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.devices import decide
from tests.lab.network import run

HERE, THERE, UNMANAGED = "10.10.0.1", "10.10.0.2", "10.244.2.99"
MARKED = 0x40E0
COUNT = (
    "table ip outer { chain out { type filter hook output priority 0;\n"
    "udp dport 4789 meta mark & 0xff == 0xe0 counter\n"
    "udp dport 4789 meta mark == 0x4000 counter\n}; }"
)


def sent_around() -> list[int]:
    """Send three marked packets to an unmanaged pod; give how many left around them with our mark, and without."""
    run("nft delete table ip outer 2>/dev/null || true; nft -f -", COUNT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARKED)
        for _ in range(3):
            sock.sendto(b"x", (UNMANAGED, 9))
    return [int(count) for count in re.findall(r"packets (\d+)", run("nft list table ip outer"))]


def test_the_packet_around_one_that_goes_in_clear_does_not_ask_for_encryption(
    netns: str, new_netns: Callable[[], str], pin_root: Path
) -> None:
    run(
        f"ip link add eth0 type veth peer name far netns {new_netns()}; ip link set eth0 up; ip addr add {HERE}/24 dev eth0"
    )
    run(f"ip neigh add {THERE} lladdr 02:00:00:00:00:02 dev eth0")
    run(f"ip link add over0 type vxlan id 7 dstport 4789 local {HERE} remote {THERE}; ip link set over0 up")
    run(f"ip addr add 10.244.1.0/32 dev over0; ip route add {UNMANAGED}/32 dev over0 src 10.244.1.0")
    run(f"ip neigh add {UNMANAGED} lladdr 02:00:00:00:00:03 dev over0")
    assert sent_around() == [3, 0], "so does the kernel by itself"
    root = pin_root / "node"
    root.mkdir()
    with claim(root), closing(LinuxKernel(root, Settings())) as kernel:
        wanted = decide(kernel.observe().links, [ip_address(HERE)], (), ())
        assert kernel.apply([ops.Attach(one) for one in wanted.attachments]) == ()
        assert sent_around() == [0, 3]

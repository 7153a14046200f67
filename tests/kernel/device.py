# SPDX-License-Identifier: Apache-2.0
"""A device to attach tiny programs to, and packets through it whose marks tell which of them ran.

Each program appends a digit to the packet's mark, so a mark of 0x123 says: programs 1, 2 and 3, in this order.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.kernel.links import list_links, open_iproute, open_socket
from kmesh_bpf.kernel.programs import LoadedPrograms
from kmesh_bpf.kernel.tc import AttachMode, TcAttacher
from tests.kernel import tiny_bpf
from tests.lab.network import run, socket_in

SO_RCVMARK, SO_MARK = 75, 36
PORT = 5000


def links() -> tuple[Link, ...]:
    with open_iproute() as ip, open_socket() as sock:
        return list_links(ip, sock)


def by_name() -> dict[str, Link]:
    return {link.name: link for link in links()}


@dataclass
class Device:
    """A veth into another namespace, 10.0.0.1 here and 10.0.0.2 there, and builds of tiny programs to attach."""

    name: str
    ifindex: int
    there: str
    pin_root: Path
    attachers: list[TcAttacher] = field(default_factory=list)

    def attachment(self, program: Program, current: bool = True) -> Attachment:
        return Attachment(self.ifindex, self.name, program, current)

    def attacher(self, mode: AttachMode) -> TcAttacher:
        """Give a new one, as a daemon that starts has; the last one's process has ended."""
        for former in self.attachers:
            former.close()
        self.attachers.append(TcAttacher(self.pin_root, mode))
        return self.attachers[-1]

    def attached(self, mode: AttachMode, build: LoadedPrograms | None = None) -> frozenset[Attachment]:
        with closing(TcAttacher(self.pin_root, mode)) as another:
            return another.attached(links(), build)

    def build(self, digit: int) -> LoadedPrograms:
        """Pin three programs that append this digit."""
        folder = self.pin_root / "programs" / str(digit)
        folder.mkdir(parents=True)
        for program in Program:
            fd = tiny_bpf.load(digit)
            tiny_bpf.pin(fd, folder / program.value)
            os.close(fd)
        return LoadedPrograms(folder, self.pin_root / "maps", compiled=False)

    def mark_after_ingress(self) -> int:
        """Send a packet from there; give the mark it arrives with."""
        with (
            closing(listener(("10.0.0.1", PORT))) as receiver,
            closing(socket_in(self.there, socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ):
            sender.sendto(b"x", ("10.0.0.1", PORT))
            return received_mark(receiver)

    def mark_after_egress(self) -> int:
        """Send a packet from here; give the mark it leaves with."""
        with (
            closing(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))) as tap,
            closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ):
            tap.bind((self.name, 3))
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
            tap.settimeout(5)
            sender.sendto(b"needle", ("10.0.0.2", PORT))
            while True:
                data, controls, _, _ = tap.recvmsg(2048, 256)
                if data.endswith(b"needle"):
                    return mark_of(controls)


def listener(address: tuple[str, int]) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
    receiver.settimeout(5)
    receiver.bind(address)
    return receiver


def received_mark(receiver: socket.socket) -> int:
    return mark_of(receiver.recvmsg(2048, 256)[1])


def mark_of(controls: list[tuple[int, int, bytes]]) -> int:
    ((level, kind, data),) = controls
    assert (level, kind) == (socket.SOL_SOCKET, SO_MARK)
    return int.from_bytes(data, "little")


def eventually(mark: Callable[[], int], wanted: int) -> bool:
    """Whether packets get a mark within seconds: the kernel lets go of an unpinned link in a work queue."""
    end = time.monotonic() + 5
    while mark() != wanted:
        if time.monotonic() > end:
            return False
    return True


def foreign_filter(device: Device, direction: str, digit: int, place: str) -> None:
    """Install somebody else's filter with tc."""
    path = device.pin_root / f"foreign{digit}"
    fd = tiny_bpf.load(digit)
    tiny_bpf.pin(fd, path)
    os.close(fd)
    # Not through `ip netns exec` or `tc -n`: they hide bpffs.
    run(f"tc filter add dev {device.name} {direction} {place} bpf da object-pinned {path}")


def qdiscs() -> str:
    return run("tc qdisc show | grep -E 'clsact|ingress' || :")

# SPDX-License-Identifier: Apache-2.0
"""Three real nodes, to be held against the simulated ones: namespaces, the product's own hand on the kernel, no daemon.

The wire between them is cut: what a node's uplink emits is kept, and goes to a node only when the test says so, so that
each packet's way through one node is looked at alone, and any frame can be sent again, later, to anybody.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from kmesh_bpf import Address, LinuxKernel, Observation, Settings
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import SaId
from kmesh_bpf.kernel.interface import Failure
from kmesh_bpf.kernel.netlink import NetlinkSocket
from kmesh_bpf.kernel.programs import ensure_loaded
from kmesh_bpf.kernel.xfrm import Xfrm
from tests.lab.capture import ETH_P_ALL, PACKET_IGNORE_OUTGOING, SOL_PACKET
from tests.lab.network import WIRE, Network, Node, inside, run, socket_in
from tests.simulator.packets import Inner

PORT = 4242
MODULES = "esp4 esp6 xfrm_user veth nf_tables nft_ct nft_nat nft_masq nft_chain_nat nft_rt"
TYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
UDP, ESP = 17, 50
GATEWAY = ("10.10.0.254", "fd00:10::fe")
NOBODY = "02:00:00:00:00:fe"
"""Who the default route leads to: nobody."""


@dataclass(frozen=True)
class Seen:
    """A frame by what is to be seen of it: ``ident`` of one in clear, SPI and number of ESP."""

    src: Address
    dst: Address
    ident: int | None = None
    spi: int | None = None
    number: int | None = None


def ipv4(src: Address, dst: Address, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + src.packed + dst.packed
    return head[:10] + checksum(head) + head[12:] + payload


def ipv6(src: Address, dst: Address, protocol: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64) + src.packed + dst.packed + payload


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def datagram(inner: Inner) -> bytes:
    """Give a packet as IP and UDP, each ident by a port of its own: connection tracking takes no two for one flow."""
    body = struct.pack("!HHHHQ", 20000 + inner.ident % 40000, PORT, 16, 0, inner.ident)
    if inner.src.version == 4:
        return ipv4(inner.src, inner.dst, UDP, body)
    pseudo = inner.src.packed + inner.dst.packed + struct.pack("!IHBB", len(body), 0, 0, UDP)
    return ipv6(inner.src, inner.dst, UDP, body[:6] + checksum(pseudo + body) + body[8:])


def read(raw: bytes) -> Seen | None:
    """Read a frame that was on the wire; None: it is of no concern."""
    if raw[12:14] == TYPES[4]:
        protocol, src, dst, payload = raw[23], raw[26:30], raw[30:34], raw[34:]
    elif raw[12:14] == TYPES[6]:
        protocol, src, dst, payload = raw[20], raw[22:38], raw[38:54], raw[54:]
    else:
        return None
    ends = ip_address(src), ip_address(dst)
    if protocol == ESP:
        return Seen(*ends, spi=int.from_bytes(payload[:4], "big"), number=int.from_bytes(payload[4:8], "big"))
    if protocol == UDP and payload[2:4] == PORT.to_bytes(2, "big"):
        return Seen(*ends, ident=int.from_bytes(payload[8:16], "big"))
    return None


def completed(raw: bytes) -> bytes:
    """Give a frame in clear its checksum, which a node leaves to the device, and a veth to nobody."""
    if raw[12:14] == TYPES[4]:
        return raw[:40] + bytes(2) + raw[42:]
    body = raw[54:60] + bytes(2) + raw[62:]
    return raw[:60] + checksum(raw[22:54] + struct.pack("!IHBB", len(body), 0, 0, UDP) + body) + raw[62:]


def forged(raw: bytes, src: Address) -> bytes:
    """Give a frame another (outer) source."""
    if src.version == 4:
        head = raw[14:24] + bytes(2) + src.packed + raw[30:34]
        return raw[:14] + head[:10] + checksum(head) + head[12:] + raw[34:]
    return raw[:22] + src.packed + raw[38:]


def mac_of(namespace: str, device: str) -> str:
    (found,) = json.loads(run(f"ip -n {namespace} -j link show {device}"))
    return str(found["address"])


class RealNodes:
    """The nodes by index, from 1; pods p1a, p1b and so on. ``kernels`` are the product's, by node."""

    def __init__(self, pins: Path, settings: Mapping[int, Settings], services: Mapping[Address, Address]) -> None:
        run(f"for module in {MODULES}; do modprobe -q $module || :; done")
        self.network = Network(3)
        self._roots = {node.index: pins / f"simulated-{os.getpid()}-{node.index}" for node in self.network.nodes}
        compilers = [
            subprocess.Popen([sys.executable, "-c", _loading(root, settings[index])])
            for index, root in self._roots.items()
        ]
        for node in self.network.nodes:
            for number, letter in ((10, "a"), (11, "b")):
                self.network.add_pod(f"p{node.index}{letter}", node, number)
        for node in self.network.nodes:
            self._cut_wire(node, services)
        self._taps = {node.index: self._packets(WIRE, f"u{node.index}", listen=True) for node in self.network.nodes}
        self._pods = {name: self._packets(name, "eth0") for name in self.network.pods}
        self._gateways = {pod.name: _bytes(mac_of(pod.node, pod.device)) for pod in self.network.pods.values()}
        self._receivers = {name: self._listening(name) for name in (*self.network.pods, "n1", "n2", "n3")}
        self.kernels: dict[int, LinuxKernel] = {}
        self._sockets: dict[int, NetlinkSocket] = {}
        for compiler in compilers:
            if compiler.wait() != 0:
                raise RuntimeError("the programs could not be loaded")
        for node in self.network.nodes:
            with inside(node.name):
                self.kernels[node.index] = LinuxKernel(self._roots[node.index], settings[node.index])
                self._sockets[node.index] = NetlinkSocket()

    def close(self) -> None:
        for index, kernel in self.kernels.items():
            with inside(f"n{index}"):
                kernel.remove_everything()
                kernel.close()
        for one in (
            *self._sockets.values(),
            *self._taps.values(),
            *self._pods.values(),
            *(s for both in self._receivers.values() for s in both),
        ):
            one.close()
        self.network.close()

    def _cut_wire(self, node: Node, services: Mapping[Address, Address]) -> None:
        run(f"ip -n {WIRE} link set u{node.index} nomaster")
        in_node = f"nsenter --net=/run/netns/{node.name}"
        run(f"{in_node} sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0")
        others = [(one, f"02:00:00:00:00:{two.index:02x}") for two in self.network.nodes for one in two.addresses]
        lines = [
            f"neigh replace {address} lladdr {mac} dev eth0 nud permanent"
            for address, mac in (*others, *((one, NOBODY) for one in GATEWAY))
            if address not in node.addresses
        ]
        lines += [f"route add default via {one}" for one in GATEWAY]
        for pod in self.network.pods.values():
            if pod.node == node.name:
                mac = mac_of(pod.name, "eth0")
                lines += [f"neigh replace {one} lladdr {mac} dev {pod.device} nud permanent" for one in pod.addresses]
        run(f"ip -n {node.name} -b -", "\n".join(lines))
        tables = (
            f"table {name} services {{\nchain {hook} {{\ntype nat hook {hook} priority {priority};\n"
            + "".join(f"{name} daddr {a} dnat to {b}\n" for a, b in services.items() if a.version == version)
            + "}\n}\n"
            for version, name in ((4, "ip"), (6, "ip6"))
            for hook, priority in (("prerouting", "dstnat"), ("output", "-100"))
        )
        run(f"{in_node} nft -f -", "".join(tables))

    def _packets(self, namespace: str, device: str, *, listen: bool = False) -> socket.socket:
        with inside(namespace):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL) if listen else 0)
            if listen:
                made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            made.bind((device, ETH_P_ALL if listen else 0))
            made.setblocking(False)
        return made

    def _listening(self, namespace: str) -> list[socket.socket]:
        made = [socket_in(namespace, family, socket.SOCK_DGRAM) for family in FAMILIES.values()]
        for one in made:
            if one.family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(("", PORT))
            one.setblocking(False)
        return made

    # What is done to the nodes.

    def apply(self, index: int, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        with inside(f"n{index}"):
            return self.kernels[index].apply(operations)

    def observe(self, index: int) -> Observation:
        with inside(f"n{index}"):
            return self.kernels[index].observe()

    def added(self, index: int) -> dict[SaId, int]:
        """Give when each SA was added, in seconds since the epoch."""
        return {one.id: one.usage.added for one in Xfrm(self._sockets[index]).dump_sas()}

    @staticmethod
    def frame(inner: Inner) -> bytes:
        """Give a packet as a frame; to and from whom is written where it is sent."""
        return bytes(12) + TYPES[inner.src.version] + datagram(inner)

    def in_node(self, index: int, command: str, stdin: str | None = None) -> str:
        return run(f"nsenter --net=/run/netns/n{index} {command}", stdin)

    @staticmethod
    def can_encrypt() -> bool:
        """Tell whether this kernel has ESP: only an SA proves it."""
        made = "ip -n n1 xfrm state add src 127.0.0.1 dst 127.0.0.2 proto esp spi 9 mode tunnel"
        command = f"{made} aead 'rfc4106(gcm(aes))' 0x{9:072d} 128 && ip -n n1 xfrm state flush"
        return subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 0

    def masquerade(self, index: int, *, on: bool) -> None:
        """Have a rule that gives whatever leaves by the uplink its address, or no such rule."""
        tables = "".join(f"table {name} masquerading\ndelete table {name} masquerading\n" for name in ("ip", "ip6"))
        if on:
            rules = "{\nchain post {\ntype nat hook postrouting priority srcnat;\noifname eth0 masquerade\n}\n}\n"
            tables += "".join(f"table {name} masquerading {rules}" for name in ("ip", "ip6"))
        self.in_node(index, "nft -f -", tables)

    def send(self, pod: str, inner: Inner) -> None:
        """Send from a pod's device, whatever the source says."""
        self._pods[pod].send(self._gateways[pod] + self.frame(inner)[6:])

    def send_own(self, index: int, inner: Inner) -> None:
        with socket_in(f"n{index}", FAMILIES[inner.src.version], socket.SOCK_DGRAM) as sender:
            sender.bind((str(inner.src), 20000 + inner.ident % 40000))
            with suppress(OSError):  # XFRM refuses before anything is sent
                sender.sendto(inner.ident.to_bytes(8, "big"), (str(inner.dst), PORT))

    def inject(self, index: int, raw: bytes) -> None:
        """Send a frame to a node's uplink."""
        self._taps[index].send(_bytes(f"02:00:00:00:00:{index:02x}") + bytes(6) + raw[12:])

    # What is to be seen of them.

    def emitted(self, index: int) -> list[tuple[Seen, bytes]]:
        """Give the frames that a node has emitted since last asked."""
        found = []
        with suppress(BlockingIOError):
            while True:
                raw = self._taps[index].recv(2048)
                if seen := read(raw):
                    found.append((seen, raw if seen.ident is None else completed(raw)))
        return found

    def delivered(self, index: int) -> list[tuple[str, Address, int]]:
        """Give what arrived at a node and its pods since last asked: where, from whom, and which."""
        found = []
        for name in (f"n{index}", f"p{index}a", f"p{index}b"):
            for one in self._receivers[name]:
                with suppress(BlockingIOError):
                    while True:
                        data, sender = one.recvfrom(100)
                        found.append((name, ip_address(sender[0]), int.from_bytes(data, "big")))
        return found

    def counted(self, index: int) -> dict[str, int]:
        """Give the programs' counters and XFRM's together; their names tell them apart."""
        with inside(f"n{index}"):
            return self.kernels[index].counters() | self.kernels[index].xfrm_errors()


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _loading(root: Path, settings: Settings) -> str:
    """Give the text of a process that compiles: three beside each other take half of the time."""
    names = f"from pathlib import {type(root).__name__}; from {ensure_loaded.__module__} import *"
    return f"{names}; ensure_loaded({root!r}, {settings!r})"

# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods as network namespaces: each node has an uplink on one bridge, each pod a veth into its node."""

from __future__ import annotations

import ctypes
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

WIRE = "wire"
CLONE_NEWNET = 0x40000000
OURS = re.compile(rf"{WIRE}|n\d|p\d[abc]")
"""Names of namespaces that the lab makes, and may remove when an earlier one was cut short."""
LIBC = ctypes.CDLL(None, use_errno=True)


def run(command: str, stdin: str | None = None) -> str:
    """Run a shell command; raise with what it said if it fails."""
    done = subprocess.run(["bash", "-ec", command], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Live in a network namespace for the length of a block; sockets made there stay there."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as target:
        if LIBC.setns(target.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        try:
            yield
        finally:
            LIBC.setns(home.fileno(), CLONE_NEWNET)


def socket_in(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Make a socket in a namespace."""
    with inside(namespace):
        return socket.socket(family, kind, protocol)


def sending(name: str, network: Network) -> set[str]:
    """Give the SPIs of the SAs that a node holds for sending."""
    node = next(node for node in network.nodes if node.name == name)
    states = (run(f"ip -n {name} xfrm state list src {address}") for address in node.addresses)
    return {spi for text in states for spi in re.findall(r"spi (0x[0-9a-f]{8})", text)}


@dataclass(frozen=True)
class Pod:
    """A pod: its namespace is called like it."""

    name: str
    node: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    device: str

    def address(self, version: int) -> str:
        return str(next(address for address in self.addresses if address.version == version))


@dataclass(frozen=True)
class Node:
    """A node: its namespace is called like it, its uplink is eth0."""

    index: int

    @property
    def name(self) -> str:
        return f"n{self.index}"

    @property
    def addresses(self) -> tuple[str, str]:
        return f"10.10.0.{self.index}", f"fd00:10::{self.index:x}"

    @property
    def pod_cidrs(self) -> tuple[str, str]:
        return f"10.244.{self.index}.0/24", f"fd00:244:{self.index:x}::/64"


SYSCTLS = """
net.ipv4.ip_forward=1
net.ipv6.conf.all.forwarding=1
net.ipv4.conf.all.rp_filter=0
net.ipv4.conf.default.rp_filter=0
net.ipv6.conf.all.accept_dad=0
net.ipv6.conf.default.accept_dad=0
"""


class Network:
    """The namespaces, devices, addresses and routes; ``close`` removes them all."""

    def __init__(self, nodes: int = 3) -> None:
        self.nodes = [Node(index) for index in range(1, nodes + 1)]
        self.pods: dict[str, Pod] = {}
        self.close()
        run(
            f"ip netns add {WIRE}; ip -n {WIRE} link add br0 type bridge mcast_snooping 0; ip -n {WIRE} link set br0 up"
        )
        for node in self.nodes:
            self._make_node(node)
        self.route_between_nodes()

    def add_node(self) -> Node:
        """Make one more node on the wire."""
        node = Node(self.nodes[-1].index + 1)
        self.nodes.append(node)
        self._make_node(node)
        self.route_between_nodes()
        return node

    def attach_host(self, device: str, address: str) -> None:
        """Give the namespace that we live in a port of the wire: where an API server can be reached from every node."""
        self.detach_host(device)
        run(
            f"ip link add {device} type veth peer name uhost netns {WIRE};"
            f"ip -n {WIRE} link set uhost master br0; ip -n {WIRE} link set uhost up;"
            f"ip link set {device} up; ip addr add {address}/24 dev {device}"
        )

    def detach_host(self, device: str) -> None:
        run(f"ip link del {device} 2>/dev/null || :")

    def reboot(self, node: Node) -> None:
        """Take a node away and make it anew, as it is before it has pods and routes to the others'."""
        # The kernel takes devices away some time after their namespace, and another one of that name cannot come before.
        for pod in self.pods.values():
            if pod.node == node.name:
                run(f"ip -n {pod.name} link del eth0")
        run(f"ip -n {WIRE} link del u{node.index}; ip netns del {node.name}")
        self._make_node(node)

    def delete_node(self, node: Node) -> None:
        self.nodes.remove(node)
        run(f"ip netns del {node.name}")

    def _make_node(self, node: Node) -> None:
        v4, v6 = node.addresses
        run(
            f"ip netns add {node.name}; nsenter --net=/run/netns/{node.name} sysctl -qp -",
            SYSCTLS,
        )
        # An address of its own that stays: a node that comes back is found by neighbours that remember it.
        mac = f"02:00:00:00:00:{node.index:02x}"
        run(f"ip -n {WIRE} link add u{node.index} type veth peer name eth0 address {mac} netns {node.name}")
        run(f"ip -n {WIRE} -b -", f"link set u{node.index} master br0\nlink set u{node.index} up")
        run(
            f"ip -n {node.name} -b -",
            f"link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad",
        )

    def route_between_nodes(self) -> None:
        """Give every node its routes to the others' pods; those that are there stay."""
        for node in self.nodes:
            lines = [
                f"route replace {cidr} via {address}"
                for other in self.nodes
                if other is not node
                for cidr, address in zip(other.pod_cidrs, other.addresses, strict=True)
            ]
            run(f"ip -n {node.name} -b -", "\n".join(lines))

    def add_pod(
        self,
        name: str,
        node: Node,
        number: int,
        bridge: str | None = None,
        elsewhere: tuple[str, str] = ("", ""),
        kind: str = "veth",
    ) -> Pod:
        """Make a pod; with ``bridge`` its veth is a port of that bridge of the node (made if missing).

        ``elsewhere``: addresses that are not in the node's pod CIDRs; the other nodes get a route to each. ``kind`` of its
        device: veth or netkit.
        """
        addresses = (
            ip_address(elsewhere[0] or f"10.244.{node.index}.{number}"),
            ip_address(elsewhere[1] or f"fd00:244:{node.index:x}::{number:x}"),
        )
        v4, v6 = addresses
        run(f"ip netns add {name}")
        self.pods[name] = Pod(name, node.name, addresses, f"v{name}")
        self.plug(self.pods[name], bridge, kind)
        for other in self.nodes if elsewhere[0] else ():
            if other is not node:
                run(f"ip -n {other.name} route replace {v4} via {node.addresses[0]}")
                run(f"ip -n {other.name} route replace {v6} via {node.addresses[1]}")
        return self.pods[name]

    def plug(self, pod: Pod, bridge: str | None = None, kind: str = "veth") -> None:
        """Give a pod its device, its addresses and routes, and its node those to it; see :meth:`add_pod`."""
        v4, v6 = pod.addresses
        name, node, device = pod.name, pod.node, pod.device
        if kind == "veth":
            made = f"ip link add {device} netns {node} type veth peer name eth0 netns {name}"
        else:  # Debian 12's ip cannot name a netkit's other end: the kernel calls it nk and a number
            made = (
                f"ip -n {name} link add tmp0 type netkit; ip -n {name} link set tmp0 netns {node} name {device};"
                f"ip -n {name} link set nk0 name eth0"
            )
        run(made)
        if bridge:
            run(f"ip -n {node} link add {bridge} type bridge 2>/dev/null || true")
            host = [f"link set {device} master {bridge}", f"link set {bridge} up"]
        else:
            host = []
        gateway = bridge or device
        host += [
            f"link set {device} up",
            f"addr replace 169.254.1.1/32 dev {gateway}",
            f"addr replace fe80::1/64 dev {gateway} nodad",
            f"route replace {v4}/32 dev {gateway}",
            f"route replace {v6}/128 dev {gateway}",
        ]
        run(f"ip -n {node} -b -", "\n".join(host))
        run(
            f"ip -n {name} -b -",
            f"link set lo up\nlink set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n"
            "route add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1\nroute add default via fe80::1 dev eth0",
        )

    def delete_pod(self, name: str) -> None:
        run(f"ip netns del {name}")
        del self.pods[name]

    def close(self) -> None:
        found = [line.split()[0] for line in run("ip netns list").splitlines() if line]
        run("".join(f"ip netns del {name};" for name in found if OURS.fullmatch(name)))

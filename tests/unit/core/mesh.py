# SPDX-License-Identifier: Apache-2.0
"""A small cluster in memory: views of its nodes, for tests of the core."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from kmesh_bpf.core.state import Link
from kmesh_bpf.core.view import Key, Node, Peer, Pod, View

WINDOW = 4096


def node(index: int, boot: str = "boot", cidrs: bool = True) -> Node:
    return Node(
        f"n{index}",
        (ip_address(f"10.10.0.{index}"), ip_address(f"fd00:10::{index}")),
        f"{boot}-{index}".ljust(36, "0"),
        (ip_network(f"10.244.{index}.0/24"), ip_network(f"fd00:244:{index}::/64")) if cidrs else (),
    )


def pod(index: int, number: int = 10) -> Pod:
    return Pod(
        f"default/p{index}-{number}",
        f"n{index}",
        (ip_address(f"10.244.{index}.{number}"), ip_address(f"fd00:244:{index}::{number:x}")),
        settled=True,
    )


def key(version: int) -> Key:
    return Key(bytes([version]) * 36)


def view(here: int = 1, nodes: int = 3, spi: int = 1, traffic: bool = False, **changes) -> View:
    """Give the view of node ``here``: every node has one managed pod, every peer announces ``spi``.

    ``traffic``: they take what is sent to their own addresses encrypted.
    """
    base = View(
        node(here),
        tuple(Peer(node(i), spi, WINDOW, traffic) for i in range(1, nodes + 1) if i != here),
        tuple(pod(i) for i in range(1, nodes + 1)),
        {version: key(version) for version in range(1, spi + 1)},
        announced=spi,
    )
    return replace(base, **changes)


LINKS = (
    Link(1, "lo", "", False, ()),
    Link(2, "eth0", "veth", True, (ip_address("10.10.0.1"), ip_address("fd00:10::1")), leads_out=True),
    Link(3, "pod0", "veth", True, (), far_addresses=pod(1).addresses),
)

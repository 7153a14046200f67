# SPDX-License-Identifier: Apache-2.0
"""What stands for an object of ours in the pinned maps: map, key and value, laid out as in the contract header. Pure.

Keys that are addresses are addresses in network byte order, everything else is in this machine's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from types import MappingProxyType
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.core.view import Address, Network

HASHES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pods": ("kmesh_pods4", "kmesh_pods6"),
        "peers": ("kmesh_peers4", "kmesh_peers6"),
        "sources": ("kmesh_srcs4", "kmesh_srcs6"),
        "formers": ("kmesh_formers",),
    }
)
"""The maps that hold a mapping of a KernelState, by the mapping's name."""


ADDRESS_BYTES = {4: 4, 6: 16}
NO_PEER = PeerEntry(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a map."""

    map: str
    key: bytes
    value: bytes


def pod(address: Address, flags: int = 0) -> Entry:
    """Give the entry that says whether an address is managed."""
    return Entry(HASHES["pods"][address.version == 6], address.packed, _value("kmesh_pods4", int(flags)))


def peer(address: Address, said: PeerEntry = NO_PEER) -> Entry:
    """Give the entry of a peer's outer address."""
    name = HASHES["peers"][address.version == 6]
    members = {
        "node_id": said.node_id,
        "node_mark": said.node_mark,
        "spi": said.spi,
        "retired": said.retired,
        "incarnations": said.incarnations,
        "pair": said.pair,
    }
    return Entry(name, address.packed, contract.packed(name, "value", members))


def source(address: Address, ifindex: int = 0) -> Entry:
    """Give the entry that binds an address to a device."""
    return Entry(HASHES["sources"][address.version == 6], address.packed, _value("kmesh_srcs4", ifindex))


def pod_device(ifindex: int) -> Entry:
    """Give the entry of a device that carries bound sources only."""
    return Entry("kmesh_devices", contract.packed("kmesh_devices", "key", ifindex), _value("kmesh_devices", 0))


def former(pair: int, spi: int = 0) -> Entry:
    """Give the entry of a pair of incarnations whose SAs are gone."""
    return Entry("kmesh_formers", contract.packed("kmesh_formers", "key", pair), _value("kmesh_formers", spi))


def service(cidr: Network) -> Entry:
    """Give the entry of a Service CIDR."""
    name, packed = f"kmesh_svcs{cidr.version}", cidr.network_address.packed
    address = list(packed) if cidr.version == 6 else int.from_bytes(packed, sys.byteorder)
    key = contract.packed(name, "key", {"prefix_length": cidr.prefixlen, "address": {"address": address}})
    return Entry(name, key, _value(name, 0))


@lru_cache(maxsize=1 << 12)
def _value(name: str, number: int) -> bytes:
    """Lay out a value of one number."""
    return contract.packed(name, "value", [number])


def service_of(name: str, key: bytes) -> Network:
    """Read the key of a Service CIDR's entry."""
    found, version = contract.unpacked(name, "key", key), int(name[-1])
    return ip_network((key[-ADDRESS_BYTES[version] :], found.prefix_length))


def number_of(key: bytes) -> int:
    """Read a key that is a number."""
    return int.from_bytes(key, sys.byteorder)


def key_of(name: str) -> Callable[[bytes], Any]:
    """Give what reads the keys of a map of :data:`HASHES`."""
    return {"4": IPv4Address, "6": IPv6Address}.get(name[-1], number_of)


def _peer_of(value: Any) -> PeerEntry:
    return PeerEntry(value.node_id, value.node_mark, value.spi, value.incarnations, value.retired, value.pair)


_flags = cache(PodFlags)
VALUE_OF: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "pods": lambda value: _flags(value.flags),
        "peers": _peer_of,
        "sources": lambda value: int(value.ifindex),
        "formers": lambda value: int(value.spi),
    }
)
"""What reads the values of a mapping, by its name."""

# SPDX-License-Identifier: Apache-2.0
"""The structs of linux/xfrm.h that several messages have in common, both ways; no I/O."""

from __future__ import annotations

import socket
import sys
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from kmesh_bpf._abi import ffi
from kmesh_bpf.contract import raw
from kmesh_bpf.core.state import Mark, Policy, PolicyId
from kmesh_bpf.core.view import Address, Network
from kmesh_bpf.errors import DecodeError

FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
VERSIONS = {family: version for version, family in FAMILIES.items()}
WORD_BITS = 32
TUNNELS = 1 << 14
"""How many tunnel ends, or what is the same for all policies of a tunnel, are kept as they were read or written."""


def u32(value: int) -> bytes:
    """Encode a 32-bit number."""
    return value.to_bytes(4, sys.byteorder)


def read_u32(payload: bytes) -> int:
    """Read a 32-bit number.

    Raises:
        DecodeError: it is of another length.

    """
    if len(payload) != WORD_BITS // 8:
        raise DecodeError(f"a 32-bit attribute of {len(payload)} bytes")
    return int.from_bytes(payload, sys.byteorder)


@lru_cache(maxsize=TUNNELS)
def mark(one: Mark) -> bytes:
    """Encode a mark."""
    return raw(ffi.new("struct xfrm_mark *", (one.value, one.mask)))


def read_mark(payload: bytes | None) -> Mark | None:
    """Read a mark; None: there is none.

    Raises:
        DecodeError: it is cut short.

    """
    if payload is None:
        return None
    found = take("struct xfrm_mark", payload)[0]
    return Mark(found.v, found.m)


@cache
def _pointer_and_size(struct: str) -> tuple[Any, int]:
    return ffi.typeof(f"{struct} *"), ffi.sizeof(struct)


def take(struct: str, data: bytes) -> tuple[Any, bytes]:
    """Give the struct at the head of the data, and the data behind it (aligned as netlink does).

    Raises:
        DecodeError: it is cut short.

    """
    pointer, size = _pointer_and_size(struct)
    if len(data) < size:
        raise DecodeError(f"{struct} of {len(data)} bytes instead of {size}")
    return ffi.from_buffer(pointer, data[:size]), data[(size + 3) & ~3 :]


def put_address(target: Any, one: Address) -> None:
    """Write an address into an xfrm_address_t."""
    ffi.memmove(ffi.addressof(target), one.packed, len(one.packed))


def address(source: Any, family: int) -> Address:
    """Read an xfrm_address_t.

    Raises:
        DecodeError: of another family than IPv4 and IPv6.

    """
    return _read_address(raw(ffi.addressof(source)), family)


@lru_cache(maxsize=TUNNELS)
def _read_address(packed: bytes, family: int) -> Address:
    if family not in VERSIONS:
        raise DecodeError(f"address of unknown family {family}")
    return IPv4Address(packed[:4]) if VERSIONS[family] == 4 else IPv6Address(packed)


def network(source: Any, prefix_length: int, family: int) -> Network:
    """Read an xfrm_address_t with a prefix length.

    Raises:
        DecodeError: of another family, or it has bits behind its prefix.

    """
    return _read_network(raw(ffi.addressof(source)), prefix_length, family)


@lru_cache(maxsize=1 << 16)
def _read_network(packed: bytes, prefix_length: int, family: int) -> Network:
    """Read a selector's network; kept, for each pod's address is in several policies."""
    first = _read_address(packed, family)
    try:
        if isinstance(first, IPv4Address):
            return IPv4Network((first, prefix_length))
        return IPv6Network((first, prefix_length))
    except ValueError as error:
        raise DecodeError(f"selector {first}/{prefix_length}: {error}") from error


def put_selector(selector: Any, policy: Policy | PolicyId) -> None:
    """Write what a policy selects."""
    selector.family = FAMILIES[policy.src.version]
    put_address(selector.saddr, policy.src.network_address)
    put_address(selector.daddr, policy.dst.network_address)
    selector.prefixlen_s = policy.src.prefixlen
    selector.prefixlen_d = policy.dst.prefixlen

# SPDX-License-Identifier: Apache-2.0
"""The contract header's constants (``bpf/include/ipsec_contract.h``), read from the compiled extension.

One fact, one place: no number here, only names. In the wheel without the extension (setup.py) its place is taken by a
module with these constants alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from kmesh_bpf._abi import ffi, lib

VERSION: Final[int] = lib.KMESH_CONTRACT_VERSION

MARK_MASK: Final[int] = lib.KMESH_MARK_MASK
MARK_ENCRYPT: Final[int] = lib.KMESH_MARK_ENCRYPT
MARK_DECRYPTED: Final[int] = lib.KMESH_MARK_DECRYPTED
MARK_AGAIN: Final[int] = lib.KMESH_MARK_AGAIN
NODE_MARK_MASK: Final[int] = lib.KMESH_NODE_MARK_MASK
NODE_ID_BITS: Final[int] = lib.KMESH_NODE_ID_BITS

REQID: Final[int] = lib.KMESH_REQID
POLICY_PRIORITY: Final[int] = lib.KMESH_POLICY_PRIORITY
TC_PRIORITY: Final[int] = lib.KMESH_TC_PRIORITY
TC_HANDLE: Final[int] = lib.KMESH_TC_HANDLE

MAX_PODS: Final[int] = lib.KMESH_MAX_PODS
MAX_PEERS: Final[int] = lib.KMESH_MAX_PEERS
MAX_SERVICES: Final[int] = lib.KMESH_MAX_SERVICES
MAX_LOCAL: Final[int] = lib.KMESH_MAX_LOCAL

POD_LOCAL: Final[int] = lib.KMESH_POD_LOCAL
POD_REMOTE: Final[int] = lib.KMESH_POD_REMOTE
POD_READY: Final[int] = lib.KMESH_POD_READY
POD_CANDIDATE: Final[int] = lib.KMESH_POD_CANDIDATE
POD_PEER: Final[int] = lib.KMESH_POD_PEER
POD_OWN: Final[int] = lib.KMESH_POD_OWN

DECISION_CLEAR: Final[int] = lib.KMESH_DECISION_CLEAR

COUNTERS: Final[tuple[str, ...]] = tuple(
    name.removeprefix("KMESH_COUNT_").lower()
    for name in sorted(
        (name for name in dir(lib) if name.startswith("KMESH_COUNT_")), key=lambda name: getattr(lib, name)
    )
)
"""Names of the counters in index order, e.g. ``marked``."""


def packed(map_name: str, member: str, content: object) -> bytes:
    """Lay out a map's key or value, as ``member`` is called, from what cffi takes for its contents."""
    return raw(ffi.new(ffi.getctype(_type(map_name, member), "*"), content))


def unpacked(map_name: str, member: str, content: bytes) -> Any:
    """Give a pointer to a map's key or value that was laid out so."""
    return ffi.from_buffer(ffi.getctype(_type(map_name, member), "*"), content)


def size_of(map_name: str, member: str) -> int:
    """Give the bytes of a map's key or value."""
    return ffi.sizeof(_type(map_name, member))


def raw(struct: Any) -> bytes:
    """Give the bytes of a C struct."""
    return bytes(ffi.buffer(struct))


@cache
def _type(map_name: str, member: str) -> Any:
    return dict(ffi.typeof(f"struct {map_name}").fields)[member].type

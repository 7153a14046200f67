"""The input of a decision: an immutable snapshot of everything known (DESIGN: *view*)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType

from kmesh_bpf.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

AES_KEY_BYTES = 32
SALT_BYTES = 4
KEY_BYTES = AES_KEY_BYTES + SALT_BYTES
"""Length of a key of rfc4106(gcm(aes)): AES-256 key and 4 bytes of salt (RFC 4106 section 8.1)."""


class Key:
    """36 bytes that never show: ``repr`` hides them, comparison takes constant time, ``reveal`` hands them out."""

    __slots__ = ("_material",)

    def __init__(self, material: bytes) -> None:
        if len(material) != KEY_BYTES:
            raise ConfigError(
                f"a key is {KEY_BYTES} bytes ({AES_KEY_BYTES} key, {SALT_BYTES} salt), not {len(material)}"
            )
        self._material = bytes(material)

    def reveal(self) -> bytes:
        """Give the bytes, for derivation and for the kernel; whoever calls this must not print them."""
        return self._material

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._material, other._material)

    def __hash__(self) -> int:
        return hash(self._material)

    def __repr__(self) -> str:
        return "Key(hidden)"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its ``KmeshNodeInfo`` tells it.

    ``addresses`` keep the text of the API object's order; ``boot_id`` is the node's *incarnation*, as the KmeshNodeInfo
    calls it: for this node whatever :mod:`kmesh_bpf.core.incarnation` decides, and never the kernel's boot id.
    """

    name: str
    addresses: tuple[Address, ...]
    boot_id: str
    pod_cidrs: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node that has published a ``KmeshNodeInfo``.

    ``spi`` is the highest key version it can decrypt; ``replay_window`` its announced anti-replay window in packets:
    0 where it announced no ESN (a Go node). ``node_traffic``: it takes what is sent to its own addresses encrypted, and
    sends so itself (Go nodes, and earlier versions of ours, do not); of these not the ``unconfirmed`` ones, which the
    cluster's own record of the node has not. ``alive``: neither it nor its announcement is gone or about to go.
    ``vouched``: that record does not contradict its addresses. The node's pod CIDRs are those of that record, none
    where there is no record.
    """

    node: Node
    spi: int
    replay_window: int = 0
    node_traffic: bool = False
    alive: bool = True
    vouched: bool = True
    unconfirmed: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Pod:
    """A *managed* pod: enrolled, with addresses of its own. ``settled``: it runs, and nobody has asked it to end."""

    name: str
    node: str
    addresses: tuple[Address, ...]
    settled: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Everything a plan depends on, but for what the kernel already holds.

    ``keys`` maps key version (SPI) to the cluster's pre-shared key, the previous ones included. ``announced`` is the
    version in our own KmeshNodeInfo, 0 before the first; ``announced_at`` when it was written, in the same seconds as
    the ``now`` given to the planner. ``services`` are the cluster's Service CIDRs; ``candidates`` other addresses that
    DNAT may turn into a pod's: of Services outside these CIDRs, and of all nodes. ``problems`` are sentences on claims
    that do not hold (of pods, nodes, announcements).
    """

    node: Node
    peers: tuple[Peer, ...] = ()
    pods: tuple[Pod, ...] = ()
    keys: Mapping[int, Key] = field(default_factory=lambda: MappingProxyType({}))
    services: tuple[Network, ...] = ()
    candidates: frozenset[Address] = frozenset()
    problems: tuple[str, ...] = ()
    announced: int = 0
    announced_at: float = 0.0

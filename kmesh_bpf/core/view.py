# SPDX-License-Identifier: Apache-2.0
"""The input of a decision: an immutable snapshot of everything known (docs/design.md, "Words")."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from operator import itemgetter
from types import MappingProxyType

from kmesh_bpf.core.shared import SharedMap
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
    where there is no record. ``sends``: the lowest key version that it sends with, to whomever; 0: it does not tell (a
    Go node, an earlier version of ours).
    """

    node: Node
    spi: int
    replay_window: int = 0
    node_traffic: bool = False
    alive: bool = True
    vouched: bool = True
    unconfirmed: frozenset[Address] = frozenset()
    sends: int = 0


@dataclass(frozen=True, slots=True)
class Pod:
    """A *managed* pod: enrolled, with addresses of its own. ``settled``: it runs, and nobody has asked it to end."""

    name: str
    node: str
    addresses: tuple[Address, ...]
    settled: bool = False


class Peers(Collection[Peer]):
    """Peers by name, immutable, in parts that one view shares with the next; as a collection in the order of names.

    What two views differ in is found without going through all peers.
    """

    __slots__ = ("_by_name", "_names")

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self._by_name = SharedMap[Peer]().changed({peer.node.name: peer for peer in peers})
        self._names = frozenset(name for name, _ in self._by_name.items())

    @classmethod
    def of(cls, peers: Collection[Peer]) -> Peers:
        """Give peers by name: what is given, if it is that already; of several of one name, the last."""
        return peers if isinstance(peers, Peers) else cls(peers)

    @property
    def names(self) -> frozenset[str]:
        """The names; the very same as before where none has come or gone."""
        return self._names

    def get(self, name: str) -> Peer | None:
        """Give the peer of a name, if there is one."""
        return self._by_name.get(name)

    def changed(self, edits: Mapping[str, Peer | None]) -> Peers:
        """Give these, with some put in place or, where None, taken out; if none is another, these themselves."""
        by_name = self._by_name.changed(edits)
        if by_name is self._by_name:
            return self
        made = Peers()
        made._by_name = by_name
        made._names = _renamed(self._names, edits)
        return made

    def changes(self, before: Peers) -> Iterator[tuple[str, Peer | None, Peer | None]]:
        """Give the names of which the peer is another object than before, what it was, what it is; None: not there."""
        return self._by_name.changes(before._by_name)

    def __iter__(self) -> Iterator[Peer]:
        return (peer for _, peer in sorted(self._by_name.items(), key=itemgetter(0)))

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, peer: object) -> bool:
        return isinstance(peer, Peer) and self.get(peer.node.name) == peer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Peers) and (self is other or list(self) == list(other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Peers({list(self)})"


class Pods(Collection[Pod]):
    """Managed pods by node, immutable and shared: where a node's pods stay as they are, its tuple is the very same.

    Whoever has planned for a node goes by that: equal is not asked, the same is enough. As a collection in the order of
    nodes' names.
    """

    __slots__ = ("_by_node", "_nodes", "_size")

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        by_node: dict[str, list[Pod]] = {}
        for pod in pods:
            by_node.setdefault(pod.node, []).append(pod)
        self._by_node = SharedMap[tuple[Pod, ...]]().changed({node: tuple(found) for node, found in by_node.items()})
        self._nodes = frozenset(by_node)
        self._size = sum(map(len, by_node.values()))

    @classmethod
    def of(cls, pods: Collection[Pod]) -> Pods:
        """Give pods by node: what is given, if it is that already."""
        return pods if isinstance(pods, Pods) else cls(pods)

    @property
    def nodes(self) -> frozenset[str]:
        """The names of nodes that have any; the very same as before where that has not changed."""
        return self._nodes

    def on(self, node: str) -> tuple[Pod, ...]:
        """Give the pods of a node."""
        return self._by_node.get(node) or ()

    def changed(self, nodes: Mapping[str, tuple[Pod, ...]]) -> Pods:
        """Give these pods, with those of some nodes replaced; nodes whose pods are equal keep their tuple."""
        new = {name: pods for name, pods in nodes.items() if pods != self.on(name)}
        if not new:
            return self
        made = Pods()
        made._size = self._size + sum(len(pods) - len(self.on(name)) for name, pods in new.items())
        edits = {name: pods or None for name, pods in new.items()}
        made._by_node = self._by_node.changed(edits)
        made._nodes = _renamed(self._nodes, edits)
        return made

    def changes(self, before: Pods) -> Iterator[tuple[str, tuple[Pod, ...], tuple[Pod, ...]]]:
        """Give the nodes whose pods are another tuple than before, what they were, what they are."""
        for node, old, new in self._by_node.changes(before._by_node):
            yield node, old or (), new or ()

    def __iter__(self) -> Iterator[Pod]:
        return chain.from_iterable(pods for _, pods in sorted(self._by_node.items(), key=itemgetter(0)))

    def __len__(self) -> int:
        return self._size

    def __contains__(self, pod: object) -> bool:
        return isinstance(pod, Pod) and pod in self.on(pod.node)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pods) and (
            self is other or dict(self._by_node.items()) == dict(other._by_node.items())
        )

    def __hash__(self) -> int:
        return hash(frozenset(self._by_node.items()))

    def __repr__(self) -> str:
        return f"Pods({list(self)})"


def _renamed(names: frozenset[str], edits: Mapping[str, object]) -> frozenset[str]:
    """Give the names that there are after some were put in place, or, where None, taken out."""
    come = {name for name, one in edits.items() if one is not None and name not in names}
    gone = {name for name, one in edits.items() if one is None and name in names}
    return names.union(come).difference(gone) if come or gone else names


@dataclass(frozen=True, slots=True)
class View:
    """Everything a plan depends on, but for what the kernel already holds.

    ``peers``, ``pods``: best as :class:`Peers` and :class:`Pods`, so that a plan can tell what has changed. ``keys``
    maps key version (SPI) to the cluster's pre-shared key, the previous ones included. ``announced`` is the version in
    our own KmeshNodeInfo, 0 before the first; ``announced_at`` when it was written, in the same seconds as the ``now``
    given to the planner.
    ``services`` are the cluster's Service CIDRs; ``candidates`` other addresses that DNAT may turn into a pod's: of
    Services outside these CIDRs, and of all nodes. ``contested``: addresses that a pod claims and a node has got: what
    cannot be sent there encrypted is not sent. ``problems`` are sentences on claims that do not hold (of pods, nodes,
    announcements).
    """

    node: Node
    peers: Collection[Peer] = ()
    pods: Collection[Pod] = ()
    keys: Mapping[int, Key] = field(default_factory=lambda: MappingProxyType({}))
    services: tuple[Network, ...] = ()
    candidates: frozenset[Address] = frozenset()
    contested: frozenset[Address] = frozenset()
    problems: tuple[str, ...] = ()
    announced: int = 0
    announced_at: float = 0.0

"""The input of a decision: an immutable snapshot of everything known (docs/design.md, "Words")."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain
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


class Pods(Collection[Pod]):
    """Managed pods by node, immutable and shared: where a node's pods stay as they are, its tuple is the very same.

    Whoever has planned for a node goes by that: equal is not asked, the same is enough.
    """

    __slots__ = ("_by_node", "_nodes", "_size")

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        by_node: dict[str, list[Pod]] = {}
        for pod in pods:
            by_node.setdefault(pod.node, []).append(pod)
        self._by_node: Mapping[str, tuple[Pod, ...]] = {node: tuple(found) for node, found in by_node.items()}
        self._nodes = frozenset(by_node)
        self._size = sum(map(len, by_node.values()))

    @classmethod
    def of(cls, pods: Collection[Pod]) -> Pods:
        """Give pods by node: what is given, if it is that already."""
        return pods if isinstance(pods, Pods) else cls(pods)

    @property
    def by_node(self) -> Mapping[str, tuple[Pod, ...]]:
        """The pods of each node that has any."""
        return self._by_node

    @property
    def nodes(self) -> frozenset[str]:
        """The names of nodes that have any; the very same as before where that has not changed."""
        return self._nodes

    def on(self, node: str) -> tuple[Pod, ...]:
        """Give the pods of a node."""
        return self._by_node.get(node, ())

    def changed(self, nodes: Mapping[str, tuple[Pod, ...]]) -> Pods:
        """Give these pods, with those of some nodes replaced; nodes whose pods are equal keep their tuple."""
        new = {name: pods for name, pods in nodes.items() if pods != self.on(name)}
        if not new:
            return self
        made = Pods()
        made._size = self._size + sum(len(pods) - len(self.on(name)) for name, pods in new.items())
        by_node = dict(self._by_node)  # of thousands of nodes, in some microseconds: no loop over them
        for name, pods in new.items():
            if pods:
                by_node[name] = pods
            else:
                del by_node[name]
        made._by_node = by_node
        same = all(bool(pods) == (name in self._nodes) for name, pods in new.items())
        made._nodes = self._nodes if same else frozenset(by_node)
        return made

    def __iter__(self) -> Iterator[Pod]:
        return chain.from_iterable(self._by_node.values())

    def __len__(self) -> int:
        return self._size

    def __contains__(self, pod: object) -> bool:
        return isinstance(pod, Pod) and pod in self.on(pod.node)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pods) and self._by_node == other._by_node

    def __hash__(self) -> int:
        return hash(frozenset(self._by_node.items()))

    def __repr__(self) -> str:
        return f"Pods({list(self)})"


@dataclass(frozen=True, slots=True)
class View:
    """Everything a plan depends on, but for what the kernel already holds.

    ``pods``: best as :class:`Pods`, so that a plan can tell which nodes' have changed. ``keys`` maps key version (SPI)
    to the cluster's pre-shared key, the previous ones included. ``announced`` is the version in our own KmeshNodeInfo,
    0 before the first; ``announced_at`` when it was written, in the same seconds as the ``now`` given to the planner.
    ``promised``: the highest one that may be in it by now, as it was handed over to be written; 0: none but that.
    ``services`` are the cluster's Service CIDRs; ``candidates`` other addresses that DNAT may turn into a pod's: of
    Services outside these CIDRs, and of all nodes. ``contested``: addresses that a pod claims and a node has got: what
    cannot be sent there encrypted is not sent. ``problems`` are sentences on claims that do not hold (of pods, nodes,
    announcements).
    """

    node: Node
    peers: tuple[Peer, ...] = ()
    pods: Collection[Pod] = ()
    keys: Mapping[int, Key] = field(default_factory=lambda: MappingProxyType({}))
    services: tuple[Network, ...] = ()
    candidates: frozenset[Address] = frozenset()
    contested: frozenset[Address] = frozenset()
    problems: tuple[str, ...] = ()
    announced: int = 0
    announced_at: float = 0.0
    promised: int = 0

    @property
    def awaited(self) -> int:
        """The highest key version that peers may send with."""
        return max(self.announced, self.promised)

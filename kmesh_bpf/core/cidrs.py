# SPDX-License-Identifier: Apache-2.0
"""Which peers' pods may be selected by pod CIDR, because that selects the same pods as their addresses do."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import NamedTuple

from kmesh_bpf.core.view import Address, Network, Node


class _Range(NamedTuple):
    """A CIDR as numbers, so that ranges sort and compare fast."""

    version: int
    first: int
    last: int
    node: str


LEEWAY = 0.9
"""The share of the bound that must be fallen below before addresses are selected one by one again."""


def too_many(addresses: int, limit: int, *, wide: bool) -> bool:
    """Tell whether so many managed addresses of other nodes are more than are selected one by one.

    ``wide``: the kernel's policies select by pod CIDR. Then the limit is lower: a cluster that is about as large as it
    does not have all policies replaced with each pod that comes and goes.
    """
    return addresses > (int(limit * LEEWAY) if wide else limit)


class Ranges:
    """Which nodes' pods their pod CIDRs select, all of them and nothing else; remembered from one view to the next.

    That is so if a node's CIDRs hold all addresses of its managed pods, overlap with no other node's, and hold neither
    an address of a managed pod elsewhere nor of a node.
    """

    def __init__(self) -> None:
        self._ranges: list[_Range] = []
        self._starts: list[tuple[int, int]] = []
        self._names: frozenset[str] = frozenset()
        self._misfits: dict[Address, tuple[str, str]] = {}
        self._wrong: Counter[str] = Counter()

    def begin(self, nodes: Iterable[Node], owners: Mapping[Address, str]) -> None:
        """Take in all nodes, and the node of each managed pod's address."""
        nodes = tuple(nodes)
        ranges = sorted(one for node in nodes for one in _ranges(node))
        overlapping = _overlapping(ranges)
        self._ranges = [one for one in ranges if one.node not in overlapping]
        self._starts = [(one.version, one.first) for one in self._ranges]
        around_nodes = {self._holder(address) for node in nodes for address in node.addresses}
        self._names = frozenset(one.node for one in self._ranges) - around_nodes
        self._misfits, self._wrong = {}, Counter()
        self.move(owners)

    def move(self, owners: Mapping[Address, str | None]) -> set[str]:
        """Take in addresses that have another owner, or none; give the nodes of which the answer may be another."""
        concerned: set[str] = set()
        for address, owner in owners.items():
            concerned.update(self._misfits.get(address, ()))
            if address in self._misfits:
                self._wrong.subtract(self._misfits.pop(address))
            if owner is not None:
                self._place(address, owner)
            concerned.update(self._misfits.get(address, ()))
        return concerned

    def fit(self, name: str) -> bool:
        """Tell whether a node's CIDRs will do."""
        return name in self._names and not self._wrong[name]

    def _place(self, address: Address, owner: str) -> None:
        holder = self._holder(address)
        if holder != owner:
            self._misfits[address] = (holder, owner)
            self._wrong.update((holder, owner))

    def _holder(self, address: Address) -> str:
        """Give the node in whose CIDR an address is, "": in none's."""
        at = bisect_right(self._starts, (address.version, int(address))) - 1
        if at < 0:
            return ""
        one = self._ranges[at]
        return one.node if one.version == address.version and int(address) <= one.last else ""


def _ranges(node: Node) -> Iterator[_Range]:
    families: tuple[list[Network], list[Network]] = (
        list(collapse_addresses(cidr for cidr in node.pod_cidrs if isinstance(cidr, IPv4Network))),
        list(collapse_addresses(cidr for cidr in node.pod_cidrs if isinstance(cidr, IPv6Network))),
    )
    for cidr in (*families[0], *families[1]):
        yield _Range(cidr.version, int(cidr.network_address), int(cidr.broadcast_address), node.name)


def _overlapping(ranges: list[_Range]) -> set[str]:
    """Give the nodes one of whose ranges overlaps with another node's. ``ranges`` are sorted."""
    found: set[str] = set()
    furthest: _Range | None = None
    for one in ranges:
        if furthest is None or furthest.version != one.version or furthest.last < one.first:
            furthest = one
            continue
        if furthest.node != one.node:
            found.update((furthest.node, one.node))
        if one.last > furthest.last:
            furthest = one
    return found

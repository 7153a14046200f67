"""Which peers' pods may be selected by pod CIDR, because that selects the same pods as their addresses do."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import NamedTuple

from kmesh_bpf.core.policies import ANY
from kmesh_bpf.core.state import Policy
from kmesh_bpf.core.view import Address, Network, Node, View


class _Range(NamedTuple):
    """A CIDR as numbers, so that ranges sort and compare fast."""

    version: int
    first: int
    last: int
    node: str


LEEWAY = 0.9
"""The share of the bound that must be fallen below before addresses are selected one by one again."""


def bound(policies: Iterable[Policy], limit: int) -> int:
    """Give the limit for :func:`by_cidr`, lower once the kernel's ``policies`` select by pod CIDR.

    A cluster that is about as large as the limit does not have all policies replaced with each pod that comes and goes.
    """
    above = any(one.dst.prefixlen < one.dst.max_prefixlen and one.src == ANY[one.src.version] for one in policies)
    return int(limit * LEEWAY) if above else limit


def by_cidr(view: View, owner: Mapping[Address, str], ready: Collection[str], limit: int) -> frozenset[str]:
    """Give the names of the ready peers to be selected by pod CIDR; none up to ``limit`` managed pods' addresses.

    A peer's CIDRs will do if they hold all addresses of its managed pods, one at least, overlap with no other node's,
    and hold neither an address of a managed pod elsewhere nor of a node.
    """
    if sum(1 for node in owner.values() if node != view.node.name) <= limit:
        return frozenset()
    nodes = (view.node, *(peer.node for peer in view.peers))
    ranges = sorted(one for node in nodes for one in _ranges(node))
    wrong = _overlapping(ranges)
    ranges = [one for one in ranges if one.node not in wrong]
    starts = [(one.version, one.first) for one in ranges]
    whose = {address: "" for node in nodes for address in node.addresses}
    for address, node in (*whose.items(), *owner.items()):
        at = bisect_right(starts, (address.version, int(address))) - 1
        inside = at >= 0 and ranges[at].version == address.version and int(address) <= ranges[at].last
        holder = ranges[at].node if inside else ""
        if holder != node:
            wrong.update((holder, node))
    populated = frozenset(owner.values())
    return frozenset(one.node for one in ranges if one.node in ready and one.node in populated) - wrong


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

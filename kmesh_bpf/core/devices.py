"""Which programs belong on which devices of the node's network namespace."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.core.view import Address

OVERLAY_KINDS = frozenset({"vxlan", "geneve", "gretap", "ipip", "ip6tnl"})
"""Devices (IFLA_INFO_KIND) that carry pod traffic to other nodes inside packets between nodes.

Flannel, Calico, Cilium: vxlan, geneve, ipip; Antrea may use gretap, kube-router ip6tnl for IPv6.
"""


def attachments(
    links: Iterable[Link], node_addresses: Iterable[Address], uplinks: Collection[str]
) -> frozenset[Attachment]:
    """Give the attachments for these links.

    Uplinks are the devices that carry one of the node's addresses and the overlay devices; ``uplinks``, if any are
    named, replace that choice. A veth whose other end lives elsewhere is a pod's, unless it is an uplink.
    """
    addresses = frozenset(node_addresses)
    found = set()
    for link in links:
        if _is_uplink(link, addresses, uplinks):
            found.add(Attachment(link.ifindex, link.name, Program.MARK_DECRYPT))
            found.add(Attachment(link.ifindex, link.name, Program.LEAK_GUARD))
        elif link.kind == "veth" and link.peer_elsewhere:
            found.add(Attachment(link.ifindex, link.name, Program.MARK_ENCRYPT))
    return frozenset(found)


def missing_uplinks(links: Iterable[Link], uplinks: Iterable[str]) -> tuple[str, ...]:
    """Give the names asked for that no device has, in the order asked."""
    names = {link.name for link in links}
    return tuple(name for name in uplinks if name not in names)


def _is_uplink(link: Link, node_addresses: frozenset[Address], uplinks: Collection[str]) -> bool:
    if uplinks:
        return link.name in uplinks
    return link.kind in OVERLAY_KINDS or not node_addresses.isdisjoint(link.addresses)

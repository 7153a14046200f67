# SPDX-License-Identifier: Apache-2.0
"""Between which addresses of two nodes their tunnels lead."""

from __future__ import annotations

from collections.abc import Mapping

from kmesh_bpf.core.view import Address, Node

Ends = tuple[Address, Address]
"""The outer addresses of a tunnel: ours, theirs."""


def tunnels(local: Node, peer: Node) -> Mapping[int, Ends]:
    """Give the outer addresses for each inner family: the first ones of that family that both nodes have, else any."""
    ends = {}
    for version in (4, 6):
        ours, theirs = local_end(local, version), local_end(peer, version)
        if ours is not None and theirs is not None:
            ends[version] = (ours, theirs)
    return {inner: ends.get(inner, next(iter(ends.values()))) for inner in (4, 6)} if ends else {}


def local_end(node: Node, version: int) -> Address | None:
    """Give a node's end of its tunnels over an IP version; None: it has no address of that."""
    return next((address for address in node.addresses if address.version == version), None)

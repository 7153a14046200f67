# SPDX-License-Identifier: Apache-2.0
"""Peers that went, and may come back: how long their SAs stay, and what is remembered of them afterwards. Pure.

A sequence must never start anew under a key that was in use, and a key is made of the two nodes' addresses and
incarnations only. So what goes is remembered as a *former*, the tunnel (:func:`keys.pair`) and the highest key version
used, in the kernel, before its SAs go (:mod:`kmesh_bpf.core.diff`). None of its versions is made again as long as this
node is who it is; with a new incarnation of this node all formers are forgotten, for none of their keys can come back.

What contract version 2 has left goes by the two incarnations alone (:func:`marks.second_pair`), so it stands for all
tunnels of that pair. Of a peer that went during an upgrade from contract version 1 not even that is known: its former
stands for everybody's. Whoever comes next and is meant by such a one is taken for the peer that went, which costs one
new incarnation and lets no key be used twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kmesh_bpf.core import keys, marks
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.state import PeerEntry, Sa, SaId
from kmesh_bpf.core.tunnels import Ends, tunnels
from kmesh_bpf.core.view import Address, Node

DEPARTED_LINGER = 30.0
"""Seconds for which SAs of a peer that is not in the view any more stay, from when it was first missed: its
announcement may be back in a moment, and then nothing is lost."""


@dataclass(frozen=True, slots=True)
class Partings:
    """What remains of peers that the plan has no place for.

    ``peers`` and ``sas`` stay for a while; ``departing``: since when each fingerprint of theirs is missed, in the
    planner's clock; ``formers``: all that must be remembered, by tunnel (PeerEntry.pair).
    """

    peers: Mapping[Address, PeerEntry]
    sas: Mapping[SaId, Sa]
    departing: Mapping[int, float]
    formers: Mapping[int, int]


def partings(
    local: Node,
    mirror: Mirror,
    astray: Iterable[Address],
    planned: Mapping[Address, PeerEntry],
    departed: Mapping[int, float],
    now: float,
) -> Partings:
    """Tell what stays, and what is to be remembered, of peers in the kernel that are not ``planned``, or otherwise.

    ``astray``: the addresses of at least all of these. ``departed``: ``departing`` of the plan before; whoever is not
    in it is missed from now on.
    """
    if mirror.observation.incarnation != local.boot_id:
        return Partings({}, {}, {}, {})  # all there is was made for another incarnation of ours
    peers: dict[Address, PeerEntry] = {}
    sas: dict[SaId, Sa] = {}
    departing: dict[int, float] = {}
    remembered = dict(mirror.state.formers)
    for address in astray:
        entry = mirror.state.peers[address]
        held = mirror.by_remote.get(address, {})
        used = highest_version(entry, held.values())
        wanted = planned.get(address)
        if not used or (wanted is not None and wanted.incarnations == entry.incarnations):
            continue
        since = departed.get(entry.incarnations, now)
        if wanted is None and now - since < DEPARTED_LINGER:
            departing[entry.incarnations] = since
            peers[address] = entry
            sas.update(held)
        else:
            remembered[entry.pair] = max(used, remembered.get(entry.pair, 0))
    return Partings(peers, sas, departing, remembered)


def used_versions(local: Node, mirror: Mirror, otherwise: Iterable[Address]) -> dict[int, int]:
    """Give the highest key version by tunnel (PeerEntry.pair), of those whose SAs are gone, or go with this plan.

    ``otherwise``: addresses of peers to be planned that the kernel holds for other incarnations.
    """
    if mirror.observation.incarnation != local.boot_id:
        return {}
    highest = dict(mirror.state.formers)
    for address in otherwise:
        entry = mirror.state.peers[address]
        version = highest_version(entry, mirror.by_remote.get(address, {}).values())
        highest[entry.pair] = max(version, highest.get(entry.pair, 0))
    return highest


def pairs(local: Node, peer: Node) -> set[int]:
    """Give what formers of the tunnels between two nodes go by, but for :data:`marks.UNKNOWN_PAIR`."""
    ends = set(tunnels(local, peer).values())
    return {marks.second_pair(local, peer), *(keys.pair(*one, local.boot_id, peer.boot_id) for one in ends)}


def used_with(local: Node, peer: Node, versions: Mapping[int, int]) -> dict[Ends, int]:
    """Give the highest key version that may have been in use before, 0: none, for each tunnel between two nodes.

    ``versions``: as :func:`used_versions` gives them.
    """
    ends = set(tunnels(local, peer).values())
    if not versions:
        return dict.fromkeys(ends, 0)
    of_all = max(versions.get(marks.second_pair(local, peer), 0), versions.get(marks.UNKNOWN_PAIR, 0))
    return {one: max(versions.get(keys.pair(*one, local.boot_id, peer.boot_id), 0), of_all) for one in ends}


def reuses(planned: Iterable[Sa], held: Mapping[SaId, Sa], used: int) -> bool:
    """Tell whether an SA would have to be made under a key that was in use: of a version up to ``used``."""
    return any(sa.spi <= used and held.get(sa.id) != sa for sa in planned)


def highest_version(entry: PeerEntry, sas: Collection[Sa]) -> int:
    """Give the highest key version that was ever in use with a peer, 0: none."""
    return max((entry.spi, entry.retired, *(sa.spi for sa in sas)))


def sentence(peer: str) -> str:
    """Tell that a peer is back under keys that were in use, and the way out."""
    return (
        f"peer {peer}: it is back, and its keys were in use before; it gets no packet until there are new ones, within "
        "10 minutes; at once: kmeshctl secret create"
    )

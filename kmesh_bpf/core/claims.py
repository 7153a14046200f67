# SPDX-License-Identifier: Apache-2.0
"""Which peers' claims hold, where several nodes claim an address, or a node that of a pod. Pure.

Who loses is quarantined: nothing is sent to it, and its pods are no ready ones, so that a wrong claim ends in a counted
drop. Its SAs stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kmesh_bpf.core import marks
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.state import Observation, PeerEntry, Program, Sa, SaId
from kmesh_bpf.core.view import Address, Node, Peer, Pod, View

NAMES = 5
"""Peers named in one sentence."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a node sees with its own eyes, for whoever makes a view.

    ``carried``: addresses at the other ends of the devices that are taken for pods'; ``tunnel_ends``: addresses of
    peers that SAs lead to or come from, and not all that peers say are theirs besides.
    """

    carried: frozenset[Address] = frozenset()
    tunnel_ends: frozenset[Address] = frozenset()


def evidence(observed: Observation, tunnel_ends: frozenset[Address] | None = None) -> Evidence:
    """Give what an observation says of who has which address. ``tunnel_ends``: if that is known (:class:`Mirror`)."""
    pods = {one.ifindex for one in observed.state.attachments if one.program is Program.MARK_ENCRYPT}
    far = (link.far_addresses or () for link in observed.links if link.ifindex in pods)
    if tunnel_ends is None:
        tunnel_ends = Mirror(observed).tunnel_ends()
    return Evidence(frozenset(address for addresses in far for address in addresses), tunnel_ends)


@dataclass(frozen=True, slots=True)
class Claims:
    """The names of the peers whose addresses are theirs alone, and a sentence on each of the others."""

    accepted: frozenset[str]
    quarantined: tuple[str, ...] = ()


def settle(
    view: View, fingerprints: Mapping[str, int], mirror: Mirror, pods: Callable[[Address], Pod | None]
) -> Claims:
    """Decide on the peers of a view.

    ``fingerprints`` of the pairs of incarnations are by peer's name; ``pods`` gives the managed pod that claims an
    address. Two KmeshNodeInfos with one address would take turns in one SA.
    """
    ranks = _ranks(view, fingerprints, mirror)
    owners = dict.fromkeys(view.node.addresses, f"of this node, {view.node.name}")
    accepted, quarantined = [], []
    for peer in sorted(view.peers, key=lambda one: ranks[one.node.name]):
        taken = next((one for one in _owners(peer, owners, pods) if one is not None), None)
        if taken is None:
            owners.update(dict.fromkeys(peer.node.addresses, f"of peer {peer.node.name}"))
            accepted.append(peer.node.name)
        else:
            quarantined.append(_double_claim(peer, *taken))
    return Claims(frozenset(accepted), tuple(quarantined))


def keep_quarantined(
    quarantined: Iterable[Node], mirror: Mirror, planned: Mapping[Address, PeerEntry]
) -> tuple[dict[Address, PeerEntry], dict[SaId, Sa]]:
    """Give entries and SAs of quarantined peers as they are: made again later, they would count from the start."""
    peers: dict[Address, PeerEntry] = {}
    sas: dict[SaId, Sa] = {}
    for address in (address for node in quarantined for address in node.addresses):
        if address in mirror.state.peers and address not in planned:
            peers[address] = mirror.state.peers[address]
            sas.update(mirror.by_remote.get(address, {}))
    return peers, sas


def crowd(names: Sequence[str], node_mark_mask: int) -> str:
    """Say that there is no node id for some peers, and the way out."""
    more, room = f" and {len(names) - NAMES} more" if len(names) > NAMES else "", marks.capacity(node_mark_mask)
    return (
        f"--node-mark-mask {node_mark_mask:#x} has room for {room} peers, and there are more: "
        f"nothing is sent to {', '.join(names[:NAMES])}{more}; give the mask more bits"
    )


def _owners(
    peer: Peer, owners: Mapping[Address, str], pods: Callable[[Address], Pod | None]
) -> Iterator[tuple[Address, str] | None]:
    for address in peer.node.addresses:
        pod = pods(address)
        owner = owners.get(address) or (f"of pod {pod.name} on node {pod.node}" if pod is not None else None)
        yield (address, owner) if owner is not None else None


def _ranks(
    view: View, fingerprints: Mapping[str, int], mirror: Mirror
) -> dict[str, tuple[bool, bool, bool, bool, str]]:
    """Give what peers that may claim the same are ordered by, by name: who comes first keeps it.

    First who is not contradicted by the cluster's own record, then who lives, then who the kernel knows: by this very
    pair of incarnations (ours may be changing right now), or by these very addresses (it has rebooted); then the name.
    """
    of_pair = mirror.fingerprints
    before = replace(view.node, boot_id=mirror.observation.incarnation or view.node.boot_id)
    return {
        peer.node.name: (
            not peer.vouched,
            not peer.alive,
            of_pair.keys().isdisjoint((fingerprints[peer.node.name], marks.incarnations(before, peer.node))),
            not _is_known(frozenset(peer.node.addresses), mirror),
            peer.node.name,
        )
        for peer in view.peers
    }


def _is_known(addresses: frozenset[Address], mirror: Mirror) -> bool:
    """Tell whether the peer map holds just these as one peer's."""
    entry = next((mirror.state.peers.get(address) for address in addresses), None)
    return entry is not None and mirror.fingerprints[entry.incarnations].keys() == addresses


def _double_claim(peer: Peer, address: Address, owner: str) -> str:
    name = peer.node.name
    if not peer.alive:
        way_out = f"its Node is gone, or about to go; delete KmeshNodeInfo {name}"
    elif not peer.vouched:
        way_out = f"its Node object has no such address; mend what {name} announces"
    else:
        way_out = f"mend {name}, or delete the other one if that is gone"
    return f"peer {name} claims {address}, which is {owner}; quarantined, nothing is sent to {name}: {way_out}"

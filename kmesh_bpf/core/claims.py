"""Which peers' claims hold, where several nodes claim an address, or a node that of a pod. Pure.

Who loses is quarantined: nothing is sent to it, and its pods are no ready ones, so that a wrong claim ends in a counted
drop. Its SAs stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kmesh_bpf.core import marks
from kmesh_bpf.core.state import Observation, PeerEntry, Program, Sa, SaId
from kmesh_bpf.core.view import Address, Node, Peer, View

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


def evidence(observed: Observation) -> Evidence:
    """Give what an observation says of who has which address."""
    pods = {one.ifindex for one in observed.state.attachments if one.program is Program.MARK_ENCRYPT}
    far = (link.far_addresses or () for link in observed.links if link.ifindex in pods)
    ends = {end for sa in observed.state.sas.values() for end in (sa.src, sa.dst)}
    return Evidence(
        frozenset(address for addresses in far for address in addresses),
        frozenset(address for address in observed.state.peers if address in ends),
    )


@dataclass(frozen=True, slots=True)
class Claims:
    """The peers to deal with, by name, their node ids by fingerprint, and sentences on the others.

    ``quarantined``: those that claim what is another one's; ``crowded``: those for whom no node id is left.
    """

    accepted: tuple[Peer, ...]
    ids: Mapping[int, int]
    quarantined: tuple[str, ...] = ()
    crowded: tuple[str, ...] = ()


def settle(view: View, fingerprints: Mapping[str, int], observed: Observation, node_mark_mask: int) -> Claims:
    """Decide on the peers of a view; ``fingerprints`` of the pairs of incarnations are by peer's name."""
    ranks = _ranks(view, fingerprints, observed)
    ordered = sorted(view.peers, key=lambda one: ranks[one.node.name])
    unique, quarantined = _without_double_claims(view, ordered)
    held = {entry.incarnations: entry.node_id for entry in observed.state.peers.values()}
    taken = {marks.node_id(sa.mark.value, node_mark_mask) for sa in observed.state.sas.values() if sa.mark}
    wanted = sorted(unique, key=lambda one: one.node.name)
    ids = marks.allocate((fingerprints[one.node.name] for one in wanted), held, taken, node_mark_mask)
    accepted = tuple(one for one in wanted if fingerprints[one.node.name] in ids)
    rest = [one.node.name for one in wanted if fingerprints[one.node.name] not in ids]
    return Claims(accepted, ids, tuple(quarantined), (_crowd(rest, node_mark_mask),) if rest else ())


def keep_quarantined(
    quarantined: Iterable[Node], observed: Observation, peers: dict[Address, PeerEntry], sas: dict[SaId, Sa]
) -> None:
    """Leave the SAs of quarantined peers as they are: made again later, they would count from the start."""
    for address in (address for node in quarantined for address in node.addresses):
        if address in observed.state.peers and address not in peers:
            peers[address] = observed.state.peers[address]
            sas.update((one.id, one) for one in observed.state.sas.values() if address in (one.src, one.dst))


def _ranks(
    view: View, fingerprints: Mapping[str, int], observed: Observation
) -> dict[str, tuple[bool, bool, bool, bool, str]]:
    """Give what peers that may claim the same are ordered by, by name: who comes first keeps it.

    First who is not contradicted by the cluster's own record, then who lives, then who the kernel knows: by this very
    pair of incarnations (ours may be changing right now), or by these very addresses (it has rebooted); then the name.
    """
    of_pair: dict[int, set[Address]] = {}
    for address, entry in observed.state.peers.items():
        of_pair.setdefault(entry.incarnations, set()).add(address)
    of_peers = {frozenset(addresses) for addresses in of_pair.values()}
    before = replace(view.node, boot_id=observed.incarnation or view.node.boot_id)
    return {
        peer.node.name: (
            not peer.vouched,
            not peer.alive,
            of_pair.keys().isdisjoint((fingerprints[peer.node.name], marks.incarnations(before, peer.node))),
            frozenset(peer.node.addresses) not in of_peers,
            peer.node.name,
        )
        for peer in view.peers
    }


def _without_double_claims(view: View, ordered: Iterable[Peer]) -> tuple[list[Peer], list[str]]:
    """Give the peers whose addresses are theirs alone, and a sentence for each that is quarantined.

    Two KmeshNodeInfos with one address would take turns in one SA.
    """
    claimed = {address for peer in view.peers for address in peer.node.addresses}
    pods = ((address, pod) for pod in view.pods for address in pod.addresses if address in claimed)
    owners = {address: f"of pod {pod.name} on node {pod.node}" for address, pod in pods}
    owners.update(dict.fromkeys(view.node.addresses, f"of this node, {view.node.name}"))
    accepted, quarantined = [], []
    for peer in ordered:
        taken = next((address for address in peer.node.addresses if address in owners), None)
        if taken is None:
            owners.update(dict.fromkeys(peer.node.addresses, f"of peer {peer.node.name}"))
            accepted.append(peer)
        else:
            quarantined.append(_double_claim(peer, taken, owners[taken]))
    return accepted, quarantined


def _double_claim(peer: Peer, address: Address, owner: str) -> str:
    name = peer.node.name
    if not peer.alive:
        way_out = f"its Node is gone, or about to go; delete KmeshNodeInfo {name}"
    elif not peer.vouched:
        way_out = f"its Node object has no such address; mend what {name} announces"
    else:
        way_out = f"mend {name}, or delete the other one if that is gone"
    return f"peer {name} claims {address}, which is {owner}; quarantined, nothing is sent to {name}: {way_out}"


def _crowd(names: list[str], node_mark_mask: int) -> str:
    more, room = f" and {len(names) - NAMES} more" if len(names) > NAMES else "", marks.capacity(node_mark_mask)
    return (
        f"--node-mark-mask {node_mark_mask:#x} has room for {room} peers, and there are more: "
        f"nothing is sent to {', '.join(names[:NAMES])}{more}; give the mask more bits"
    )

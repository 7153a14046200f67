# SPDX-License-Identifier: Apache-2.0
"""Which peers this node can send to, by what the kernel really holds, and which it should be able to send to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kmesh_bpf.core import marks
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.parts import Part
from kmesh_bpf.core.state import Direction, PeerEntry, PodFlags, Policy, Sa
from kmesh_bpf.core.view import Address


def is_reached(part: Part, mirror: Mirror) -> bool:
    """Tell whether packets reach a part's node, encrypted, with what the kernel holds.

    Each outbound policy must be there, and an SA for its tunnel. Which key version they are sent with does not matter:
    the kernel takes the newest SA.
    """
    towards = (sa for address in part.state.peers for sa in mirror.by_remote.get(address, {}).values())
    if not part.sends or not any(sa.mark is None for sa in towards):
        return False
    wanted = (one for one in part.state.policies.values() if one.direction is Direction.OUT and not one.block)
    return all(_sends(mirror.state.policies.get(policy.id), mirror) for policy in wanted)


def in_order(operations: Sequence[Operation], mirror: Mirror, awaited: int) -> tuple[Operation, ...]:
    """Give the operations that may be carried out now: no packet goes through an SA of which no entry tells.

    Else a daemon that is killed meanwhile would find, if that SA is gone by then, nothing that says that its numbers
    have been used. What is received needs the node mark, which an entry lays on it: that tells by being there. What is
    sent needs a policy, but those name no SPI, so the kernel sends with a newer SA from the moment that it is there;
    entries tell of it by version. Hence:

    * What receives comes first, and was seen in the kernel before there is an entry for this pair of incarnations, as
      far as its versions are ``awaited``, as we announced them: later there is no other sign that it was there. So
      whoever is killed before the entry is written has received nothing, and whoever is killed behind it finds all SAs,
      or somebody took one. A version that is not announced yet nobody sends with; it is announced once it was seen for
      all peers.
    * Where nothing leads to a peer's first SA, the SA comes first, then the entry, and policies only then. Whoever is
      killed at whatever point in between has used no number, and may make the SA once more.
    * Where something leads to an SA already (a newer version; a peer or this node as another incarnation), the entry
      tells of it right before it is there, in one operation (:class:`kmesh_bpf.core.operations.AddSa`), and no more if
      the kernel refuses it. Whoever is killed between these two writes, which nothing comes between, takes the version
      for used and becomes another incarnation. That is as seldom as can be: the kernel has no write of both, and of the
      two mistakes it is the one that uses no number twice.
    * An entry tells only of a version that this node can receive with, so what sends waits for that to be seen.

    What waits is of the next round; as long as a policy does, so do pods that are marked for it.
    """
    entries = {one.address: one.entry for one in operations if isinstance(one, ops.SetPeer)}
    missing = {_found_by(sa) for sa in _made(operations) if sa.mark is not None and sa.spi <= awaited}

    def begins_early(remote: Address, entry: PeerEntry) -> bool:
        before = mirror.state.peers.get(remote)
        begins = before is None or before.incarnations != entry.incarnations
        return begins and (entry.node_mark, remote.version) in missing

    def known(remote: Address) -> int:
        entry = entries.get(remote) or mirror.state.peers.get(remote)
        return entry.spi if entry is not None and not begins_early(remote, entry) else 0

    def is_early(one: Operation) -> bool:
        match one:
            case ops.SetPeer(remote, entry):
                return begins_early(remote, entry)
            case ops.AddSa(sa, PeerEntry() as entry) | ops.ReplaceSa(_, sa, PeerEntry() as entry):
                return begins_early(sa.dst, entry)
            case ops.AddSa(sa, None) | ops.ReplaceSa(_, sa, None) if sa.mark is None:
                version = known(sa.dst)
                return sa.spi > version and bool(version or mirror.leading[sa.src, sa.dst])
            case ops.SetPolicy(policy) if policy.direction is Direction.OUT and not policy.block:
                return not known(policy.tunnel_dst) or not _sends(policy, mirror)
            case _:
                return False

    early = {id(one) for one in operations if is_early(one)}
    if early:
        early |= {id(one) for one in operations if isinstance(one, ops.SetPod) and one.flags & PodFlags.READY}
    return tuple(one for one in operations if id(one) not in early)


def _made(operations: Iterable[Operation]) -> Iterator[Sa]:
    for one in operations:
        match one:
            case ops.AddSa(sa) | ops.ReplaceSa(_, sa):
                yield sa


def _found_by(sa: Sa) -> tuple[int, int]:
    """Give what an entry of the peer map must have, so that packets find an inbound SA: node mark, and IP version."""
    return (sa.mark.value & marks.UPPER_BITS if sa.mark is not None else 0), sa.dst.version


def _sends(policy: Policy | None, mirror: Mirror) -> bool:
    if policy is None or policy.block:
        return False
    towards = mirror.by_remote.get(policy.tunnel_dst, {}).values()
    return any(sa.mark is None and sa.src == policy.tunnel_src for sa in towards)

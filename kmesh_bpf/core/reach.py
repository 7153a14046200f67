# SPDX-License-Identifier: Apache-2.0
"""Which peers this node can send to, by what the kernel really holds, and which it should be able to send to."""

from __future__ import annotations

from collections.abc import Sequence

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.parts import Part
from kmesh_bpf.core.state import Direction, PodFlags, Policy
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


def in_order(operations: Sequence[Operation], mirror: Mirror) -> tuple[Operation, ...]:
    """Give the operations that may be carried out now: no packet is sent with an SA of which no entry tells.

    Else a daemon that is killed meanwhile would find, if that SA is gone by then, nothing that says that its numbers
    have been used. Policies name no SPI, so the kernel sends with a newer SA from the moment that it is there. Hence:

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
    told = {one.address: one.entry for one in operations if isinstance(one, ops.SetPeer)}

    def known(remote: Address) -> int:
        entry = told.get(remote) or mirror.state.peers.get(remote)
        return entry.spi if entry is not None else 0

    def is_early(one: Operation) -> bool:
        match one:
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


def _sends(policy: Policy | None, mirror: Mirror) -> bool:
    if policy is None or policy.block:
        return False
    towards = mirror.by_remote.get(policy.tunnel_dst, {}).values()
    return any(sa.mark is None and sa.src == policy.tunnel_src for sa in towards)

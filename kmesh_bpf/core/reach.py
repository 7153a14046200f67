"""Which peers this node can send to, by what the kernel really holds, and which it should be able to send to."""

from __future__ import annotations

from collections.abc import Sequence

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.parts import Part
from kmesh_bpf.core.state import Direction, PodFlags, Policy


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

    The peer map tells that a version is in use once its SAs were seen. Were policies to lead to them before, a daemon
    that is killed in between would find, if they are gone by then, nothing that says that their numbers have been used.
    What waits is of the next round; as long as a policy does, so do pods that are marked for it.
    """
    told = {one.address: one.entry for one in operations if isinstance(one, ops.SetPeer)}

    def is_early(one: Operation) -> bool:
        if not isinstance(one, ops.SetPolicy) or one.policy.direction is not Direction.OUT or one.policy.block:
            return False
        entry = told.get(one.policy.tunnel_dst) or mirror.state.peers.get(one.policy.tunnel_dst)
        return entry is None or not entry.spi or not _sends(one.policy, mirror)

    early = {id(one) for one in operations if is_early(one)}
    if early:
        early |= {id(one) for one in operations if isinstance(one, ops.SetPod) and one.flags & PodFlags.READY}
    return tuple(one for one in operations if id(one) not in early)


def _sends(policy: Policy | None, mirror: Mirror) -> bool:
    if policy is None or policy.block:
        return False
    towards = mirror.by_remote.get(policy.tunnel_dst, {}).values()
    return any(sa.mark is None and sa.src == policy.tunnel_src for sa in towards)

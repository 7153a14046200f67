"""Which peers this node can send to, by what the kernel really holds, and which it should be able to send to."""

from __future__ import annotations

from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.parts import Part
from kmesh_bpf.core.state import Direction, Policy


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


def _sends(policy: Policy | None, mirror: Mirror) -> bool:
    if policy is None or policy.block:
        return False
    towards = mirror.by_remote.get(policy.tunnel_dst, {}).values()
    return any(sa.mark is None and sa.src == policy.tunnel_src for sa in towards)

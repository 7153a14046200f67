"""Which peers this node can send to, by what the kernel really holds, and which it should be able to send to."""

from __future__ import annotations

from kmesh_bpf.core.planner import Plan
from kmesh_bpf.core.state import Direction, KernelState, SaId
from kmesh_bpf.core.view import Address, View


def expected_peers(view: View) -> frozenset[str]:
    """Give the names of the other nodes that have announced themselves or hold a managed pod."""
    names = {peer.node.name for peer in view.peers} | {pod.node for pod in view.pods}
    return frozenset(names - {view.node.name})


def reachable_peers(view: View, plan: Plan, held: KernelState) -> frozenset[str]:
    """Give the names of the peers that packets reach, encrypted, with what the kernel holds.

    A policy that is behind the plan does no harm as long as its own SA is there: it sends with the key before.
    """
    sending = {sa.dst for sa in held.sas.values() if sa.mark is None}
    cut_off = _cut_off(plan, held)
    return frozenset(
        peer.node.name
        for peer in view.peers
        if peer.node.name in plan.ready_peers
        and not sending.isdisjoint(peer.node.addresses)
        and cut_off.isdisjoint(peer.node.addresses)
    )


def _cut_off(plan: Plan, held: KernelState) -> frozenset[Address]:
    """Give the tunnel ends towards which an outbound policy is missing, or the SA that one points to."""
    found = set()
    for identity, planned in plan.state.policies.items():
        if planned.direction is Direction.OUT:
            there = held.policies.get(identity)
            if there is None or SaId(there.tunnel_src, there.tunnel_dst, there.spi, None) not in held.sas:
                found.add(planned.tunnel_dst)
    return frozenset(found)

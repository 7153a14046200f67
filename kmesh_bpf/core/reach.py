"""Which peers this node can send to, by what the kernel really holds, and which it should be able to send to."""

from __future__ import annotations

from kmesh_bpf.core.planner import Plan
from kmesh_bpf.core.state import Direction, KernelState, Policy
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, View


def expected_peers(view: View) -> frozenset[str]:
    """Give the names of the other nodes that have announced themselves or hold a managed pod."""
    names = {peer.node.name for peer in view.peers} | {pod.node for pod in view.pods}
    return frozenset(names - {view.node.name})


def reachable_peers(view: View, plan: Plan, held: KernelState) -> frozenset[str]:
    """Give the names of the peers that packets reach, encrypted, with what the kernel holds.

    Which key version they are sent with does not matter: the kernel takes the newest SA that is there.
    """
    pairs = {(sa.src, sa.dst) for sa in held.sas.values() if sa.mark is None}
    sending = {there for _, there in pairs}
    cut_off = _cut_off(plan, held, pairs)
    return frozenset(
        peer.node.name
        for peer in view.peers
        if peer.node.name in plan.ready_peers
        and not sending.isdisjoint(peer.node.addresses)
        and cut_off.isdisjoint(peer.node.addresses)
    )


def _cut_off(plan: Plan, held: KernelState, pairs: set[Ends]) -> frozenset[Address]:
    """Give the tunnel ends towards which an outbound policy is missing, or its SA."""
    found = set()
    for identity, planned in plan.state.policies.items():
        if planned.direction is Direction.OUT and not planned.block:
            there = held.policies.get(identity)
            if there is None or not _sends(there, pairs):
                found.add(planned.tunnel_dst)
    return frozenset(found)


def _sends(policy: Policy, pairs: set[Ends]) -> bool:
    return not policy.block and (policy.tunnel_src, policy.tunnel_dst) in pairs

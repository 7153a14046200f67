"""Two nodes' plans -> what becomes of a packet between two addresses, and why (``kmeshctl explain``). Pure.

Who is managed, who is ready and which policies and SAs there are is read from the plans, and decided nowhere else.
What is here is what the programs on TC make of the flags in the pod map (``bpf/tc_*.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kmesh_bpf.core.planner import Plan
from kmesh_bpf.core.state import Direction, PodFlags, Policy, SaId
from kmesh_bpf.core.view import Address


class Fate(Enum):
    """What becomes of a packet. ``UNKNOWN``: the plans do not tell, because DNAT has yet to choose a destination."""

    ENCRYPTED = "encrypted"
    CLEAR = "clear"
    DROPPED = "dropped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Stop:
    """A node on the way whose daemon runs: its plan, and whether its programs were loaded in strict mode."""

    plan: Plan
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Trace:
    """The answer, with a sentence for people. ``policy``: the sender's outbound policy that selects the packet."""

    fate: Fate
    reason: str
    policy: Policy | None = None


def trace(sender: Stop | None, receiver: Stop | None, src: Address, dst: Address) -> Trace:
    """Follow a packet from ``src`` on the sender's node to ``dst`` on the receiver's.

    None stands for a node on which no daemon runs, or, as the receiver, for one that nobody knows.
    """
    left = _leave(sender, src, dst)
    if left.fate is Fate.ENCRYPTED and left.policy is not None:
        return _decrypt(receiver, left, left.policy, src, dst)
    if left.fate is Fate.CLEAR and sender is not receiver:
        return _arrive_clear(receiver, left, src, dst)
    return left


def _leave(sender: Stop | None, src: Address, dst: Address) -> Trace:
    """Give what tc_mark_encrypt, the XFRM output look-up and tc_leak_guard make of it."""
    if sender is None:
        return Trace(Fate.CLEAR, "no daemon runs on the sending node")
    pods = sender.plan.state.pods
    if PodFlags.LOCAL not in pods.get(src, PodFlags(0)):
        return Trace(Fate.CLEAR, "the sender is not managed")
    there = pods.get(dst)
    if there is None:
        if any(dst in cidr for cidr in sender.plan.state.services):
            return Trace(
                Fate.UNKNOWN,
                "it is a Service address: DNAT chooses the real destination after the mark; what lies in a ready "
                "peer's pod CIDRs is encrypted, towards another managed pod it is dropped, else it goes in clear",
            )
        return Trace(Fate.CLEAR, "the destination is not managed")
    if PodFlags.LOCAL in there:
        return Trace(Fate.CLEAR, "both are on the same node, which the packet does not leave: never encrypted")
    if PodFlags.READY not in there:
        why = "the destination's node is no ready peer of the sending node"
        return Trace(Fate.DROPPED, f"{why}: dropped (strict)") if sender.strict else Trace(Fate.CLEAR, why)
    policies = _policies(sender.plan, Direction.OUT, src, dst)
    if not policies:
        return Trace(Fate.DROPPED, "no policy of the sending node selects it: dropped by the leak guard")
    if len(policies) > 1:
        return Trace(Fate.UNKNOWN, "policies towards several peers select it: their pod CIDRs overlap")
    policy = policies[0]
    if SaId(policy.tunnel_src, policy.tunnel_dst, policy.spi, None) not in sender.plan.state.sas:
        return Trace(Fate.DROPPED, "the sending node has no SA for its policy: dropped by the kernel", policy)
    return Trace(Fate.ENCRYPTED, "both are managed, on different nodes that are ready for each other", policy)


def _decrypt(receiver: Stop | None, left: Trace, policy: Policy, src: Address, dst: Address) -> Trace:
    """Give what the receiving node's SAs and policies make of what that policy has encrypted."""
    if receiver is None:
        return Trace(Fate.DROPPED, "no daemon runs on the receiving node, so nothing decrypts there", policy)
    state = receiver.plan.state
    ends = (policy.tunnel_src, policy.tunnel_dst, policy.spi)
    if not any(sa.mark is not None and (sa.src, sa.dst, sa.spi) == ends for sa in state.sas.values()):
        why = f"the receiving node has no SA from {policy.tunnel_src} to {policy.tunnel_dst} with SPI {policy.spi}"
        return Trace(Fate.DROPPED, f"{why}: dropped there", policy)
    expected = {(one.tunnel_src, one.tunnel_dst) for one in _policies(receiver.plan, Direction.FWD, src, dst)}
    if (policy.tunnel_src, policy.tunnel_dst) not in expected:
        return Trace(Fate.DROPPED, "no policy of the receiving node accepts it from this peer: dropped there", policy)
    return left


def _arrive_clear(receiver: Stop | None, left: Trace, src: Address, dst: Address) -> Trace:
    """Give what tc_mark_decrypt on the receiving node makes of a packet in clear."""
    if receiver is None or not receiver.strict:
        return left
    pods = receiver.plan.state.pods
    if PodFlags.REMOTE in pods.get(src, PodFlags(0)) and PodFlags.LOCAL in pods.get(dst, PodFlags(0)):
        return Trace(Fate.DROPPED, f"{left.reason}; the receiving node drops it as clear text (strict)")
    return left


def _policies(plan: Plan, direction: Direction, src: Address, dst: Address) -> list[Policy]:
    """Give the policies of that direction that select the packet."""
    return [
        policy
        for policy in plan.state.policies.values()
        if policy.direction is direction and src in policy.src and dst in policy.dst
    ]

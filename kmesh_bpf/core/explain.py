# SPDX-License-Identifier: Apache-2.0
"""Two nodes' plans -> what becomes of a packet between two addresses, and why (``kmeshctl explain``). Pure.

Who is managed, who is ready and which policies and SAs there are is read from the plans, and decided nowhere else.
What is here is what the programs on TC make of the flags in the pod map (``bpf/tc_*.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kmesh_bpf.core.marks import UNMARKED
from kmesh_bpf.core.planner import Plan
from kmesh_bpf.core.state import Direction, PodFlags, Policy
from kmesh_bpf.core.view import Address

ENCRYPTS_TO_NODES = PodFlags.REMOTE | PodFlags.READY | PodFlags.PEER
"""Flags of a managed pod of another node that sends nothing in clear to addresses of this one."""
NAT = "where DNAT gives it to a managed pod (NodePort, hostPort), that pod's address decides"


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
    """The answer, with a sentence for people.

    ``policy``: the sender's outbound policy that selects the packet; ``spi``: the version that it is encrypted with.
    """

    fate: Fate
    reason: str
    policy: Policy | None = None
    spi: int = 0


def trace(sender: Stop | None, receiver: Stop | None, src: Address, dst: Address) -> Trace:
    """Follow a packet from ``src`` on the sender's node to ``dst`` on the receiver's.

    None stands for a node on which no daemon runs, or, as the receiver, for one that nobody knows.
    """
    left = _leave(sender, receiver, src, dst)
    if left.fate is Fate.ENCRYPTED and left.policy is not None:
        return _decrypt(receiver, left, left.policy, src, dst)
    if left.fate is Fate.CLEAR and sender is not receiver:
        return _arrive_clear(receiver, left, src, dst)
    return left


def _leave(sender: Stop | None, receiver: Stop | None, src: Address, dst: Address) -> Trace:
    """Give what tc_mark_encrypt, the XFRM output look-up and tc_leak_guard make of it."""
    if sender is None:
        return Trace(Fate.CLEAR, "no daemon runs on the sending node")
    pods = sender.plan.state.pods
    there = pods.get(dst, PodFlags(0))
    if PodFlags.LOCAL not in pods.get(src, PodFlags(0)):
        return _send_unmarked(sender, src, dst)
    if PodFlags.LOCAL in there:
        return Trace(Fate.CLEAR, "both are on the same node, which the packet does not leave: never encrypted")
    if PodFlags.REMOTE in there:
        return _send_to_pod(sender, src, dst, ready=PodFlags.READY in there)
    if sender is receiver:
        return Trace(Fate.CLEAR, f"it is the sending node's own address, which the packet does not leave; {NAT}")
    if PodFlags.PEER in there:
        return _send_to_node(sender, src, dst, ready=PodFlags.READY in there)
    if dst in sender.plan.state.peers:
        return Trace(Fate.CLEAR, f"it is the address of a node that takes nothing sent to it encrypted; {NAT}")
    if PodFlags.CANDIDATE in there or any(dst in cidr for cidr in sender.plan.state.services):
        return Trace(
            Fate.UNKNOWN,
            "it is a Service's address: DNAT chooses the real destination after the mark; towards a managed pod of a "
            "ready peer it is encrypted, towards another managed pod dropped, else it goes in clear",
        )
    return Trace(Fate.CLEAR, "the destination is not managed")


def _send_unmarked(sender: Stop, src: Address, dst: Address) -> Trace:
    """Give what becomes of a packet of nobody's or of the node itself: it is encrypted where a policy needs no mark."""
    policy = _select(sender.plan, Direction.OUT, src, dst, marked=False)
    if policy is None:
        return Trace(Fate.CLEAR, "the sender is not managed")
    return _encrypt(sender, policy, "what this node itself sends to a managed pod of this peer is encrypted")


def _send_to_pod(sender: Stop, src: Address, dst: Address, *, ready: bool) -> Trace:
    policy = _select(sender.plan, Direction.OUT, src, dst, marked=True)
    if not ready:
        why = "the destination's node is no ready peer of the sending node"
        return Trace(Fate.DROPPED, f"{why}: dropped (strict)") if sender.strict else Trace(Fate.CLEAR, why)
    if policy is None or policy.block:
        return Trace(Fate.DROPPED, "no policy of the sending node encrypts it: dropped by the leak guard")
    return _encrypt(sender, policy, "both are managed, and the destination's node is a ready peer of the sending node")


def _send_to_node(sender: Stop, src: Address, dst: Address, *, ready: bool) -> Trace:
    if not ready:
        return Trace(Fate.CLEAR, f"it is the address of a node that is no ready peer of the sending node; {NAT}")
    policy = _select(sender.plan, Direction.OUT, src, dst, marked=True)
    if policy is None:
        return Trace(Fate.DROPPED, "no policy of the sending node encrypts it: dropped by the leak guard")
    return _encrypt(sender, policy, f"it is the address of a node that takes what is sent to it encrypted; {NAT}")


def _encrypt(sender: Stop, policy: Policy, reason: str) -> Trace:
    """Give what the newest SA of the policy's tunnel makes of it."""
    ends = (policy.tunnel_src, policy.tunnel_dst)
    sas = sender.plan.state.sas.values()
    spi = max((sa.spi for sa in sas if sa.mark is None and (sa.src, sa.dst) == ends), default=0)
    if not spi:
        return Trace(Fate.DROPPED, "the sending node has no SA for its policy: dropped by the kernel", policy)
    return Trace(Fate.ENCRYPTED, reason, policy, spi)


def _decrypt(receiver: Stop | None, left: Trace, policy: Policy, src: Address, dst: Address) -> Trace:
    """Give what the receiving node's SAs and policies make of what that policy has encrypted."""
    if receiver is None:
        return Trace(Fate.DROPPED, "no daemon runs on the receiving node, so nothing decrypts there", policy)
    ends = (policy.tunnel_src, policy.tunnel_dst)
    sas = receiver.plan.state.sas.values()
    if not any(sa.mark is not None and (sa.src, sa.dst, sa.spi) == (*ends, left.spi) for sa in sas):
        why = f"the receiving node has no SA from {policy.tunnel_src} to {policy.tunnel_dst} with SPI {left.spi}"
        return Trace(Fate.DROPPED, f"{why}: dropped there", policy)
    expected = _select(receiver.plan, Direction.FWD, src, dst, marked=True)
    if expected is None or (expected.tunnel_src, expected.tunnel_dst) != ends:
        return Trace(Fate.DROPPED, "no policy of the receiving node accepts it from this peer: dropped there", policy)
    return left


def _arrive_clear(receiver: Stop | None, left: Trace, src: Address, dst: Address) -> Trace:
    """Give what tc_mark_decrypt and tc_pod_guard on the receiving node make of a packet in clear."""
    if receiver is None or not receiver.strict:
        return left
    pods = receiver.plan.state.pods
    there, here = pods.get(src, PodFlags(0)), pods.get(dst, PodFlags(0))
    to_pod = PodFlags.REMOTE in there and PodFlags.LOCAL in here
    if to_pod or (ENCRYPTS_TO_NODES in there and PodFlags.OWN in here):
        return Trace(Fate.DROPPED, f"{left.reason}; the receiving node drops it as clear text (strict)")
    if PodFlags.REMOTE in there and PodFlags.CANDIDATE in here:
        return Trace(left.fate, f"{left.reason}; if it is a managed pod there, the receiving node drops it (strict)")
    return left


def _select(plan: Plan, direction: Direction, src: Address, dst: Address, *, marked: bool) -> Policy | None:
    """Give the policy of that direction that selects a packet with our mark, or without any."""
    return next(
        (
            policy
            for policy in plan.state.policies.values()
            if policy.direction is direction
            and (policy.mark != UNMARKED) is marked
            and src in policy.src
            and dst in policy.dst
        ),
        None,
    )

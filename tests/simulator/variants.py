# SPDX-License-Identifier: Apache-2.0
"""The nodes of the differential test, and operations on them that no plan calls for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

from kmesh_bpf import Key, Settings
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.policies import ANY, UNMARKED, host, to_encrypt, was_decrypted
from kmesh_bpf.core.state import Attachment, Direction, KernelState, Mark, PodFlags, Policy, Program
from tests.simulator.kernel import NodeKernel
from tests.unit.core import mesh

NODES = (1, 2, 3)
SETTINGS = {1: Settings(), 2: Settings(mark_mask=0x7F), 3: Settings(strict=False, node_mark_mask=0x0FFF0000)}
PODS = {
    f"p{index}{letter}": tuple(
        ip_address(text) for text in (f"10.244.{index}.{number}", f"fd00:244:{index}::{number:x}")
    )
    for index in NODES
    for letter, number in (("a", 10), ("b", 11))
}
SERVICES = {
    ip_address(f"{net}{index}"): PODS[f"p{index}a"][at]
    for index in NODES
    for at, net in enumerate(("10.96.0.", "fd00:96::"))
}
OUTSIDE = (ip_address("203.0.113.7"), ip_address("2001:db8::7"))
FLAGS = (
    PodFlags.LOCAL,
    PodFlags.REMOTE,
    PodFlags.REMOTE | PodFlags.READY,
    PodFlags.REMOTE | PodFlags.READY | PodFlags.PEER,
    PodFlags.CANDIDATE,
    PodFlags.CANDIDATE | PodFlags.PEER | PodFlags.READY,
)
OTHER_KEY = Key(bytes(36))


def variant(random: Random, index: int, model: NodeKernel, wanted: KernelState, *, esp: bool) -> ops.Operation:
    """Give an operation on a node that no plan calls for; ``esp``: also one on SAs."""
    choose = random.choice
    version = choose((4, 6))
    at = 0 if version == 4 else 1
    pod = choose(list(PODS.values()))[at]
    nodes = {one: mesh.node(one).addresses[at] for one in NODES}
    other = choose([one for one in NODES if one != index])
    far = PODS[f"p{other}a"][at]
    mask = SETTINGS[index].mark_mask
    match random.randrange(0 if esp else 2, 11):
        case 0:
            sa = choose(list(wanted.sas.values()))
            return ops.AddSa(replace(sa, spi=choose((1, 2, 3))))
        case 1:
            sa = choose(list(wanted.sas.values()))
            window = choose((0, 32, sa.replay_window))
            changed = replace(
                sa, key=choose((OTHER_KEY, sa.key)), replay_window=window, any_family=choose((True, True, False))
            )
            return ops.ReplaceSa(sa, changed) if sa.id in model.sas else ops.AddSa(changed)
        case 2 | 3 | 4 | 5:
            direction = choose(list(Direction))
            theirs = choose((host(far), host(far), host(pod), host(nodes[other]), mesh.node(other).pod_cidrs[at]))
            mark = to_encrypt(mask) if direction is Direction.OUT else was_decrypted(mask)
            mark = choose((mark, mark, UNMARKED if direction is Direction.OUT else mark, Mark(mark.value, mask)))
            near = host(PODS[f"p{index}a"][at])
            anybody = choose((ANY[version], near, near, host(choose(list(PODS.values()))[at]), host(nodes[index])))
            src, dst = (anybody, theirs) if direction is Direction.OUT else (theirs, anybody)
            ends = (nodes[index], nodes[other])
            policy = Policy(
                direction,
                src,
                dst,
                mark,
                *(ends if direction is Direction.OUT else ends[::-1]),
                spi=choose((0, 0, 1, 2)),
                priority=choose((100, 100, 100, 50, 200)),
                block=choose((False, False, True)),
            )
            return ops.SetPolicy(policy, replace=choose((True, False)))
        case 6:
            entry = choose(list(wanted.peers.values()))
            return ops.SetPeer(nodes[other], entry)
        case 7:
            return ops.SetPod(choose((pod, nodes[choose(NODES)])), choose(FLAGS))
        case 8:
            return ops.SetSource(pod, choose(model.links).ifindex)
        case 9:
            return choose((ops.AddPodDevice, ops.DeletePodDevice))(choose(model.links[2:]).ifindex)
        case _:
            link = choose([one for one in model.links if one.name != "lo"])
            program = choose(list(Program))
            return choose((ops.Attach, ops.Detach))(Attachment(link.ifindex, link.name, program))


def rivals(random: Random, index: int, model: NodeKernel) -> tuple[Policy, Policy] | None:
    """Give a policy that is there and one that selects some of what it does, and differs in what then happens."""
    found = [one for one in model.policies.values() if one.src != one.dst]
    if not found:
        return None
    policy = random.choice(found)
    near = host(PODS[f"p{index}a"][policy.src.version == 6])
    ours, theirs = ("src", policy.dst) if policy.direction is Direction.OUT else ("dst", policy.src)
    if theirs.prefixlen == theirs.max_prefixlen and random.random() < 0.4:
        theirs = theirs.supernet(new_prefix=24 if theirs.version == 4 else 64)
    ends = {ours: near, "dst" if ours == "src" else "src": theirs}
    priority = random.choice((policy.priority, policy.priority, policy.priority - 1, policy.priority + 1))
    return policy, replace(policy, block=not policy.block, priority=priority, **ends)

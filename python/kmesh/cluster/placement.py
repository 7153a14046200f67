# SPDX-License-Identifier: Apache-2.0
"""Which pod has an address, where several claim it, or a node does. Pure.

A node that loses an address gets nothing from anybody, a pod that loses one is not managed there. So whatever a node
says of itself takes no address from a pod, unless the pod's own claim is the odd one. And what a pod that lives loses
to a node is *contested*: it may be the pod's all the same, and nothing is sent there in clear.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kmesh.cluster.objects import PodObject
from kmesh_bpf import Address, Pod, impossible

ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of pods whose containers will never run again; their objects may stay for days, with addresses given on."""
RUNNING = "Running"
UNKNOWN_AGE = "~"
"""Sorts behind every time: a pod that nobody dated is as good as the newest."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What claims of pods are measured by.

    ``here``: this node's name, ``own``: its addresses; ``evidence``: addresses that devices of this node's pods carry.
    ``nodes``: names of the Nodes that there are; ``of_nodes``: the addresses of those that are to stay, and whose: of
    several the first one's by name.
    ``known``: addresses of peers that tunnels in the kernel lead to. What a node announces besides is its word only:
    whoever named an address in advance would take it from the pod that comes with it. ``ends``: those of ``of_nodes``
    that tunnels will lead to, should these nodes be peers; they count where nobody is known yet.
    """

    here: str = ""
    own: frozenset[Address] = frozenset()
    evidence: frozenset[Address] = frozenset()
    nodes: Container[str] = frozenset()
    of_nodes: Mapping[Address, str] = field(default_factory=dict)
    known: frozenset[Address] = frozenset()
    ends: Container[Address] = frozenset()

    def is_node_s(self, address: Address) -> bool:
        """Tell whether an address is another node's, whatever pod that does not run here claims it.

        On a node that knows nobody yet one word stands against another, and a node that lost its address to a pod, to
        which any kubelet can give any address, would be lost with all of its pods.
        """
        return address in self.known or (not self.known and address in self.ends)

    def contests(self, address: Address) -> bool:
        """Tell whether it takes more than one pod that claims an address, and no other, to have it."""
        others = address in self.own or address in self.evidence or address in self.of_nodes
        return others or impossible(address) is not None


@dataclass(frozen=True, slots=True)
class Dispute:
    """A claim in doubt: whose (``namespace/name``), and a sentence that names both sides and the way out.

    ``holds``: it does all the same. ``ordinary``: nothing to mend, for an address of a pod that ended or is being
    deleted was given on.
    """

    pod: str
    sentence: str
    ordinary: bool
    holds: bool = False


def place(pods: Iterable[PodObject], ground: Ground) -> tuple[tuple[Pod, ...], tuple[Dispute, ...], frozenset[Address]]:
    """Give the pods by name, each with the addresses that it has, the claims in doubt, and what is contested."""
    ordered = sorted(pods, key=lambda pod: (pod.namespace, pod.name))
    holders: dict[Address, PodObject] = {}
    in_question: dict[Address, list[PodObject]] = {}
    for pod in ordered:
        for address in dict.fromkeys(pod.addresses):  # one that it names twice it claims once
            first = holders.setdefault(address, pod)
            if first is not pod:
                in_question.setdefault(address, [first]).append(pod)
    for address, holder in holders.items():
        if ground.contests(address):
            in_question.setdefault(address, [holder])
    disputes: list[Dispute] = []
    contested: set[Address] = set()
    for address, claimants in in_question.items():
        winner, told = judge(claimants, address, ground)
        disputes.extend(told)
        if winner is None:
            del holders[address]
            if is_contested(claimants, address, ground):
                contested.add(address)
        else:
            holders[address] = winner
    placed = (grant(pod, holders.get) for pod in ordered)
    return tuple(pod for pod in placed if pod is not None), in_order(disputes), frozenset(contested)


def grant(pod: PodObject, holder: Callable[[Address], PodObject | None]) -> Pod | None:
    """Give a pod with those of its addresses whose holder it is; None: it has none."""
    free = tuple(address for address in pod.addresses if holder(address) is pod)
    if not free:
        return None
    same = len(free) == len(pod.addresses)
    return Pod(pod.label, pod.node, pod.addresses if same else free, pod.phase == RUNNING and not pod.deleting)


def in_order(disputes: Iterable[Dispute]) -> tuple[Dispute, ...]:
    """Give claims in doubt in the order in which they are told."""
    return tuple(sorted(disputes, key=lambda dispute: (dispute.pod, dispute.sentence)))


def judge(claimants: Sequence[PodObject], address: Address, ground: Ground) -> tuple[PodObject | None, list[Dispute]]:
    """Give who has an address, if any of the pods that claim it, and what the others are told."""
    hindrances = [(pod, _hindrance(pod, address, ground)) for pod in claimants]
    disputes = [Dispute(pod.label, sentence, _passing(pod)) for pod, sentence in hindrances if sentence is not None]
    rest = [pod for pod, sentence in hindrances if sentence is None]
    rest.sort(key=partial(_rank, address=address, ground=ground))
    if not rest:
        return None, disputes
    holder, *losers = rest
    if address in ground.evidence and holder.node != ground.here:
        disputes.append(Dispute(holder.label, _carried(holder, address, ground), _passing(holder), holds=True))
    return holder, [*disputes, *(_clash(pod, holder, address, ground) for pod in losers)]


def is_contested(claimants: Iterable[PodObject], address: Address, ground: Ground) -> bool:
    """Tell whether an address that none of these pods has may be one's all the same.

    Of this node's own, too: where no device has it, what is sent there leaves the node.
    """
    return impossible(address) is None and any(not _is_stale(pod, ground) for pod in claimants)


def _is_stale(pod: PodObject, ground: Ground) -> bool:
    return pod.phase in ENDED or pod.node not in ground.nodes


def _rank(pod: PodObject, address: Address, ground: Ground) -> tuple[bool, bool, bool, bool, str, str, str]:
    """Give what pods at one address are ordered by: the first has it."""
    return (
        not (address in ground.evidence and pod.node == ground.here),
        pod.node not in ground.nodes,
        pod.phase in ENDED,
        pod.deleting,
        pod.created or UNKNOWN_AGE,
        pod.namespace,
        pod.name,
    )


def _hindrance(pod: PodObject, address: Address, ground: Ground) -> str | None:
    """Say why a pod cannot have an address, whoever else wants it; None: it can."""
    claim = f"pod {pod.label} of node {pod.node} claims {address}, "
    way_out = "; it is not managed here: delete whichever is wrong"
    kind = impossible(address)
    if kind is not None:
        return f"{claim}which is {kind}; it is not managed there: delete the pod, or mend what gave it that"
    if address in ground.own:
        return f"{claim}which is an address of this node, {ground.here}{way_out}"
    stale = _is_stale(pod, ground)
    if address in ground.evidence and pod.node != ground.here and stale:
        return f"{claim}which a pod of this node, {ground.here}, carries{way_out}"
    owner = ground.of_nodes.get(address)
    carried_here = address in ground.evidence and pod.node == ground.here
    if owner is not None and (stale or (ground.is_node_s(address) and not carried_here)):
        return f"{claim}which is an address of node {owner}{way_out}"
    return None


def _carried(pod: PodObject, address: Address, ground: Ground) -> str:
    # Whoever may set addresses in a pod could otherwise have what is meant for any other pod sent in clear.
    return (
        f"pod {pod.label} of node {pod.node} claims {address}, which a pod of this node, {ground.here}, carries too: "
        "what that one sends from there is dropped; delete whichever is wrong"
    )


def _passing(pod: PodObject) -> bool:
    return pod.phase in ENDED or pod.deleting


def _clash(loser: PodObject, winner: PodObject, address: Address, ground: Ground) -> Dispute:
    why = " (that Node is gone)" if loser.node not in ground.nodes else ""
    sentence = (
        f"pods {winner.label} of node {winner.node} and {loser.label} of node {loser.node}{why} both have {address}: "
        f"the first is managed there, {loser.label} is not; delete the one that is gone"
    )
    return Dispute(loser.label, sentence, _passing(loser))

"""Who has which address, and what the pod map says of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import PodFlags
from kmesh_bpf.core.view import Address, Peer, View


def owners(view: View) -> tuple[dict[Address, str], list[Problem]]:
    """Give the node that has the managed pod of each address, and a problem for each pod that is not believed.

    What runs here is known better than what others say: neither this node's addresses nor its pods' can be a pod's
    elsewhere. Of other nodes' pods the first has an address; which is the right one is settled before, by whoever
    makes the view, this only sees to it that a plan never says two things of one address. No peer that is dealt with
    has a pod's address (:mod:`kmesh_bpf.core.claims`).
    """
    mine = frozenset(view.node.addresses)
    found: dict[Address, str] = {}
    problems = []
    for pod in sorted(view.pods, key=lambda one: one.node != view.node.name):
        for address in pod.addresses:
            if address in mine:
                whose = "this node's own"
            elif found.setdefault(address, pod.node) != pod.node:
                whose = f"a managed pod's on {found[address]}"
            else:
                continue
            sentence = f"pod {pod.name} on {pod.node}: {address} is {whose}; delete the pod or mend its node"
            problems.append(Problem(ProblemKind.CONFLICT, sentence))
    return found, problems


def flags(
    view: View, owner: Mapping[Address, str], peers: Iterable[Peer], ready: Collection[str]
) -> dict[Address, PodFlags]:
    """Give the pod map: managed pods, and what DNAT may turn into one. ``peers``: those whose addresses are theirs."""
    candidates = {*view.candidates, *(a for peer in view.peers for a in peer.node.addresses)}
    found = dict.fromkeys(candidates, PodFlags.CANDIDATE)
    found.update(dict.fromkeys(view.node.addresses, PodFlags.CANDIDATE | PodFlags.OWN))
    pods = dict.fromkeys(ready, PodFlags.REMOTE | PodFlags.READY)
    pods[view.node.name] = PodFlags.LOCAL
    for peer in peers:
        if peer.node_traffic:
            flag = PodFlags.CANDIDATE | PodFlags.PEER
            if peer.node.name in ready:
                flag |= PodFlags.READY
                pods[peer.node.name] |= PodFlags.PEER
            found.update((address, flag) for address in peer.node.addresses if address not in peer.unconfirmed)
    found.update((address, pods.get(node, PodFlags.REMOTE)) for address, node in owner.items())
    return found

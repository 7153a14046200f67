"""Who has which address, and what the pod map says of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import PodFlags
from kmesh_bpf.core.view import Address, Peer, View


def owners(view: View, outer: Mapping[Address, str]) -> tuple[dict[Address, str], list[Problem]]:
    """Give the node that has the managed pod of each address, and a problem for each pod that is not believed.

    What runs here is known better than what others say: neither this node's addresses nor its pods' can be a pod's
    elsewhere. Of other nodes' pods the first has an address; which is the right one is settled before
    (:mod:`kmesh_bpf.core.claims`), this only sees to it that a plan never says two things of one address.
    ``outer``: peers' own addresses, and whose they are; a pod that claims one is cut off, for nobody can tell the two.
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
            elif address in outer:
                whose = f"node {outer[address]}'s"
            else:
                continue
            sentence = f"pod {pod.name} on {pod.node}: {address} is {whose}; delete the pod or mend its node"
            problems.append(Problem(ProblemKind.CONFLICT, sentence))
    return found, problems


def flags(
    view: View,
    owner: Mapping[Address, str],
    outer: Mapping[Address, str],
    peers: Iterable[Peer],
    ready: Collection[str],
) -> dict[Address, PodFlags]:
    """Give the pod map: managed pods, and what DNAT may turn into one. ``peers``: those whose addresses are theirs."""
    candidates = {*view.candidates, *view.node.addresses, *(a for peer in view.peers for a in peer.node.addresses)}
    found = dict.fromkeys(candidates, PodFlags.CANDIDATE)
    for peer in peers:
        if peer.node_traffic:
            flag = PodFlags.CANDIDATE | PodFlags.PEER
            if peer.node.name in ready:
                flag |= PodFlags.READY
            found.update((address, flag) for address in peer.node.addresses if address not in peer.unconfirmed)
    remote, whole = PodFlags.REMOTE, PodFlags.REMOTE | PodFlags.READY
    for address, node in owner.items():
        if node == view.node.name:
            found[address] = PodFlags.LOCAL
        else:
            found[address] = whole if node in ready and address not in outer else remote
    return found

# SPDX-License-Identifier: Apache-2.0
"""What anybody can read from a cluster's objects, by rules of this file alone: the judge must not ask the judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmesh.cluster.objects import ClusterObjects, PodObject

from kmesh_bpf import Address

LABEL = "istio.io/dataplane-mode"
OVER = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Knowledge:
    """What a set of objects says.

    ``owners``: managed pods' addresses -> (node, ``namespace/name``), where exactly one pod that lives claims one.
    ``doubtful``: addresses of which that cannot be said; about them nothing is expected of anybody. So it is, a known
    limit, of one that a pod which is not managed has from one that was: nodes do not watch pods that are not managed in
    all namespaces, and go by the ended one's object for as long as it stays.
    ``infos``: what nodes announce: incarnation and addresses; ``nodes``: Nodes by name, with their addresses.
    """

    owners: Mapping[Address, tuple[str, str]]
    doubtful: frozenset[Address]
    infos: Mapping[str, tuple[str, tuple[str, ...]]]
    nodes: Mapping[str, frozenset[Address]]

    def says(self, address: Address) -> tuple[str, str] | None:
        """Give the managed pod that has an address."""
        return self.owners.get(address)


NOTHING = Knowledge({}, frozenset(), {}, {})


def know(objects: ClusterObjects) -> Knowledge:
    """Read objects."""
    enrolled = {one.name for one in objects.namespaces if _says_kmesh(one.labels)}
    nodes = {node.name: frozenset(node.addresses) for node in objects.nodes}
    claims: dict[Address, list[PodObject]] = {}
    for pod in objects.pods:
        for address in pod.addresses:
            claims.setdefault(address, []).append(pod)
    owners, doubtful = {}, set()
    for address, pods in claims.items():
        living = [pod for pod in pods if pod.phase not in OVER and not pod.deleting and pod.node in nodes]
        if len(living) != 1:
            doubtful.add(address)
        elif managed(living[0], enrolled):
            owners[address] = (living[0].node, living[0].label)
        elif any(managed(pod, enrolled) for pod in pods):
            doubtful.add(address)
    infos = {info.name: (info.boot_id, info.addresses) for info in objects.node_infos}
    taken = {address for node in objects.nodes for address in node.addresses}
    return Knowledge(owners, frozenset(doubtful | (claims.keys() & taken)), infos, nodes)


def managed(pod: PodObject, enrolled: Iterable[str]) -> bool:
    """Tell whether a pod is managed: by its own label, else by its namespace's."""
    own = pod.labels.get(LABEL, "")
    return _says_kmesh(pod.labels) or (own != "none" and pod.namespace in enrolled)


def _says_kmesh(labels: Mapping[str, str]) -> bool:
    return labels.get(LABEL, "").lower() == "kmesh"

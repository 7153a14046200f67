# SPDX-License-Identifier: Apache-2.0
"""Cluster objects -> view: who is enrolled, who is a peer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain
from typing import Any

from kmesh.cluster.objects import (
    CORE_API,
    NAMESPACE,
    NODE_INFO_API,
    NODE_TRAFFIC_ANNOTATION,
    REPLAY_ANNOTATION,
    SENDS_ANNOTATION,
    SIDECAR_ANNOTATION,
    ClusterObjects,
    Namespace,
    NodeInfo,
    NodeObject,
    PodObject,
    Service,
    oddities,
)
from kmesh.cluster.placement import Dispute, Ground, place
from kmesh.cluster.shared import find
from kmesh.text import shown
from kmesh_bpf import Address, ConfigError, Key, Network, Node, Peer, Peers, Pod, Pods, View

MODE_LABEL, KMESH, NONE = "istio.io/dataplane-mode", "kmesh", "none"
"""The label that enrols, its value, in any case, and the value by which a pod stays out, in this case only."""
GATEWAY_LABEL, GATEWAY_CONTROLLER = "gateway.istio.io/managed", "istio.io-mesh-controller"
SIDECAR = "istio-proxy"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Whether a pod is managed, and the sentence that says why."""

    managed: bool
    reason: str


def enrolment(pod: PodObject, namespace: Namespace | None) -> Enrolment:
    """Decide whether a pod is managed, as Kmesh does: its own label wins over its namespace's.

    A label of any other value than these two ("ambient") says nothing: the namespace's counts. A pod is managed from
    when it has an address and a node, whatever its phase, until its object is gone: init containers send, and what is
    being deleted still does.
    """
    hindrance = _hindrance(pod)
    if hindrance is not None:
        return Enrolment(False, hindrance)
    own = pod.labels.get(MODE_LABEL, "")
    if own.lower() == KMESH or own == NONE:
        return Enrolment(own != NONE, f"its own label says {own!r}")
    if namespace is not None and enrols(namespace):
        return Enrolment(True, f"the label of namespace {pod.namespace} says {namespace.labels[MODE_LABEL]!r}")
    return Enrolment(False, f"neither it nor its namespace carries the label {MODE_LABEL}=Kmesh")


def _hindrance(pod: PodObject) -> str | None:
    """Say why a pod cannot be managed, whatever labels say; None: it can."""
    if pod.host_network:
        return "it shares its node's network (hostNetwork)"
    if not pod.node:
        return "it is on no node yet"
    if not pod.addresses:
        return "it has no address"
    if SIDECAR in pod.containers or SIDECAR_ANNOTATION in pod.annotations:
        return "it has an Istio sidecar"
    if _is_gateway(pod):
        return "it is a gateway of the Istio mesh controller"
    return None


def _is_gateway(pod: PodObject) -> bool:
    return pod.labels.get(GATEWAY_LABEL, "").lower() == GATEWAY_CONTROLLER


def enrols(namespace: Namespace) -> bool:
    """Tell whether a namespace's label enrols its pods."""
    return namespace.labels.get(MODE_LABEL, "").lower() == KMESH


def local_node(objects: ClusterObjects, name: str) -> NodeObject:
    """Give this node's Node object.

    Raises:
        ConfigError: there is none, or it has no address or no boot id.

    """
    node = find(objects.nodes, name)
    if node is None:
        raise ConfigError(f"the cluster has no Node {shown(name)}; is NODE_NAME right?")
    if not node.addresses or not node.boot_id:
        refused = f": {'; '.join(oddities(node))}" if node.refused else ""
        raise ConfigError(f"Node {name} has no InternalIP or no status.nodeInfo.bootID{refused}")
    return node


def build_view(
    objects: ClusterObjects,
    node_name: str,
    *,
    keys: Mapping[int, Key],
    services: tuple[Network, ...],
    announced: int,
    announced_at: float,
    boot_id: str,
    evidence: frozenset[Address] = frozenset(),
    known: frozenset[Address] = frozenset(),
) -> View:
    """Make the view of a node; ``boot_id`` is its incarnation. ``evidence``, ``known``: see :func:`pod_claims`.

    Raises:
        ConfigError: see :func:`local_node`.

    """
    node = local_node(objects, node_name)
    nodes = {one.name: one for one in objects.nodes}
    others = (peer_of(info, nodes.get(info.name)) for info in objects.node_infos if info.name != node_name)
    placed, disputes, contested = _placed(objects, node_name, evidence, known)
    those: tuple[NodeObject | NodeInfo | Service, ...] = (*objects.nodes, *objects.node_infos, *objects.service_objects)
    return View(
        node=Node(node.name, node.addresses, boot_id, node.pod_cidrs),
        peers=Peers(one for one in others if not former_self(one, node)),
        pods=Pods(placed),
        keys=dict(keys),
        services=services,
        candidates=frozenset(chain.from_iterable(map(candidates_of, those))).difference(
            *(pod.addresses for pod in placed)
        ),
        contested=contested,
        problems=_to_mend(disputes),
        announced=announced,
        announced_at=announced_at,
    )


def pod_claims(
    objects: ClusterObjects,
    node: str = "",
    *,
    evidence: frozenset[Address] = frozenset(),
    known: frozenset[Address] = frozenset(),
) -> tuple[tuple[Pod, ...], tuple[str, ...]]:
    """Give the managed pods by name, as a node sees them, and sentences on claims that do not hold.

    ``node``: the node's name, empty for none in particular. ``evidence``: addresses that devices of this node's pods
    carry; ``known``: peers' that tunnels in the kernel lead to; both empty where nothing is known of that.
    """
    pods, disputes, _ = _placed(objects, node, evidence, known)
    return pods, _to_mend(disputes)


def refused(objects: ClusterObjects) -> dict[str, str]:
    """Give why pods that are enrolled lack an address, by ``namespace/name``, as no node in particular sees it."""
    disputes = _placed(objects, "", frozenset(), frozenset())[1]
    return {dispute.pod: dispute.sentence for dispute in disputes if not dispute.holds}


def _to_mend(disputes: Iterable[Dispute]) -> tuple[str, ...]:
    return tuple(dispute.sentence for dispute in disputes if not dispute.ordinary)


def _placed(
    objects: ClusterObjects, node: str, evidence: frozenset[Address], known: frozenset[Address]
) -> tuple[tuple[Pod, ...], tuple[Dispute, ...], frozenset[Address]]:
    namespaces = {namespace.name: namespace for namespace in objects.namespaces}
    nodes = {one.name: one for one in objects.nodes}
    here = nodes.get(node)
    ground = Ground(
        here=node,
        own=frozenset(here.addresses if here else ()),
        evidence=evidence,
        nodes=frozenset(nodes),
        of_nodes={address: name for name in sorted(nodes, reverse=True) for address in addresses_kept(nodes[name])},
        known=known,
        ends=frozenset(address for one in nodes.values() for address in ends_kept(one)),
    )
    return place((pod for pod in objects.pods if enrolment(pod, namespaces.get(pod.namespace)).managed), ground)


def kmesh_node_info(
    node: NodeObject, spi: int, replay_window: int, boot_id: str, sends: int | None = None
) -> dict[str, Any]:
    """Give the KmeshNodeInfo that announces a node, and goes with it.

    ``sends``: the lowest key version that it sends with; None: it does not tell.
    """
    annotations = {NODE_TRAFFIC_ANNOTATION: "true"}
    if replay_window:
        annotations[REPLAY_ANNOTATION] = str(replay_window)
    if sends:
        annotations[SENDS_ANNOTATION] = str(sends)
    metadata: dict[str, Any] = {"name": node.name, "namespace": NAMESPACE, "annotations": annotations}
    if node.uid:
        owner = {"apiVersion": CORE_API, "kind": "Node", "name": node.name, "uid": node.uid}
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": NODE_INFO_API,
        "kind": "KmeshNodeInfo",
        "metadata": metadata,
        "spec": {
            "spi": spi,
            "addresses": [str(address) for address in node.addresses],
            "bootID": boot_id,
            "podCIDRS": [str(cidr) for cidr in node.pod_cidrs],
        },
    }


def announces_boot_id(info: NodeInfo, node: NodeObject | None) -> bool:
    """Tell whether a KmeshNodeInfo names the kernel's boot id, as Go nodes do; ``node``: the Node that it speaks for.

    It is never an incarnation of ours (kmesh_bpf/core/incarnation.py).
    """
    return node is not None and node.boot_id == info.boot_id


def announced_by_us(info: NodeInfo, node: NodeObject | None) -> bool:
    """Tell whether a daemon of this project wrote a KmeshNodeInfo last; ``node``: the Node that it speaks for.

    A Go node changes the spec only: annotations stay that a daemon of ours wrote there before.
    """
    ours = not info.annotations.keys().isdisjoint((REPLAY_ANNOTATION, NODE_TRAFFIC_ANNOTATION))
    return ours and not announces_boot_id(info, node)


def peer_of(info: NodeInfo, node: NodeObject | None) -> Peer:
    """Give the peer that an info announces; ``node``: the Node that it speaks for, None: it is gone.

    What that says of pod CIDRs counts, not the info.

    Nor does an info draw to its node what is meant for addresses that the Node has not, be they nobody's.
    """
    addresses = tuple(ip_address(address) for address in info.addresses)
    unconfirmed = frozenset(addresses).difference(node.addresses if node else ())
    ours = announced_by_us(info, node)
    return Peer(
        Node(info.name, addresses, info.boot_id, node.pod_cidrs if node else ()),
        info.spi,
        (info.replay_window or 0) if ours else 0,
        info.node_traffic and ours,
        sends=info.sends if ours else 0,
        alive=node is not None and not node.deleting and not info.deleting,
        vouched=node is None or not unconfirmed,
        unconfirmed=unconfirmed,
    )


def former_self(peer: Peer, node: NodeObject) -> bool:
    """Tell whether a peer is this node before it was renamed: of a Node that is gone, with an address of ours."""
    return not peer.alive and not set(peer.node.addresses).isdisjoint(node.addresses)


def addresses_kept(node: NodeObject) -> tuple[Address, ...]:
    """Give a Node's addresses, none of one that is about to go."""
    return () if node.deleting else node.addresses


def ends_kept(node: NodeObject) -> tuple[Address, ...]:
    """Give those of a Node's addresses that tunnels lead to: of each family the first; none of one that is to go."""
    firsts = {address.version: address for address in reversed(addresses_kept(node))}
    return tuple(firsts.values())


def candidates_of(one: NodeObject | NodeInfo | Service) -> Iterable[Address]:
    """Give the addresses of an object that DNAT may turn into a pod's."""
    match one:
        case NodeObject():
            return (*one.addresses, *one.external)
        case NodeInfo():
            return map(ip_address, one.addresses)
        case Service():
            return one.addresses

"""Cluster objects -> view: who is enrolled, who is a peer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from kmesh.cluster.objects import (
    NAMESPACE,
    NODE_INFO_API,
    REPLAY_ANNOTATION,
    ClusterObjects,
    Namespace,
    NodeInfo,
    NodeObject,
    PodObject,
)
from kmesh_bpf import ConfigError, Key, Network, Node, Peer, Pod, View

MODE_LABEL, KMESH = "istio.io/dataplane-mode", "kmesh"
"""The label that enrols, and its value, in any case."""
GATEWAY_LABEL, GATEWAY_CONTROLLER = "gateway.istio.io/managed", "istio.io-mesh-controller"
SIDECAR = "istio-proxy"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Whether a pod is managed, and the sentence that says why."""

    managed: bool
    reason: str


def enrolment(pod: PodObject, namespace: Namespace | None) -> Enrolment:
    """Decide whether a pod is managed: its own label wins over its namespace's.

    A label of another value ("ambient") hands the pod to another data plane: not ours. A pod that is being deleted
    stays managed as long as it is Running: it still sends.
    """
    for excluded, reason in (
        (pod.host_network, "it shares its node's network (hostNetwork)"),
        (pod.phase != "Running", f"it is not Running ({pod.phase or 'no phase'})"),
        (not pod.addresses, "it has no address"),
        (SIDECAR in pod.containers, "it has an Istio sidecar"),
        (pod.labels.get(GATEWAY_LABEL) == GATEWAY_CONTROLLER, "it is a gateway of the Istio mesh controller"),
    ):
        if excluded:
            return Enrolment(False, reason)
    own = pod.labels.get(MODE_LABEL)
    if own is not None:
        return Enrolment(own.lower() == KMESH, f"its own label says {own!r}")
    if namespace is not None and enrols(namespace):
        return Enrolment(True, f"the label of namespace {pod.namespace} says {namespace.labels[MODE_LABEL]!r}")
    return Enrolment(False, f"neither it nor its namespace carries the label {MODE_LABEL}=Kmesh")


def enrols(namespace: Namespace) -> bool:
    """Tell whether a namespace's label enrols its pods."""
    return namespace.labels.get(MODE_LABEL, "").lower() == KMESH


def local_node(objects: ClusterObjects, name: str) -> NodeObject:
    """Give this node's Node object.

    Raises:
        ConfigError: there is none, or it has no address or no boot id.

    """
    node = next((node for node in objects.nodes if node.name == name), None)
    if node is None:
        raise ConfigError(f"the cluster has no Node {name!r}; is NODE_NAME right?")
    if not node.addresses or not node.boot_id:
        raise ConfigError(f"Node {name} has no InternalIP or no status.nodeInfo.bootID")
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
) -> View:
    """Make the view of a node; ``boot_id`` is its incarnation.

    Raises:
        ConfigError: see :func:`local_node`.

    """
    node = local_node(objects, node_name)
    others = (_peer(info) for info in objects.node_infos if info.name != node_name)
    # Under another name but with an address of ours: this node before it was renamed. No tunnel to ourselves.
    peers = (peer for peer in others if not set(peer.node.addresses) & set(node.addresses))
    return View(
        node=Node(node.name, node.addresses, boot_id, node.pod_cidrs),
        peers=tuple(sorted(peers, key=lambda peer: peer.node.name)),
        pods=managed_pods(objects),
        keys=dict(keys),
        services=services,
        announced=announced,
        announced_at=announced_at,
    )


def managed_pods(objects: ClusterObjects) -> tuple[Pod, ...]:
    """Give the managed pods by name, without addresses that a node has; of two pods at one the later name yields."""
    namespaces = {namespace.name: namespace for namespace in objects.namespaces}
    taken = {address for node in objects.nodes for address in node.addresses}
    taken.update(ip_address(text) for info in objects.node_infos for text in info.addresses)
    found = []
    for pod in sorted(objects.pods, key=lambda pod: (pod.namespace, pod.name)):
        if not enrolment(pod, namespaces.get(pod.namespace)).managed:
            continue
        free = tuple(address for address in pod.addresses if address not in taken)
        taken.update(free)
        if free:
            found.append(Pod(f"{pod.namespace}/{pod.name}", pod.node, free))
    return tuple(found)


def kmesh_node_info(node: NodeObject, spi: int, replay_window: int, boot_id: str) -> dict[str, Any]:
    """Give the KmeshNodeInfo that announces a node."""
    metadata: dict[str, Any] = {"name": node.name, "namespace": NAMESPACE}
    if replay_window:
        metadata["annotations"] = {REPLAY_ANNOTATION: str(replay_window)}
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


def _peer(info: NodeInfo) -> Peer:
    return Peer(
        Node(
            info.name,
            tuple(ip_address(address) for address in info.addresses),
            info.boot_id,
            tuple(ip_network(cidr) for cidr in info.pod_cidrs),
        ),
        info.spi,
        info.replay_window or 0,
    )

"""Cluster objects -> view: who is enrolled, who is a peer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from kmesh.cluster.objects import NAMESPACE, NODE_INFO_API, ClusterObjects, Namespace, NodeInfo, NodeObject, PodObject
from kmesh_bpf import ConfigError, Key, Network, Node, Peer, Pod, View

MODE_LABEL = "istio.io/dataplane-mode"
GATEWAY_LABEL, GATEWAY_CONTROLLER = "gateway.istio.io/managed", "istio.io-mesh-controller"
SIDECAR = "istio-proxy"
REPLAY_ANNOTATION = "kmesh.net/ipsec-replay-window"
"""Announces ESN with an anti-replay window of so many packets; Go nodes announce none."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Whether a pod is managed, and the sentence that says why."""

    managed: bool
    reason: str


def enrolment(pod: PodObject, namespace: Namespace | None) -> Enrolment:
    """Decide whether a pod is managed: its own label wins over its namespace's."""
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
        # Any other value, "none" included, hands the pod to nobody or to another data plane.
        return Enrolment(own.lower() == "kmesh", f"its own label says {own}")
    inherited = namespace.labels.get(MODE_LABEL) if namespace else None
    if inherited is not None and inherited.lower() == "kmesh":
        return Enrolment(True, f"the label of namespace {pod.namespace} says {inherited}")
    return Enrolment(False, "neither it nor its namespace is labelled")


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
    peers = (_peer(info) for info in objects.node_infos if info.name != node_name)
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
    """Give the managed pods by name; of two with the same address the later name yields."""
    namespaces = {namespace.name: namespace for namespace in objects.namespaces}
    taken = {address for node in objects.nodes for address in node.addresses}
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
    text = info.annotations.get(REPLAY_ANNOTATION, "0")
    return Peer(
        Node(
            info.name,
            tuple(ip_address(address) for address in info.addresses),
            info.boot_id,
            tuple(ip_network(cidr) for cidr in info.pod_cidrs),
        ),
        info.spi,
        int(text) if text.isdecimal() else 0,
    )

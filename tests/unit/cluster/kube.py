# SPDX-License-Identifier: Apache-2.0
"""Manifests as ``kubectl get -o yaml`` prints them, fields that nobody reads among them."""

import base64
import json
from typing import Any

BOOT_ID = "6c8f8b1e-3a0a-4d52-9b7e-1f6a2c3d4e5f"
"""The kernel's, of each node; Go nodes announce it."""
INCARNATION = "0d9c5a52-7f0e-4c1b-8a44-5e2b9d1c7a60"
"""Of a node of ours, which is never the boot id."""


def namespace(name: str = "default", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}, "uid": "u"},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def node(index: int = 1, **spec: Any) -> dict[str, Any]:
    cidrs = [f"10.244.{index}.0/24", f"fd00:244:{index}::/64"]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"n{index}",
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            "uid": f"uid-of-n{index}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec or {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {
            "addresses": [
                {"address": f"10.10.0.{index}", "type": "InternalIP"},
                {"address": f"fd00:10::{index}", "type": "InternalIP"},
                {"address": f"192.0.2.{index}", "type": "ExternalIP"},
                {"address": f"n{index}", "type": "Hostname"},
            ],
            "nodeInfo": {"bootID": BOOT_ID, "kernelVersion": "6.12.0"},
        },
    }


def pod(name: str = "web", index: int = 1, number: int = 10, /, **changes: Any) -> dict[str, Any]:
    """``changes``: labels, annotations, phase, hostNetwork, containers, initContainers, addresses, namespace, created,
    deleting."""
    addresses = changes.get("addresses", [f"10.244.{index}.{number}", f"fd00:244:{index}::{number:x}"])
    spec: dict[str, Any] = {
        "nodeName": f"n{index}",
        "containers": [{"name": one, "image": "i"} for one in changes.get("containers", ["app"])],
    }
    if "initContainers" in changes:
        spec["initContainers"] = [
            {"name": one, "image": "i", "restartPolicy": "Always"} for one in changes["initContainers"]
        ]
    if "hostNetwork" in changes:
        spec["hostNetwork"] = changes["hostNetwork"]
    status = {"phase": changes.get("phase", "Running")}
    if addresses:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": one} for one in addresses]}
    metadata = {"name": name, "namespace": changes.get("namespace", "default"), "labels": changes.get("labels", {})}
    for field, change in (
        ("annotations", "annotations"),
        ("creationTimestamp", "created"),
        ("deletionTimestamp", "deleting"),
    ):
        if change in changes:
            metadata[field] = changes[change]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def node_info(index: int = 2, spi: int = 1, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "kmesh.net/v1alpha1",
        "kind": "KmeshNodeInfo",
        "metadata": {"name": f"n{index}", "namespace": "kmesh-system", "annotations": annotations},
        "spec": {
            "spi": spi,
            "addresses": [f"10.10.0.{index}", f"fd00:10::{index}"],
            "bootID": INCARNATION,
            "podCIDRS": [f"10.244.{index}.0/24", f"fd00:244:{index}::/64"],
        },
    }


def service_cidr(name: str = "kubernetes", cidrs: list[str] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": cidrs or ["10.96.0.0/12"]},
    }


def service(name: str = "web", number: int = 10, **changes: Any) -> dict[str, Any]:
    """``changes``: ``status``, ``namespace``, and fields of the spec."""
    own = [f"10.96.0.{number}", f"fd00:96::{number:x}"]
    status = changes.pop("status", {"loadBalancer": {}})
    spec = {
        "clusterIP": own[0],
        "clusterIPs": own,
        "ports": [{"port": 80, "protocol": "TCP"}],
        "selector": {"app": "x"},
    }
    metadata = {"name": name, "namespace": changes.pop("namespace", "default")}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec | changes, "status": status}


def entry(spi: int = 1, material: bytes = bytes(range(36)), **changes: Any) -> dict[str, Any]:
    coded = base64.b64encode(material).decode()
    return {"spi": spi, "aeadKeyName": "rfc4106(gcm(aes))", "aeadKey": coded, "length": 128} | changes


def material(number: int) -> bytes:
    """Give the bytes of a key that a daemon takes, another one for each number below 32."""
    return bytes((number * 40 + one) % 256 for one in range(36))


def secret(current: Any, previous: Any = None) -> dict[str, Any]:
    """``current`` and ``previous``: what stands in ipSec and ipSecPrevious, as JSON unless bytes."""

    def coded(value: Any) -> str:
        return base64.b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode()

    data = {"ipSec": coded(current)} | ({"ipSecPrevious": coded(previous)} if previous is not None else {})
    metadata = {"name": "kmesh-ipsec", "namespace": "kmesh-system"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}

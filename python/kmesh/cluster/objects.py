"""Kubernetes objects, only the fields used: from plain dicts, as ``kubectl get -o yaml`` prints them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from kmesh_bpf import Address, ConfigError, Network

NAMESPACE = "kmesh-system"
SECRET_NAME = "kmesh-ipsec"  # noqa: S105 # the name of the object that holds it
NODE_INFO_API = "kmesh.net/v1alpha1"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace's labels."""

    name: str
    labels: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class NodeObject:
    """A Node: InternalIPs in order, pod CIDRs, the kernel's boot id."""

    name: str
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Network, ...]
    boot_id: str


@dataclass(frozen=True, slots=True)
class PodObject:
    """A Pod, as far as enrolment and addressing go."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(hash=False)
    node: str
    host_network: bool
    phase: str
    addresses: tuple[Address, ...]
    containers: frozenset[str]


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A KmeshNodeInfo; addresses and CIDRs as text, for keys are derived from the text."""

    name: str
    spi: int
    addresses: tuple[str, ...]
    boot_id: str
    pod_cidrs: tuple[str, ...]
    annotations: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class ClusterObjects:
    """All objects of a cluster, and sentences about those that could not be read."""

    namespaces: tuple[Namespace, ...] = ()
    nodes: tuple[NodeObject, ...] = ()
    pods: tuple[PodObject, ...] = ()
    node_infos: tuple[NodeInfo, ...] = ()
    secret: Mapping[str, Any] | None = field(default=None, repr=False)
    problems: tuple[str, ...] = ()


Object = Namespace | NodeObject | PodObject | NodeInfo


def identity(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    """Give (kind, namespace, name).

    Raises:
        ConfigError: it is no object with a kind and a name.

    """
    metadata = manifest.get("metadata")
    kind, name = manifest.get("kind"), metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(kind, str) or not isinstance(name, str) or not isinstance(metadata, Mapping):
        raise ConfigError("an object without kind or metadata.name")
    return kind, str(metadata.get("namespace") or ""), name


def parse(manifest: Mapping[str, Any]) -> Object | None:
    """Make the object; None for kinds that do not concern us.

    Raises:
        ConfigError: a field is missing or cannot be used; names the object and what is wrong.

    """
    kind, namespace, name = identity(manifest)
    readers: dict[str, Callable[[Mapping[str, Any]], Object]] = {
        "Namespace": _namespace,
        "Node": _node,
        "Pod": _pod,
        "KmeshNodeInfo": _node_info,
    }
    if kind not in readers:
        return None
    try:
        return readers[kind](manifest)
    except ConfigError as error:
        raise ConfigError(f"{_label(kind, namespace, name)}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{_label(kind, namespace, name)}: {what}") from error


def _label(kind: str, namespace: str, name: str) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _labels(manifest: Mapping[str, Any], key: str = "labels") -> dict[str, str]:
    return {str(name): str(value) for name, value in (manifest["metadata"].get(key) or {}).items()}


def _namespace(manifest: Mapping[str, Any]) -> Namespace:
    return Namespace(manifest["metadata"]["name"], _labels(manifest))


def _node(manifest: Mapping[str, Any]) -> NodeObject:
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    internal = [one["address"] for one in status.get("addresses") or [] if one["type"] == "InternalIP"]
    return NodeObject(
        manifest["metadata"]["name"],
        tuple(ip_address(text) for text in internal),
        tuple(ip_network(text) for text in cidrs),
        str((status.get("nodeInfo") or {}).get("bootID") or ""),
    )


def _pod(manifest: Mapping[str, Any]) -> PodObject:
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    addresses = [one["ip"] for one in status.get("podIPs") or []]
    if not addresses and status.get("podIP"):
        addresses = [status["podIP"]]
    containers = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    return PodObject(
        namespace=str(manifest["metadata"].get("namespace") or "default"),
        name=manifest["metadata"]["name"],
        labels=_labels(manifest),
        node=str(spec.get("nodeName") or ""),
        host_network=bool(spec.get("hostNetwork")),
        phase=str(status.get("phase") or ""),
        addresses=tuple(ip_address(text) for text in addresses),
        containers=frozenset(str(one["name"]) for one in containers),
    )


def _node_info(manifest: Mapping[str, Any]) -> NodeInfo:
    if manifest.get("apiVersion") != NODE_INFO_API:
        raise ConfigError(f"apiVersion {manifest.get('apiVersion')!r} is not {NODE_INFO_API}")
    spec = manifest["spec"]
    spi = spec["spi"]
    if not isinstance(spi, int) or isinstance(spi, bool) or spi < 1:
        raise ConfigError(f"spec.spi {spi!r} is no number above 0")
    for text in spec["addresses"]:
        ip_address(text)
    for text in spec.get("podCIDRS") or []:
        ip_network(text)
    return NodeInfo(
        manifest["metadata"]["name"],
        spi,
        tuple(spec["addresses"]),
        str(spec["bootID"]),
        tuple(spec.get("podCIDRS") or []),
        _labels(manifest, "annotations"),
    )

"""Kubernetes objects, only the fields used: from plain dicts, as ``kubectl get -o yaml`` prints them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmesh.cluster.fields import Fields
from kmesh_bpf import Address, ConfigError, Network

NAMESPACE = "kmesh-system"
SECRET_NAME = "kmesh-ipsec"  # noqa: S105 # the name of the object that holds it
CORE_API = "v1"
NODE_INFO_API = "kmesh.net/v1alpha1"
SERVICE_CIDR_API = "networking.k8s.io/v1"
REPLAY_ANNOTATION = "kmesh.net/ipsec-replay-window"
"""Announces ESN with an anti-replay window of so many packets; Go nodes announce none."""
LARGEST_WINDOW = 4096
"""Packets: XFRMA_REPLAY_ESN_MAX of linux/xfrm.h."""
LARGEST_SPI = (1 << 32) - 1
LARGEST_GENERATION = (1 << 63) - 1

Identity = tuple[str, str, str]
"""(kind, namespace, name); the namespace is empty for what has none."""


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
    """A Pod, as far as enrolment and addressing go; ``containers`` holds the init containers' names too."""

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
    """A KmeshNodeInfo; addresses and CIDRs as text, for keys are derived from the text.

    ``generation``: the server's count of changes of its spec, 0 where nobody counts; ``uid`` tells it from one of the
    same name that was there before. They are no part of what it says.
    """

    name: str
    spi: int
    addresses: tuple[str, ...]
    boot_id: str
    pod_cidrs: tuple[str, ...]
    annotations: Mapping[str, str] = field(hash=False)
    generation: int = field(default=0, compare=False)
    uid: str = field(default="", compare=False)

    @property
    def replay_window(self) -> int | None:
        """The announced anti-replay window in packets, 0 without the annotation; None where it cannot be used."""
        text = self.annotations.get(REPLAY_ANNOTATION, "0")
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(LARGEST_WINDOW))):
            return None
        window = int(text)
        return window if window <= LARGEST_WINDOW else None


@dataclass(frozen=True, slots=True)
class KeySecret:
    """The Secret ``kmesh-ipsec``, whole; :mod:`kmesh.cluster.secret` reads it."""

    manifest: Mapping[str, Any] = field(hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class ServiceRange:
    """A ServiceCIDR: where Services have their addresses."""

    cidrs: tuple[Network, ...]


Object = Namespace | NodeObject | PodObject | NodeInfo | KeySecret | ServiceRange


@dataclass(frozen=True, slots=True)
class ClusterObjects:
    """All objects of a cluster, and sentences about those that could not be read.

    Not ``complete``: the cluster has never been seen as a whole; nothing may be removed on the ground of this.
    """

    namespaces: tuple[Namespace, ...] = ()
    nodes: tuple[NodeObject, ...] = ()
    pods: tuple[PodObject, ...] = ()
    node_infos: tuple[NodeInfo, ...] = ()
    secret: Mapping[str, Any] | None = field(default=None, repr=False)
    services: tuple[Network, ...] = ()
    problems: tuple[str, ...] = ()
    complete: bool = True


def collect(objects: Iterable[Object], problems: Iterable[str] = ()) -> ClusterObjects:
    """Sort the objects by kind and say which of them are odd, after the problems already known."""
    found = tuple(objects)
    node_infos = tuple(one for one in found if isinstance(one, NodeInfo))
    services = (cidr for one in found if isinstance(one, ServiceRange) for cidr in one.cidrs)
    return ClusterObjects(
        namespaces=tuple(one for one in found if isinstance(one, Namespace)),
        nodes=tuple(one for one in found if isinstance(one, NodeObject)),
        pods=tuple(one for one in found if isinstance(one, PodObject)),
        node_infos=node_infos,
        secret=next((one.manifest for one in found if isinstance(one, KeySecret)), None),
        services=tuple(dict.fromkeys(services)),
        problems=(*problems, *oddities(node_infos)),
    )


def oddities(node_infos: Iterable[NodeInfo]) -> tuple[str, ...]:
    """Say what is odd about objects that can be used all the same."""
    return tuple(
        f"KmeshNodeInfo {NAMESPACE}/{info.name}: annotation {REPLAY_ANNOTATION} is no number from 0 to "
        f"{LARGEST_WINDOW}; taken as 0, no ESN"
        for info in node_infos
        if info.replay_window is None
    )


def identity(manifest: Mapping[str, Any]) -> Identity | None:
    """Tell which object it is; None for kinds that do not concern us.

    Raises:
        ConfigError: it has no kind, or is of a kind that concerns us and has no name.

    """
    kind = manifest.get("kind")
    if not isinstance(kind, str):
        raise ConfigError("an object without kind")
    # Other API groups have a Node or a Pod of their own (Longhorn, metrics.k8s.io); a KmeshNodeInfo is always ours.
    foreign = kind != "KmeshNodeInfo" and _group(manifest.get("apiVersion")) != _group(APIS.get(kind))
    if kind not in READERS or foreign:
        return None
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(name, str) or not name:
        raise ConfigError(f"a {kind} without metadata.name")
    if kind in CLUSTER_WIDE:
        return kind, "", name
    return kind, str(metadata.get("namespace") or "default"), name


def parse(manifest: Mapping[str, Any]) -> Object | None:
    """Make the object; None for those that do not concern us.

    Raises:
        ConfigError: a field is missing or cannot be used; names the object, the field and what is wrong.

    """
    who = identity(manifest)
    if who is None or (who[0] == "Secret" and who != ("Secret", NAMESPACE, SECRET_NAME)):
        return None
    kind = who[0]
    wanted = APIS[kind]
    try:
        if manifest.get("apiVersion") != wanted:
            raise ConfigError(f"apiVersion {manifest.get('apiVersion')!r} is not {wanted}")
        return READERS[kind](manifest, Fields(manifest))
    except ConfigError as error:
        raise ConfigError(f"{label(who)}: {error}") from error


def label(who: Identity) -> str:
    """Give an object's name for people: ``Pod default/web``, ``Node n1``."""
    kind, namespace, name = who
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _namespace(_: Mapping[str, Any], top: Fields) -> Namespace:
    metadata = top.part("metadata")
    return Namespace(metadata.text("name"), metadata.labels("labels"))


def _node(_: Mapping[str, Any], top: Fields) -> NodeObject:
    spec, status = top.part("spec"), top.part("status")
    single = spec.text("podCIDR", "")
    cidrs = spec.cidrs("podCIDRs") or (spec.cidrs_of([single], "podCIDR") if single else ())
    internal = [one for one in status.parts("addresses") if one.text("type") == "InternalIP"]
    return NodeObject(
        top.part("metadata").text("name"),
        tuple(one.address("address") for one in internal),
        cidrs,
        status.part("nodeInfo").text("bootID", ""),
    )


def _pod(_: Mapping[str, Any], top: Fields) -> PodObject:
    metadata, spec, status = top.part("metadata"), top.part("spec"), top.part("status")
    addresses = tuple(one.address("ip") for one in status.parts("podIPs"))
    if not addresses and status.text("podIP", ""):
        addresses = (status.address("podIP"),)
    return PodObject(
        namespace=metadata.text("namespace", "default"),
        name=metadata.text("name"),
        labels=metadata.labels("labels"),
        node=spec.text("nodeName", ""),
        host_network=spec.flag("hostNetwork"),
        phase=status.text("phase", ""),
        addresses=addresses,
        containers=frozenset(one.text("name") for one in (*spec.parts("containers"), *spec.parts("initContainers"))),
    )


def _node_info(_: Mapping[str, Any], top: Fields) -> NodeInfo:
    metadata, spec = top.part("metadata"), top.part("spec")
    if metadata.text("namespace", "") != NAMESPACE:
        # Whoever may write into another namespace must not be able to speak for a node.
        raise ConfigError(f"metadata.namespace is not {NAMESPACE}; it does not count")
    addresses = spec.addresses("addresses")
    texts = spec.texts("addresses")
    if not addresses:
        raise ConfigError("spec.addresses is empty")
    for address, text in zip(addresses, texts, strict=True):
        if str(address) != text:
            # Both ends derive keys from the text: written in another way, they would never understand each other.
            raise ConfigError(f"spec.addresses: {text!r} is not written as {str(address)!r}")
    spec.cidrs("podCIDRS")
    return NodeInfo(
        metadata.text("name"),
        spec.number("spi", 1, LARGEST_SPI),
        texts,
        spec.text("bootID"),
        spec.texts("podCIDRS"),
        metadata.labels("annotations"),
        metadata.number("generation", 0, LARGEST_GENERATION, default=0),
        metadata.text("uid", ""),
    )


def _secret(manifest: Mapping[str, Any], _: Fields) -> KeySecret:
    return KeySecret(manifest)


def _service_cidr(_: Mapping[str, Any], top: Fields) -> ServiceRange:
    return ServiceRange(top.part("spec").cidrs("cidrs"))


def _group(api: object) -> str:
    """Give the group of an apiVersion; empty for the core's, and for whatever is none."""
    return api.rpartition("/")[0] if isinstance(api, str) else ""


CLUSTER_WIDE = frozenset({"Namespace", "Node", "ServiceCIDR"})
"""Kinds whose objects are in no namespace."""
APIS = {
    "Namespace": CORE_API,
    "Node": CORE_API,
    "Pod": CORE_API,
    "KmeshNodeInfo": NODE_INFO_API,
    "Secret": CORE_API,
    "ServiceCIDR": SERVICE_CIDR_API,
}
READERS: dict[str, Callable[[Mapping[str, Any], Fields], Object]] = {
    "Namespace": _namespace,
    "Node": _node,
    "Pod": _pod,
    "KmeshNodeInfo": _node_info,
    "Secret": _secret,
    "ServiceCIDR": _service_cidr,
}

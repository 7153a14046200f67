# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects, only the fields used: from plain dicts, as ``kubectl get -o yaml`` prints them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from kmesh.cluster.fields import LONGEST_WORD, Fields, nameable
from kmesh.text import shown
from kmesh_bpf import Address, ConfigError, Network, impossible

NAMESPACE = "kmesh-system"
SECRET_NAME = "kmesh-ipsec"  # noqa: S105 # the name of the object that holds it
CORE_API = "v1"
NODE_INFO_API = "kmesh.net/v1alpha1"
SERVICE_CIDR_API = "networking.k8s.io/v1"
REPLAY_ANNOTATION = "kmesh.net/ipsec-replay-window"
"""Announces ESN with an anti-replay window of so many packets; Go nodes announce none."""
NODE_TRAFFIC_ANNOTATION = "kmesh.net/ipsec-node-traffic"
"""``"true"``: the node takes what managed pods send to its own addresses encrypted; Go nodes announce nothing."""
SENDS_ANNOTATION = "kmesh.net/ipsec-sends"
"""The lowest key version that the node sends with to any peer; Go nodes, and earlier versions of ours, do not tell."""
SIDECAR_ANNOTATION = "sidecar.istio.io/status"
"""What Istio's injector leaves on a pod that it gave a sidecar."""
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
    """A Node: InternalIPs in order, pod CIDRs, the kernel's boot id; ``external`` are its ExternalIPs.

    ``uid`` tells it from one of the same name that was there before; ``deleting``: it is about to go. ``refused``: what
    it has as InternalIPs and no node can have (:func:`kmesh_bpf.impossible`).
    """

    name: str
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Network, ...]
    boot_id: str
    external: tuple[Address, ...] = ()
    uid: str = ""
    deleting: bool = False
    refused: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class PodObject:
    """A Pod, as far as enrolment and addressing go; ``containers`` holds the init containers' names too.

    ``created`` is the server's text (UTC, to the second: earlier ones sort first), empty where nobody wrote it.
    ``addresses`` are claims, be they possible or not (:mod:`kmesh.cluster.placement`).
    """

    namespace: str
    name: str
    labels: Mapping[str, str] = field(hash=False)
    node: str
    host_network: bool
    phase: str
    addresses: tuple[Address, ...]
    containers: frozenset[str]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    created: str = ""
    deleting: bool = False

    @property
    def label(self) -> str:
        """Its name for people: ``default/web``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A KmeshNodeInfo; addresses and CIDRs as text, for keys are derived from the text.

    ``generation``: the server's count of changes of its spec, 0 where nobody counts; ``uid`` tells it from one of the
    same name that was there before. They are no part of what it says. ``owner``: the uid of the Node that it goes
    with; ``deleting``: it is about to go. ``spi`` 0: a Go node that has no key yet. ``refused``: what it announces and
    no node can have.
    """

    name: str
    spi: int
    addresses: tuple[str, ...]
    boot_id: str
    pod_cidrs: tuple[str, ...]
    annotations: Mapping[str, str] = field(hash=False)
    generation: int = field(default=0, compare=False)
    uid: str = field(default="", compare=False)
    owner: str = ""
    deleting: bool = False
    refused: tuple[Address, ...] = ()

    @property
    def namespace(self) -> str:
        """Where it is; one elsewhere does not count."""
        return NAMESPACE

    @property
    def node_traffic(self) -> bool:
        """Whether it takes what is sent to its own addresses encrypted."""
        return self.annotations.get(NODE_TRAFFIC_ANNOTATION) == "true"

    @property
    def replay_window(self) -> int | None:
        """The announced anti-replay window in packets, 0 without the annotation; None where it cannot be used."""
        return self._number(REPLAY_ANNOTATION, LARGEST_WINDOW)

    @property
    def sends(self) -> int:
        """The lowest key version that it sends with, as announced; 0: it does not tell, or not in a number."""
        return self._number(SENDS_ANNOTATION, LARGEST_SPI) or 0

    def _number(self, annotation: str, largest: int) -> int | None:
        text = self.annotations.get(annotation, "0")
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(largest))):
            return None
        number = int(text)
        return number if number <= largest else None


@dataclass(frozen=True, slots=True)
class KeySecret:
    """The Secret ``kmesh-ipsec``, whole; :mod:`kmesh.cluster.secret` reads it."""

    manifest: Mapping[str, Any] = field(hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class ServiceRange:
    """A ServiceCIDR: where Services have their addresses."""

    cidrs: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """A Service's addresses, wherever they come from: its cluster's, external ones, a load balancer's."""

    namespace: str
    name: str
    addresses: tuple[Address, ...]


Object = Namespace | NodeObject | PodObject | NodeInfo | KeySecret | ServiceRange | Service


@dataclass(frozen=True, slots=True)
class ClusterObjects:
    """All objects of a cluster, and sentences about those that could not be read. ``services`` are the Service CIDRs.

    Sequences of objects are best :class:`kmesh.cluster.shared.Objects`, which share what did not change with those
    before. Not ``complete``: the cluster has never been seen as a whole; nothing may be removed on the ground of this.
    """

    namespaces: Sequence[Namespace] = ()
    nodes: Sequence[NodeObject] = ()
    pods: Sequence[PodObject] = ()
    node_infos: Sequence[NodeInfo] = ()
    secret: Mapping[str, Any] | None = field(default=None, repr=False)
    services: tuple[Network, ...] = ()
    service_objects: Sequence[Service] = ()
    problems: tuple[str, ...] = ()
    complete: bool = True


def collect(objects: Iterable[Object], problems: Iterable[str] = ()) -> ClusterObjects:
    """Sort the objects by kind and say which of them are odd, after the problems already known."""
    found = tuple(objects)
    nodes = tuple(one for one in found if isinstance(one, NodeObject))
    node_infos = tuple(one for one in found if isinstance(one, NodeInfo))
    read: tuple[NodeObject | NodeInfo, ...] = (*nodes, *node_infos)
    services = (cidr for one in found if isinstance(one, ServiceRange) for cidr in one.cidrs)
    return ClusterObjects(
        namespaces=tuple(one for one in found if isinstance(one, Namespace)),
        nodes=nodes,
        pods=tuple(one for one in found if isinstance(one, PodObject)),
        node_infos=node_infos,
        secret=next((one.manifest for one in found if isinstance(one, KeySecret)), None),
        services=tuple(dict.fromkeys(services)),
        service_objects=tuple(one for one in found if isinstance(one, Service)),
        problems=(*problems, *chain.from_iterable(map(oddities, read))),
    )


def oddities(one: NodeObject | NodeInfo) -> Iterator[str]:
    """Say what is odd about an object that can be used all the same."""
    what, where = f"Node {one.name}", "InternalIP"
    if isinstance(one, NodeInfo):
        what, where = f"KmeshNodeInfo {NAMESPACE}/{one.name}", "spec.addresses"
        if one.replay_window is None:
            yield (
                f"{what}: annotation {REPLAY_ANNOTATION} is no number from 0 to {LARGEST_WINDOW}; taken as 0, no ESN"
            )
    for address in one.refused:
        yield f"{what}: {where} {address} is {impossible(address)}; it does not count"


def identity(manifest: Mapping[str, Any]) -> Identity | None:
    """Tell which object it is; None for kinds that do not concern us.

    Raises:
        ConfigError: it has no kind, or is of a kind that concerns us and has no name, or one that nothing can have.

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
    if not nameable(name):
        raise ConfigError(f"a {kind} whose metadata.name, {shown(name)}, is no name")
    if kind in CLUSTER_WIDE:
        return kind, "", name
    namespace = metadata.get("namespace") or "default"
    if not isinstance(namespace, str) or not nameable(namespace):
        what = f", {shown(namespace)}," if isinstance(namespace, str) else ""
        raise ConfigError(f"{kind} {name}: metadata.namespace{what} is no name")
    return kind, namespace, name


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
        api = manifest.get("apiVersion")
        if api != wanted:
            raise ConfigError(f"apiVersion {shown(api) if isinstance(api, str) else ''} is not {wanted}")
        return READERS[kind](manifest, Fields(manifest, longest=LONGEST_WORD))
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
    metadata, addresses = top.part("metadata"), [(one.text("type"), one) for one in status.parts("addresses")]
    # Nobody checks what a cloud writes as ExternalIP: what is no address there takes nothing else away.
    external = (one.address_if_any("address") for kind, one in addresses if kind == "ExternalIP")
    internal = dict.fromkeys(one.claim("address") for kind, one in addresses if kind == "InternalIP")
    return NodeObject(
        metadata.text("name"),
        tuple(one for one in internal if impossible(one) is None),
        cidrs,
        status.part("nodeInfo").text("bootID", ""),
        tuple(one for one in external if one is not None),
        metadata.text("uid", ""),
        metadata.has("deletionTimestamp"),
        tuple(one for one in internal if impossible(one) is not None),
    )


def _pod(_: Mapping[str, Any], top: Fields) -> PodObject:
    metadata, spec, status = top.part("metadata"), top.part("spec"), top.part("status")
    addresses = tuple(one.claim("ip") for one in status.parts("podIPs"))
    if not addresses and status.text("podIP", ""):
        addresses = (status.claim("podIP"),)
    return PodObject(
        namespace=metadata.text("namespace", "default"),
        name=metadata.text("name"),
        labels=metadata.labels("labels"),
        node=spec.text("nodeName", ""),
        host_network=spec.flag("hostNetwork"),
        phase=status.text("phase", ""),
        addresses=addresses,
        containers=frozenset(one.text("name") for one in (*spec.parts("containers"), *spec.parts("initContainers"))),
        annotations=metadata.annotations("annotations"),
        created=metadata.text("creationTimestamp", ""),
        deleting=metadata.has("deletionTimestamp"),
    )


def _node_info(_: Mapping[str, Any], top: Fields) -> NodeInfo:
    metadata, spec = top.part("metadata"), top.part("spec")
    if metadata.text("namespace", "") != NAMESPACE:
        # Whoever may write into another namespace must not be able to speak for a node.
        raise ConfigError(f"metadata.namespace is not {NAMESPACE}; it does not count")
    addresses = spec.claims("addresses")
    texts = spec.texts("addresses")
    if not addresses:
        raise ConfigError("spec.addresses is empty")
    possible = {text: one for one, text in zip(addresses, texts, strict=True) if impossible(one) is None}
    if not possible:
        raise ConfigError(f"spec.addresses: {addresses[0]} is {impossible(addresses[0])}, and none is left")
    for text, address in possible.items():
        if str(address) != text:
            # Both ends derive keys from the text: written in another way, they would never understand each other.
            raise ConfigError(f"spec.addresses: {text!r} is not written as {str(address)!r}")
    spec.cidrs("podCIDRS")
    return NodeInfo(
        metadata.text("name"),
        spec.number("spi", 0, LARGEST_SPI),
        tuple(possible),
        spec.text("bootID"),
        spec.texts("podCIDRS"),
        metadata.annotations("annotations"),
        metadata.number("generation", 0, LARGEST_GENERATION, default=0),
        metadata.text("uid", ""),
        next((one.text("uid", "") for one in metadata.parts("ownerReferences") if one.text("kind", "") == "Node"), ""),
        metadata.has("deletionTimestamp"),
        tuple(one for one in dict.fromkeys(addresses) if impossible(one) is not None),
    )


def _secret(manifest: Mapping[str, Any], _: Fields) -> KeySecret:
    return KeySecret(manifest)


def _service_cidr(_: Mapping[str, Any], top: Fields) -> ServiceRange:
    return ServiceRange(top.part("spec").cidrs("cidrs"))


def _service(_: Mapping[str, Any], top: Fields) -> Service:
    metadata, spec = top.part("metadata"), top.part("spec")
    own = spec.texts("clusterIPs") or (spec.text("clusterIP", ""),)
    balanced = top.part("status").part("loadBalancer").parts("ingress")
    found = (
        *(spec.address_of(text, "clusterIPs") for text in own if text not in ("", HEADLESS)),
        *spec.addresses("externalIPs"),
        spec.address_if_any("loadBalancerIP"),  # clouds take other things there too, and nobody checks
        *(one.address("ip") for one in balanced if one.text("ip", "")),
    )
    addresses = tuple(dict.fromkeys(one for one in found if one is not None))
    return Service(metadata.text("namespace", "default"), metadata.text("name"), addresses)


def _group(api: object) -> str:
    """Give the group of an apiVersion; empty for the core's, and for whatever is none."""
    return api.rpartition("/")[0] if isinstance(api, str) else ""


HEADLESS = "None"
"""What stands as clusterIP where a Service has none."""
CLUSTER_WIDE = frozenset({"Namespace", "Node", "ServiceCIDR"})
"""Kinds whose objects are in no namespace."""
APIS = {
    "Namespace": CORE_API,
    "Node": CORE_API,
    "Pod": CORE_API,
    "KmeshNodeInfo": NODE_INFO_API,
    "Secret": CORE_API,
    "ServiceCIDR": SERVICE_CIDR_API,
    "Service": CORE_API,
}
READERS: dict[str, Callable[[Mapping[str, Any], Fields], Object]] = {
    "Namespace": _namespace,
    "Node": _node,
    "Pod": _pod,
    "KmeshNodeInfo": _node_info,
    "Secret": _secret,
    "ServiceCIDR": _service_cidr,
    "Service": _service,
}

# SPDX-License-Identifier: Apache-2.0
"""What an operator may name as an end of traffic: pods, Services, nodes, addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import ip_address

from kmesh.cluster.endpoints import Endpoint
from kmesh.cluster.objects import ClusterObjects, PodObject, Service
from kmesh.cluster.snapshot import enrolment, pod_claims, refused
from kmesh.kmeshctl.commands import ENDS
from kmesh.text import short
from kmesh_bpf import Address, ConfigError, Network

PREFIXES = {
    **dict.fromkeys(("pod", "pods", "po"), "pod"),
    **dict.fromkeys(("svc", "service", "services"), "service"),
    **dict.fromkeys(("node", "nodes", "no"), "node"),
}
"""What may stand before a name, as with kubectl."""
NEAR = 3
"""Names offered in the place of one that there is not."""
NOT_KNOWN = "no pod, node or Service CIDR with it is known; what a node has beside its InternalIP is spoken to in clear"


@dataclass(frozen=True, slots=True)
class End:
    """One end of the traffic. ``kind``: pod, node, service or unknown; ``node`` is empty where it is not known."""

    name: str
    kind: str
    node: str
    addresses: tuple[Address, ...]
    managed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Named:
    """What a text names: a kind of PREFIXES' values, or ``address``; a namespace and a name, or the text."""

    kind: str
    namespace: str
    name: str


def read(objects: ClusterObjects, text: str, namespace: str) -> Named:
    """Read what the operator typed. A Service's address names the Service.

    Raises:
        ConfigError: it is a name, and there is nothing of that name.

    """
    try:
        address = ip_address(text)
    except ValueError:
        pass  # no address: a name
    else:
        service = next((one for one in objects.service_objects if address in one.addresses), None)
        return Named("service", service.namespace, service.name) if service else Named("address", "", text)
    first, _, rest = text.partition("/")
    kind, name = (PREFIXES[first], rest) if first in PREFIXES and rest else ("pod", text)
    where, _, name = name.rpartition("/")
    named = Named(kind, "" if kind == "node" else where or namespace, name)
    _must_be(objects, named)
    return named


def _must_be(objects: ClusterObjects, named: Named) -> None:
    known = {
        "pod": [(one.namespace, one.name) for one in objects.pods],
        "service": [(one.namespace, one.name) for one in objects.service_objects],
        "node": [("", one.name) for one in objects.nodes],
    }[named.kind]
    if (named.namespace, named.name) in known:
        return
    alike = get_close_matches(named.name, {name for _, name in known}, NEAR)  # the same name elsewhere is the nearest
    near = [_label(*one) for name in alike for one in known if one[1] == name][:NEAR]
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    what = {"pod": "pod", "service": "Service", "node": "node"}[named.kind]
    asked = short(_label(named.namespace, named.name))
    raise ConfigError(f"no {what} {asked} is known; give {ENDS}{meant}")


def _label(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name


def of(objects: ClusterObjects, named: Named, services: Iterable[Network]) -> End:
    """Give the end; a Service's addresses are its own, of which nobody sends or gets anything."""
    if named.kind == "pod":
        pod = next(one for one in objects.pods if (one.namespace, one.name) == (named.namespace, named.name))
        return _pod(objects, pod)
    if named.kind == "service":
        return _service(service_of(objects, named))
    if named.kind == "node":
        node = next(one for one in objects.nodes if one.name == named.name)
        return End(f"node {node.name}", "node", node.name, node.addresses, False, OF_NODE)
    return at(objects, ip_address(named.name), services)


def service_of(objects: ClusterObjects, named: Named) -> Service:
    """Give the Service of that name, which is there."""
    return next(one for one in objects.service_objects if (one.namespace, one.name) == (named.namespace, named.name))


OF_NODE = "it is a node's own address, encrypted between it and managed pods elsewhere if both nodes can"


def _service(service: Service) -> End:
    addresses = ", ".join(map(str, service.addresses)) or "headless"
    reason = f"a Service ({addresses}): what becomes of a packet is decided by the endpoint that it is given to"
    return End(f"{service.namespace}/{service.name}", "service", "", service.addresses, False, reason)


def _pod(objects: ClusterObjects, pod: PodObject) -> End:
    namespaces = {namespace.name: namespace for namespace in objects.namespaces}
    name = f"{pod.namespace}/{pod.name}"
    asked = enrolment(pod, namespaces.get(pod.namespace))
    managed = next((one for one in pod_claims(objects)[0] if one.name == name), None)
    if managed:
        return End(name, "pod", managed.node, managed.addresses, True, asked.reason)
    reason = asked.reason
    if asked.managed:
        reason += f", but {refused(objects)[name]}"
    return End(name, "pod", pod.node, pod.addresses, False, reason)


def at(objects: ClusterObjects, address: Address, services: Iterable[Network]) -> End:
    """Find who has an address: of several pods the managed one, else one that runs."""
    managed = {one.name for one in pod_claims(objects)[0] if address in one.addresses}
    candidates = [pod for pod in objects.pods if address in pod.addresses and not pod.host_network]
    candidates.sort(key=lambda pod: (f"{pod.namespace}/{pod.name}" not in managed, pod.phase != "Running"))
    if candidates:
        return replace(_pod(objects, candidates[0]), addresses=(address,))
    for node in objects.nodes:
        if address in node.addresses:
            return End(str(address), "node", node.name, (address,), False, OF_NODE)
    if any(address in cidr for cidr in services):
        return End(str(address), "service", "", (address,), False, "it is in a Service CIDR, and no Service has it")
    return End(str(address), "unknown", "", (address,), False, NOT_KNOWN)


def behind(objects: ClusterObjects, endpoints: Iterable[Endpoint], services: Iterable[Network]) -> tuple[End, ...]:
    """Give the ends that a Service gives its traffic to: each pod once, with the addresses that it has there."""
    found: dict[str, End] = {}
    cidrs = tuple(services)
    for one in endpoints:
        if not one.ready:
            continue
        end = at(objects, one.address, cidrs)
        known = found.get(end.name)
        found[end.name] = replace(end, addresses=(*known.addresses, one.address)) if known else end
    return tuple(found.values())

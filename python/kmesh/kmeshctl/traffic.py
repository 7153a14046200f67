# SPDX-License-Identifier: Apache-2.0
"""Is the traffic between two ends encrypted, each way, and why or why not? Pure.

Decides nothing itself: enrolment comes from :mod:`kmesh.cluster.snapshot`, the rest from the plans of both nodes,
made as their daemons make them, and from what the daemons report of their kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_address
from typing import Any

from kmesh.cluster import secret
from kmesh.cluster.objects import ClusterObjects, PodObject
from kmesh.cluster.snapshot import build_view, enrolment, pod_claims, refused
from kmesh.cluster.status import LEASE_SECONDS, NodeStatus
from kmesh.kmeshctl.agreement import Agreement
from kmesh.kmeshctl.output import span
from kmesh.text import short
from kmesh_bpf import (
    Address,
    ConfigError,
    Fate,
    KernelState,
    Key,
    Network,
    Observation,
    Options,
    ProblemKind,
    Stop,
    Trace,
    make_plan,
    trace,
)

STAND_IN = Key(bytes(secret.KEY_DIGITS // 2))
"""Stands for every version's key: which versions there are decides, what they are does not."""
HINDERING = (ProblemKind.UPLINK, ProblemKind.XFRM_DISABLED, ProblemKind.INTERFERENCE, ProblemKind.ADDRESS)
"""Where a node reports one of these, its kernel may do otherwise than its plan says, with packets of either way."""


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
class Way:
    """One direction between two addresses, with what the reports add to the answer of the plans."""

    src: Address
    dst: Address
    trace: Trace
    spi: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. ``notes``: sentences on what else matters, or on what the answer does not rest on."""

    ends: tuple[End, End]
    ways: tuple[Way, ...]
    notes: tuple[str, ...]

    @property
    def encrypted(self) -> bool:
        """Whether it is encrypted each way, in each address family that both ends have."""
        return bool(self.ways) and all(way.trace.fate is Fate.ENCRYPTED for way in self.ways)


@dataclass(frozen=True)
class Cluster:
    """All that is known: objects, reports by node, Service CIDRs, and now (seconds since the epoch).

    ``stops``: what nodes plan, and what is wrong with that, as far as it was asked: of each it is found out once.
    """

    objects: ClusterObjects
    reports: Mapping[str, NodeStatus]
    services: tuple[Network, ...]
    now: float
    stops: dict[str, tuple[Stop | None, tuple[str, ...]]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def agreement(self) -> Agreement:
        """What nodes hold of each other."""
        return Agreement.of(self.objects, self.reports, self.now)

    def fresh(self, node: str) -> NodeStatus | None:
        """Give a node's report, if it is recent enough to count."""
        report = self.reports.get(node)
        return report if report and self.now - report.reported_at <= LEASE_SECONDS else None


def explain(cluster: Cluster, texts: tuple[str, str], namespace: str) -> Explanation:
    """Answer for two ends as the operator named them; a pod without a namespace is in ``namespace``.

    Raises:
        ConfigError: an end names no pod.

    """
    versions, no_key = _versions(cluster.objects)
    one, other = (find(cluster, text, namespace) for text in texts)
    problems: list[str] = []

    def stop(node: str) -> Stop | None:
        if node not in cluster.stops:  # the same node twice is the same stop: traffic that does not leave it
            cluster.stops[node] = _stop(cluster, node, versions)
        found, wrong = cluster.stops[node]
        problems.extend(wrong)
        return found

    ways = []
    for a in one.addresses:
        for b in (address for address in other.addresses if address.version == a.version):
            for source, src, sink, dst in ((one, a, other, b), (other, b, one, a)):
                found = trace(stop(source.node), stop(sink.node), src, dst)
                if no_key and source.managed and sink.managed and source.node != sink.node:
                    found = Trace(Fate.UNKNOWN, "which keys the nodes hold is not known")
                ways.append(_as_reported(cluster, source, sink, Way(src, dst, found, found.spi)))
    notes = [*no_key, *problems, *_no_way(one, other, ways)]
    notes += [*_by_cidr(stop(one.node), one.node, other.node), *_by_cidr(stop(other.node), other.node, one.node)]
    for name in dict.fromkeys(end.node for end in (one, other) if end.node):
        notes.extend(_of_node(cluster, name))
    return Explanation((one, other), tuple(ways), tuple(dict.fromkeys(notes)))


def find(cluster: Cluster, text: str, namespace: str) -> End:
    """Find what the operator named: an address, ``pod`` or ``namespace/pod``.

    Raises:
        ConfigError: it names no pod.

    """
    try:
        return _at(cluster, ip_address(text))
    except ValueError:
        pass  # no address: a name
    where, _, name = text.rpartition("/")
    pod = next((pod for pod in cluster.objects.pods if (pod.namespace, pod.name) == (where or namespace, name)), None)
    if pod is None:
        asked = short(f"{where or namespace}/{name}")
        raise ConfigError(f"no pod {asked} is known; give POD, NAMESPACE/POD or an address")
    return _pod(cluster.objects, pod)


def plain(answer: Explanation) -> dict[str, Any]:
    """Give it as plain values, for programs."""
    return {
        "encrypted": answer.encrypted,
        "ends": [
            {
                "name": end.name,
                "kind": end.kind,
                "node": end.node,
                "addresses": [str(address) for address in end.addresses],
                "managed": end.managed,
                "reason": end.reason,
            }
            for end in answer.ends
        ],
        "ways": [
            {
                "source": str(way.src),
                "destination": str(way.dst),
                "verdict": way.trace.fate.value,
                "reason": way.trace.reason,
                "spi": way.spi,
                "selector": [str(way.trace.policy.src), str(way.trace.policy.dst)] if way.trace.policy else None,
                "tunnel": [str(way.trace.policy.tunnel_src), str(way.trace.policy.tunnel_dst)]
                if way.trace.policy
                else None,
            }
            for way in answer.ways
        ],
        "notes": list(answer.notes),
    }


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


def _at(cluster: Cluster, address: Address) -> End:
    """Find who has an address: of several pods the managed one, else one that runs."""
    objects = cluster.objects
    managed = {one.name for one in pod_claims(objects)[0] if address in one.addresses}
    candidates = [pod for pod in objects.pods if address in pod.addresses and not pod.host_network]
    candidates.sort(key=lambda pod: (f"{pod.namespace}/{pod.name}" not in managed, pod.phase != "Running"))
    if candidates:
        return replace(_pod(objects, candidates[0]), addresses=(address,))
    for node in objects.nodes:
        if address in node.addresses:
            why = "it is a node's own address, encrypted between it and managed pods elsewhere if both nodes can"
            return End(str(address), "node", node.name, (address,), False, why)
    if any(address in cidr for cidr in cluster.services):
        return End(str(address), "service", "", (address,), False, "it is in a Service CIDR")
    why = "no pod, node or Service CIDR with it is known; what a node has beside its InternalIP is spoken to in clear"
    return End(str(address), "unknown", "", (address,), False, why)


def _versions(objects: ClusterObjects) -> tuple[Mapping[int, Key], tuple[str, ...]]:
    """Give the key versions in the Secret, and a sentence where there are none."""
    if objects.secret is None or not secret.holds_key(objects.secret):
        return {}, ("the cluster holds no key: nodes go on with the one that they hold, restarted ones have none",)
    try:
        return dict.fromkeys(secret.parse_keys(objects.secret).keys, STAND_IN), ()
    except ConfigError as error:
        return {}, (f"{error}; nodes go on with the key that they hold, restarted ones have none",)


def _stop(cluster: Cluster, node: str, versions: Mapping[int, Key]) -> tuple[Stop | None, tuple[str, ...]]:
    """Plan for a node as its daemon does, None where none is known to run; and tell what is wrong with the plan."""
    info = next((info for info in cluster.objects.node_infos if info.name == node), None)
    report = cluster.fresh(node)
    if not node or (info is None and report is None):
        return None, ()
    try:
        view = build_view(
            cluster.objects,
            node,
            keys=versions,
            services=cluster.services,
            announced=info.spi if info else 0,
            announced_at=0.0,
            boot_id=info.boot_id if info else "",
        )
    except ConfigError as error:
        return None, (str(error),)
    strict = report.strict if report else True
    plan = make_plan(view, Observation(KernelState()), Options(strict=strict, max_exact=_bound(report)), cluster.now)
    return Stop(plan, strict), tuple(f"{node}: {problem}" for problem in plan.problems)


def _bound(report: NodeStatus | None) -> int:
    """Give a bound by which a node's plan selects by pod CIDR, or not, as it reports that it does."""
    if report is None:
        return Options().max_exact
    return 0 if report.by_cidr_count else sys.maxsize


def _by_cidr(here: Stop | None, node: str, peer: str) -> Iterator[str]:
    if here is not None and peer in here.plan.by_cidr:
        yield (
            f"{node} selects pods of {peer} by pod CIDR, for there are too many to select them one by one: what a "
            "Service gives to an unmanaged pod in it is encrypted too, one way"
        )


def _as_reported(cluster: Cluster, source: End, sink: End, way: Way) -> Way:
    """Correct the plans' answer by what the two nodes report of their kernels."""
    if way.trace.fate is not Fate.ENCRYPTED:
        return way
    report = cluster.fresh(source.node)
    row = next((peer for peer in report.peers if peer.name == sink.node), None) if report else None
    if report and row and not row.ready:
        why = f"{source.node} reports that it cannot send to {sink.node} yet"
        return _instead(way, Fate.DROPPED if report.strict else Fate.UNKNOWN, why)
    apart = cluster.agreement.apart(source.node, sink.node)
    if apart:
        return _instead(way, Fate.DROPPED, apart)
    doubt = cluster.agreement.doubt(source.node, sink.node)
    if doubt:
        return _instead(way, Fate.UNKNOWN, doubt)
    hindered = _hindered(report) or _hindered(cluster.fresh(sink.node))
    if hindered:
        return _instead(way, Fate.UNKNOWN, hindered)
    return replace(way, spi=row.spi_out) if row else way


def _instead(way: Way, fate: Fate, why: str) -> Way:
    return Way(way.src, way.dst, Trace(fate, why, way.trace.policy), 0)


def _hindered(report: NodeStatus | None) -> str:
    """Give a sentence where a node reports what may keep its kernel from its plan, with all that it says of it."""
    kind = next((one for one in HINDERING if one.name in report.problems), None) if report else None
    if report is None or kind is None:
        return ""
    return f"{report.node} reports that {kind.value}: {'; '.join(report.reasons)}"


def _no_way(one: End, other: End, ways: list[Way]) -> Iterator[str]:
    if ways:
        return
    bare = [end.name for end in (one, other) if not end.addresses]
    yield f"{' and '.join(bare)}: no address" if bare else "the two have no address family in common"


def _of_node(cluster: Cluster, name: str) -> Iterator[str]:
    """Give what a node on the way should be known for."""
    if not any(info.name == name for info in cluster.objects.node_infos):
        yield f"{name} announces no key: no KmeshNodeInfo"
    report = cluster.reports.get(name)
    if report is None:
        yield f"{name}: no report of its daemon, so what its kernel holds is not known"
        return
    if cluster.fresh(name) is None:
        yield f"{name}: its last report is {span(cluster.now - report.reported_at)} old and does not count"
        return
    if report.reasons or not report.ready:
        state = f"{name} is {'ready' if report.ready else 'not ready'}"
        yield f"{state}{''.join(f'; {reason}' for reason in report.reasons)}"
    if not report.nat_exemption:
        yield f"{name}: masquerade rules there are not kept from packets to be encrypted; the guard drops those hit"
    if report.last_drop:
        ago = span(cluster.now - report.last_drop.at)
        yield f"{name}: packets were dropped {ago} ago, whosoever they were ({report.last_drop.counter})"

# SPDX-License-Identifier: Apache-2.0
"""Is the traffic between two ends encrypted, each way, and why or why not? Pure.

Decides nothing itself: enrolment comes from :mod:`kmesh.cluster.snapshot`, the rest from the plans of both nodes,
made as their daemons make them, and from what the daemons report of their kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kmesh.cluster import secret
from kmesh.cluster.endpoints import Endpoint
from kmesh.cluster.objects import ClusterObjects
from kmesh.cluster.snapshot import build_view
from kmesh.cluster.status import LEASE_SECONDS, NodeStatus
from kmesh.kmeshctl import ends
from kmesh.kmeshctl.agreement import Agreement
from kmesh.kmeshctl.ends import End, Named
from kmesh.kmeshctl.output import span
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
ANSWERED = "what answers is the pod that DNAT has chosen: it is encrypted if what goes to that pod's own address is"
STRANGE = "nobody here has that address: what it sends comes as it was sent"
HINDERING = (ProblemKind.UPLINK, ProblemKind.XFRM_DISABLED, ProblemKind.INTERFERENCE, ProblemKind.ADDRESS)
"""Where a node reports one of these, its kernel may do otherwise than its plan says, with packets of either way."""


@dataclass(frozen=True, slots=True)
class Way:
    """One direction between two addresses, with what the reports add to the answer of the plans."""

    src: Address
    dst: Address
    trace: Trace
    spi: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. ``notes``: sentences on what else matters, or on what the answer does not rest on.

    ``behind``: by the name of an end that is a Service, the ends that its traffic is given to; the ways are theirs.
    """

    ends: tuple[End, End]
    ways: tuple[Way, ...]
    notes: tuple[str, ...]
    behind: Mapping[str, tuple[End, ...]] = field(default_factory=dict)

    @property
    def encrypted(self) -> bool:
        """Whether it is encrypted each way, in each address family that both ends have."""
        return bool(self.ways) and all(way.trace.fate is Fate.ENCRYPTED for way in self.ways)


@dataclass(frozen=True)
class Cluster:
    """All that is known: objects, reports by node, Service CIDRs, and now (seconds since the epoch).

    ``endpoints``: by namespace and name, of the Services that are asked about.
    ``stops``: what nodes plan, and what is wrong with that, as far as it was asked: of each it is found out once.
    """

    objects: ClusterObjects
    reports: Mapping[str, NodeStatus]
    services: tuple[Network, ...]
    now: float
    endpoints: Mapping[tuple[str, str], tuple[Endpoint, ...]] = field(default_factory=dict)
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
    named = [ends.read(cluster.objects, text, namespace) for text in texts]
    one, other = (ends.of(cluster.objects, name, cluster.services) for name in named)
    behind = {
        end.name: ends.behind(cluster.objects, cluster.endpoints[name.namespace, name.name], cluster.services)
        for end, name in zip((one, other), named, strict=True)
        if (name.namespace, name.name) in cluster.endpoints
    }
    problems: list[str] = []

    def stop(node: str) -> Stop | None:
        if node not in cluster.stops:  # the same node twice is the same stop: traffic that does not leave it
            cluster.stops[node] = _stop(cluster, node, versions)
        found, wrong = cluster.stops[node]
        problems.extend(wrong)
        return found

    def way(source: End, src: Address, sink: End, dst: Address) -> Way:
        found = trace(stop(source.node), stop(sink.node), src, dst)
        if no_key and source.managed and sink.managed and source.node != sink.node:
            found = Trace(Fate.UNKNOWN, "which keys the nodes hold is not known")
        elif source.kind == "service":
            found = Trace(Fate.UNKNOWN, ANSWERED)
        elif source.kind == "unknown" and found.fate is Fate.CLEAR:
            found = Trace(Fate.CLEAR, STRANGE)
        return _as_reported(cluster, source, sink, Way(src, dst, found, found.spi))

    pairs = [(here, there) for here in behind.get(one.name, (one,)) for there in behind.get(other.name, (other,))]
    ways = [
        way(source, src, sink, dst)
        for here, there in pairs
        for a in here.addresses
        for b in there.addresses
        if b.version == a.version
        for source, src, sink, dst in ((here, a, there, b), (there, b, here, a))
    ]
    notes = [*no_key, *problems, *_of_services(cluster, named, behind), *_no_way(one, other, ways, behind)]
    for here, there in pairs:
        notes += [*_by_cidr(stop(here.node), here.node, there.node), *_by_cidr(stop(there.node), there.node, here.node)]
    for name in dict.fromkeys(end.node for pair in pairs for end in pair if end.node):
        notes.extend(_of_node(cluster, name))
    return Explanation((one, other), tuple(ways), tuple(dict.fromkeys(notes)), behind)


def services_asked(objects: ClusterObjects, texts: Iterable[str], namespace: str) -> list[tuple[str, str]]:
    """Give namespace and name of the Services among the ends: their endpoints have to be known.

    Raises:
        ConfigError: an end names nothing.

    """
    named = (ends.read(objects, text, namespace) for text in texts)
    return [(one.namespace, one.name) for one in named if one.kind == "service"]


def plain(answer: Explanation) -> dict[str, Any]:
    """Give it as plain values, for programs."""
    return {
        "encrypted": answer.encrypted,
        "ends": [_plain_end(end) for end in answer.ends],
        "endpoints": {name: [_plain_end(end) for end in behind] for name, behind in answer.behind.items()},
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


def _plain_end(end: End) -> dict[str, Any]:
    return {
        "name": end.name,
        "kind": end.kind,
        "node": end.node,
        "addresses": [str(address) for address in end.addresses],
        "managed": end.managed,
        "reason": end.reason,
    }


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


def _of_services(cluster: Cluster, named: Iterable[Named], behind: Mapping[str, tuple[End, ...]]) -> Iterator[str]:
    """Give what should be known of a Service's endpoints."""
    for one in named:
        known = cluster.endpoints.get((one.namespace, one.name))
        if one.kind != "service" or known is None:
            continue
        label = f"{one.namespace}/{one.name}"
        idle = [str(endpoint.address) for endpoint in known if not endpoint.ready]
        if not behind.get(label):
            yield f"Service {label} has no endpoint that is ready: nobody gets what is sent to it"
        if idle:
            yield f"Service {label} gives nothing to endpoints that are not ready: {', '.join(idle)}"


def _no_way(one: End, other: End, ways: list[Way], behind: Mapping[str, tuple[End, ...]]) -> Iterator[str]:
    if ways or any(not ends for ends in behind.values()):
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

# SPDX-License-Identifier: Apache-2.0
"""Cluster objects and daemons' reports -> one row a node, and what is not as it should be. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kmesh.cluster import secret
from kmesh.cluster.deployment import DaemonPod, Deployment
from kmesh.cluster.fields import Fields
from kmesh.cluster.objects import NAMESPACE, SECRET_NAME, ClusterObjects, NodeInfo, NodeObject
from kmesh.cluster.snapshot import announced_by_us, announces_boot_id, pod_claims
from kmesh.cluster.status import LEASE_SECONDS, NodeStatus, describe, from_lease, lease_name
from kmesh.kmeshctl.agreement import Agreement
from kmesh.kmeshctl.output import named, share, span
from kmesh_bpf import ConfigError

ANNOUNCE_LIMIT = 60.0
"""Seconds after which every node should have announced a new key: a second or two, with a slow API server more."""
REPLACEMENT_LIMIT = 600.0
"""Seconds after which a replacement should have come to its end on a node."""
SEQUENCE_LIMIT = 0.5
"""The share of an SA's sequence numbers after which a new key should be made."""
FOREIGN = (
    "a daemon of another make announces it (Go Kmesh?): whether it is ready, whom it can send to and what it drops "
    "is not known here (docs/migrating.md)"
)
"""All that can be said of a node that never reports."""


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """A node: what it announces, what its daemon reports (None: nothing that could be read), and how old that is.

    ``known`` is its Node object.
    """

    name: str
    known: NodeObject | None
    info: NodeInfo | None
    status: NodeStatus | None
    age: float

    @property
    def fresh(self) -> NodeStatus | None:
        """The report, if it is recent enough to count."""
        return self.status if self.age <= LEASE_SECONDS else None

    @property
    def silent(self) -> bool:
        """Whether a Node says nothing of itself: neither announcement nor report, or one that is too old."""
        return self.known is not None and self.fresh is None and not self.foreign

    @property
    def foreign(self) -> bool:
        """Whether a daemon of another make announces it, Go Kmesh's say; one of ours that reports is none."""
        if self.info is None or self.fresh is not None:
            return False
        if self.status is not None:
            return announces_boot_id(self.info, self.known)
        return not announced_by_us(self.info, self.known)


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence on a node; ``node`` is empty for what concerns the whole cluster."""

    node: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.node}: {self.sentence}" if self.node else self.sentence


@dataclass(frozen=True, slots=True)
class Health:
    """The whole cluster; ``key_spi`` is the version in the Secret, 0 without a usable one.

    ``findings``: what is not as it should be; ``notes``: what cannot be known.
    """

    key_spi: int
    nodes: tuple[NodeHealth, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def silent(self) -> bool:
        """Whether a Node is, so that it matters where daemons should run."""
        return any(node.silent for node in self.nodes)


def examine(
    objects: ClusterObjects,
    leases: Iterable[Mapping[str, Any]],
    now: float,
    deployment: Deployment | None = None,
) -> Health:
    """Judge a cluster; ``now`` is in seconds since the epoch. ``deployment``: where daemons should run, if known."""
    statuses, unreadable = read_reports(leases)
    infos = {info.name: info for info in objects.node_infos}
    known = {node.name: node for node in objects.nodes}
    spi, key_problem = _key(objects)
    nodes = tuple(
        NodeHealth(
            name,
            known.get(name),
            infos.get(name),
            status := statuses.get(name),
            now - status.reported_at if status else 0.0,
        )
        for name in sorted(known.keys() | infos.keys() | statuses.keys())
    )
    placed, conflicts = pod_claims(objects)
    pods = Counter(pod.node for pod in placed)
    since = changed_at(objects.secret) if objects.secret else None
    settling = since is not None and now - since < ANNOUNCE_LIMIT
    about = (*key_problem, *objects.problems, *conflicts, *unreadable, *_daemons(nodes, deployment))
    findings = [Finding("", sentence) for sentence in about]
    agreement = Agreement.of(objects, statuses, now)
    daemon_pods = {pod.node: pod for pod in deployment.pods} if deployment is not None else {}
    for node in nodes:
        sentences = (
            *_presence(node, pods[node.name]),
            *_daemon_pod(node, daemon_pods.get(node.name)),
            *_contradicted(node),
            *_announced(node, 0 if settling else spi),
            *(_reported(node.fresh, now) if node.fresh else ()),
            *agreement.sentences(node.name),
        )
        findings.extend(Finding(node.name, sentence) for sentence in sentences)
    return Health(spi, nodes, tuple(findings), tuple(Finding(node.name, FOREIGN) for node in nodes if node.foreign))


def read_reports(leases: Iterable[Mapping[str, Any]]) -> tuple[dict[str, NodeStatus], tuple[str, ...]]:
    """Give the reports by node, and a sentence for each Lease that cannot be read."""
    found, problems = {}, []
    for lease in leases:
        try:
            status = from_lease(lease)
        except ConfigError as error:
            problems.append(str(error))
        else:
            found[status.node] = status
    return found, tuple(problems)


def plain(health: Health) -> dict[str, Any]:
    """Give it as plain values, for programs."""
    return {
        "healthy": not health.findings,
        "keySpi": health.key_spi,
        "nodes": [
            {
                "node": node.name,
                "ready": node.fresh.ready if node.fresh else None,
                "announcedSpi": node.info.spi if node.info else 0,
                "addresses": list(node.info.addresses) if node.info else [],
                "reportAgeSeconds": round(node.age, 3) if node.status else None,
                "report": describe(node.status) if node.status else None,
                "foreign": node.foreign,
            }
            for node in health.nodes
        ],
        "findings": [{"node": finding.node, "sentence": finding.sentence} for finding in health.findings],
        "notes": [{"node": note.node, "sentence": note.sentence} for note in health.notes],
    }


def _key(objects: ClusterObjects) -> tuple[int, tuple[str, ...]]:
    if objects.secret is None or not secret.holds_key(objects.secret):
        return 0, (f"the cluster holds no key (Secret {NAMESPACE}/{SECRET_NAME}); make one: kmeshctl secret create",)
    try:
        return secret.parse_keys(objects.secret).current, ()
    except ConfigError as error:
        return 0, (f"{error}; nodes keep using the key that they hold",)


def changed_at(manifest: Mapping[str, Any]) -> float | None:
    """Give when the API server saw the object change last; None where it does not say (a folder)."""
    try:
        metadata = Fields(manifest).part("metadata")
        texts = [metadata.text("creationTimestamp", "")]
        texts.extend(one.text("time", "") for one in metadata.parts("managedFields"))
        return max((datetime.fromisoformat(text).timestamp() for text in texts if text), default=None)
    except (ConfigError, ValueError):
        return None


def _presence(node: NodeHealth, pods: int) -> Iterator[str]:
    if node.info is not None and node.known is None:
        yield (
            "there is no such Node, yet a KmeshNodeInfo; if it has left for good: "
            f"kubectl -n {NAMESPACE} delete kmeshnodeinfo {node.name}"
        )
    if node.status is not None and node.foreign:
        yield (
            f"a daemon of another make announces it now; the report of ours is {span(node.age)} old and stayed behind: "
            f"kubectl -n {NAMESPACE} delete lease {lease_name(node.name)}"
        )
    elif node.status is not None and node.fresh is None and (node.info or node.known):
        yield f"its last report is {span(node.age)} old; does its daemon run?"
    if node.fresh is not None and node.fresh.spi and node.known is not None and node.info is None:
        yield "it reports, and no KmeshNodeInfo announces it: other nodes drop what they would send there"
    if node.status is None and node.info is not None and not node.foreign:
        yield "it announces itself, and there is no report of it; does its daemon run?"
    if node.status is None and node.info is None and pods:
        yield f"{pods} managed pods run there, and no daemon announces it: other nodes drop what they would send there"


def _daemons(nodes: Iterable[NodeHealth], deployment: Deployment | None) -> Iterator[str]:
    """Give what is wrong with daemons as a whole."""
    known = [node for node in nodes if node.known is not None]
    silent = [node.name for node in known if node.silent and node.info is None and node.status is None]
    if not known:
        yield "there is no Node, so nothing is encrypted: is this the cluster that was meant?"
    elif deployment is None and len(silent) == len(known):
        yield f"no daemon has ever announced itself, on none of {len(known)} Nodes: docs/install.md says how they start"
    if deployment is None or not silent:
        return
    if not deployment.sets:
        where = f"no DaemonSet of this project is in namespace {NAMESPACE}"
        yield f"{where}, and nothing is heard of {named(silent)}: kubectl apply -k deploy/base"
    for one in deployment.sets:
        there = len(deployment.pods)
        if not one.desired and len(silent) == len(known):  # else they are started some other way, or one by one
            yield f"DaemonSet {one.name} wants a daemon on no node: does its nodeSelector fit any?"
        elif len(deployment.sets) == 1 and there < one.desired:
            way_out = f"kubectl -n {NAMESPACE} describe daemonset {one.name}"
            yield f"DaemonSet {one.name} wants {one.desired} daemons, and has {there} pods: {way_out}"
    yield from (
        f"the daemon's pod {pod.name}: {pod.trouble}" for pod in deployment.pods if pod.trouble and not pod.node
    )


def _daemon_pod(node: NodeHealth, pod: DaemonPod | None) -> Iterator[str]:
    """Give why nothing is heard of a node on which a daemon should run."""
    if pod is None or not node.silent:
        return
    if pod.trouble:
        yield f"its daemon does not run: {pod.trouble}; kubectl -n {NAMESPACE} describe pod {pod.name}"
    elif node.info is None and node.status is None:
        yield f"its daemon has said nothing yet: kubectl -n {NAMESPACE} logs {pod.name}"


def _contradicted(node: NodeHealth) -> Iterator[str]:
    if node.info is None or node.known is None:
        return
    other = set(node.info.addresses).difference(map(str, node.known.addresses))
    if other:
        yield (
            f"it announces {', '.join(sorted(other))}, which its Node object does not have as InternalIP: whoever else "
            "claims that has it; is its daemon up to date, and its own?"
        )


def _announced(node: NodeHealth, spi: int) -> Iterator[str]:
    """``spi`` is the version that should be announced, 0: not known."""
    if node.info is None or not spi or node.info.spi == spi:
        return
    if not node.info.spi:
        yield f"it announces no key yet (SPI 0), the key in the Secret has {spi}"
    elif node.info.spi < spi:
        yield f"it announces SPI {node.info.spi}, the key in the Secret has {spi}"
    else:
        yield f"it announces SPI {node.info.spi}, above that of the key in the Secret, {spi}: kmeshctl secret create"


def _reported(status: NodeStatus, now: float) -> Iterator[str]:
    how = "" if status.ready else "not ready: "
    yield from (f"{how}{reason}" for reason in status.reasons)
    if not status.ready and not status.reasons:
        yield "not ready"
    if status.peers_ready < status.peers_expected:
        names = named(peer.name for peer in status.peers if not peer.ready)
        yield f"it can send to {status.peers_ready} of {status.peers_expected} peers only; not to {names}"
    if status.replacing_since is not None and now - status.replacing_since > REPLACEMENT_LIMIT:
        late = [peer.name for peer in status.peers if 0 < peer.spi_out < status.newest_spi]
        waiting = f"; behind are {named(late)}" if late else ""
        yield f"the replacement takes {span(now - status.replacing_since)} already: {replacement(status)}{waiting}"
    if status.sequence_use > SEQUENCE_LIMIT:
        yield f"{share(status.sequence_use)} of an SA's sequence numbers are used up; new key: kmeshctl secret create"


def replacement(status: NodeStatus) -> str:
    """Say how far a node is with the replacement of the key."""
    if not status.newest_spi:
        return "no key"
    if status.replacing_since is None:
        return "done"
    if status.peers_on_newest < status.peers_expected or status.spi < status.newest_spi:
        return f"{status.peers_on_newest}/{status.peers_expected} peers on SPI {status.newest_spi}"
    return f"{status.old_inbound} old SAs left"

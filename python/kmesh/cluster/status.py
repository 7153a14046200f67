# SPDX-License-Identifier: Apache-2.0
"""What a daemon tells of itself, and its form in the cluster: a Lease with an annotation. Pure.

A Lease (``kmesh-system/kmesh-ipsec-<node>``) is small, made for being renewed, and watched by nobody else. Its times
and holder are what ``kubectl get leases`` shows; the rest is compact JSON in one annotation. A reader ignores fields
that it does not know, so that nodes of several versions live in one cluster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kmesh.cluster import holdings
from kmesh.cluster.fields import LONGEST_WORD, Fields, nameable
from kmesh.cluster.objects import LARGEST_SPI, NAMESPACE
from kmesh.text import shown
from kmesh_bpf import ConfigError

LEASE_API = "coordination.k8s.io/v1"
LEASE_PREFIX = "kmesh-ipsec-"
STATUS_ANNOTATION = "kmesh.net/ipsec-status"
LEASE_SECONDS = 180
"""A report older than this is stale: three of the slowest publications (:mod:`kmesh.telling.reporting`) missed."""

DROPPING = ("dropped_by_guard", "dropped_clear_text", "dropped_decrypted", "dropped_spoofed")
"""The counters of packets that our programs dropped."""
COUNTERS = (*DROPPING, "allowed_clear_text", "esp_unknown_peer", "parse_failure")
"""The counters that a report carries: those that tell of trouble."""
LARGEST_COUNT = (1 << 64) - 1
LARGEST_REPORT = 128 * 1024
"""Characters of a report; a daemon writes far less (:mod:`kmesh.telling.reporting`)."""
LARGEST_TIME = 4102444800.0
"""Seconds since the epoch, the year 2100: whatever is later is no time of a report."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer as a node sees it. ``spi_in`` the highest version accepted, ``spi_out`` the one sent with; 0: none.

    ``sequence_use``: the largest share of sequence numbers used up by an SA of this pair, 0 to 1.
    """

    name: str
    ready: bool
    spi_in: int
    spi_out: int
    sequence_use: float


@dataclass(frozen=True, slots=True)
class Drop:
    """The last time that packets were seen dropped: by which counter, when (seconds since the epoch)."""

    counter: str
    at: float


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A daemon's report. Times are seconds since the epoch.

    ``reasons``: sentences on why it is not ready, or what else an operator should know.
    ``spi``: the key version announced, 0 before the first; ``newest_spi``: the newest one held, 0 without a key.
    ``spi_out``: lowest and highest version sent with, over all peers; None without one.
    ``peers_on_newest``: peers that are sent to with the newest version; ``old_inbound``: SAs that still accept older
    ones. ``replacing_since``: since when not everything is on the newest version; None: everything is.
    ``sequence_use``: the largest share of sequence numbers used up by any SA, 0 to 1.
    ``counters``: packets by the names in COUNTERS. ``strict``: how the programs were loaded.
    ``nat_exemption``: whether masquerade rules are kept from packets on their way to encryption.
    ``peers``: some of those that are not as they should be, worst first (:mod:`kmesh.telling.reporting`).
    ``by_cidr``: names of peers whose pods are selected by pod CIDR, the first of ``by_cidr_count``.
    ``problems``: names of the kinds (ProblemKind) of the plan's problems, whose sentences are among ``reasons``; those
    of a later version are kept as they are.
    ``incarnation``: what this node's kernel objects were made for; ``incarnation_since``: since when, at the latest;
    empty and 0 where they are not known. ``holds``: the digest (:mod:`kmesh.cluster.holdings`) of the peers whose
    present incarnations the kernel can send to and decrypt from, with the key version announced; None: not told.
    """

    node: str
    version: str
    reported_at: float
    ready: bool
    reasons: tuple[str, ...]
    spi: int
    newest_spi: int
    spi_out: tuple[int, int] | None
    peers_ready: int
    peers_expected: int
    peers_on_newest: int
    old_inbound: int
    replacing_since: float | None
    sequence_use: float
    counters: Mapping[str, int] = field(hash=False)
    last_drop: Drop | None
    strict: bool
    services: tuple[str, ...]
    nat_exemption: bool
    peers: tuple[PeerStatus, ...]
    by_cidr: tuple[str, ...] = ()
    by_cidr_count: int = 0
    problems: tuple[str, ...] = ()
    incarnation: str = ""
    incarnation_since: float = 0.0
    holds: int | None = None

    @property
    def dropped(self) -> int:
        """Packets dropped by our programs."""
        return sum(self.counters.get(name, 0) for name in DROPPING)


def lease_name(node: str) -> str:
    """Give the name of a node's Lease."""
    return f"{LEASE_PREFIX}{node}"


def describe(status: NodeStatus) -> dict[str, Any]:
    """Give a report as plain values, but for what the Lease itself says: whose it is and when it was made."""
    report = {
        "version": status.version,
        "ready": status.ready,
        "reasons": list(status.reasons),
        "problems": list(status.problems),
        "spi": status.spi,
        "newestSpi": status.newest_spi,
        "spiOut": list(status.spi_out or ()),
        "peersReady": status.peers_ready,
        "peersExpected": status.peers_expected,
        "peersOnNewest": status.peers_on_newest,
        "oldInbound": status.old_inbound,
        "sequenceUse": status.sequence_use,
        "counters": dict(status.counters),
        "strict": status.strict,
        "services": list(status.services),
        "natExemption": status.nat_exemption,
        "peers": [
            {
                "name": peer.name,
                "ready": peer.ready,
                "spiIn": peer.spi_in,
                "spiOut": peer.spi_out,
                "sequenceUse": peer.sequence_use,
            }
            for peer in status.peers
        ],
    }
    if status.by_cidr_count:
        report["byCidr"] = {"count": status.by_cidr_count, "peers": list(status.by_cidr)}
    if status.replacing_since is not None:
        report["replacingSince"] = status.replacing_since
    if status.holds is not None:
        report |= {"incarnation": status.incarnation, "incarnationSince": status.incarnation_since}
        report["holds"] = holdings.encode(status.holds)
    if status.last_drop is not None:
        report["lastDrop"] = {"counter": status.last_drop.counter, "at": status.last_drop.at}
    return report


def to_lease(status: NodeStatus) -> dict[str, Any]:
    """Give the Lease that publishes a report; times are kept to the microsecond."""
    return {
        "apiVersion": LEASE_API,
        "kind": "Lease",
        "metadata": {
            "name": lease_name(status.node),
            "namespace": NAMESPACE,
            "annotations": {STATUS_ANNOTATION: json.dumps(describe(status), separators=(",", ":"))},
        },
        "spec": {
            "holderIdentity": status.node,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": datetime.fromtimestamp(status.reported_at, UTC).isoformat(timespec="microseconds"),
        },
    }


def from_lease(lease: Mapping[str, Any]) -> NodeStatus:
    """Read a report.

    Raises:
        ConfigError: it is no report of ours, or a field is missing or cannot be used; names the Lease and the field.

    """
    top = Fields(lease, longest=LONGEST_WORD)
    name = "of no name"
    try:
        called = top.part("metadata").text("name")
        if not nameable(called):
            raise ConfigError(f"metadata.name, {shown(called)}, is no name")
        name = called
        spec = top.part("spec")
        node = spec.text("holderIdentity")
        if name != lease_name(node):
            # Whoever may write one Lease must not be able to speak for the node of another.
            raise ConfigError(f"spec.holderIdentity: {shown(node)} does not belong in a Lease of this name")
        return _status(node, _time(spec.text("renewTime")), _report(top))
    except ConfigError as error:
        raise ConfigError(f"Lease {name}: {error}") from error


def _report(top: Fields) -> Fields:
    path = f"annotation {STATUS_ANNOTATION}"
    text = top.part("metadata").annotations("annotations").get(STATUS_ANNOTATION)
    if text is None:
        raise ConfigError(f"{path} is missing")
    if len(text) > LARGEST_REPORT:
        raise ConfigError(f"{path} has {len(text)} characters, more than {LARGEST_REPORT}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no JSON") from None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is no JSON object")
    return Fields(value, path, LONGEST_WORD)


def _status(node: str, reported_at: float, report: Fields) -> NodeStatus:
    out = report.numbers("spiOut", 0, LARGEST_SPI)
    if len(out) not in (0, 2):
        raise ConfigError(f"annotation {STATUS_ANNOTATION}.spiOut is neither empty nor lowest and highest")
    counters, drop, selected = report.part("counters"), report.part("lastDrop"), report.part("byCidr")
    return NodeStatus(
        node=node,
        version=report.text("version"),
        reported_at=reported_at,
        ready=report.flag("ready"),
        reasons=report.texts("reasons"),
        spi=report.number("spi", 0, LARGEST_SPI),
        newest_spi=report.number("newestSpi", 0, LARGEST_SPI),
        spi_out=(out[0], out[1]) if out else None,
        peers_ready=report.number("peersReady", 0, LARGEST_COUNT),
        peers_expected=report.number("peersExpected", 0, LARGEST_COUNT),
        peers_on_newest=report.number("peersOnNewest", 0, LARGEST_COUNT),
        old_inbound=report.number("oldInbound", 0, LARGEST_COUNT),
        replacing_since=report.real("replacingSince", 0, LARGEST_TIME) if report.has("replacingSince") else None,
        sequence_use=report.real("sequenceUse", 0, 1),
        counters={one: counters.number(one, 0, LARGEST_COUNT) for one in COUNTERS if counters.has(one)},
        last_drop=Drop(drop.text("counter"), drop.real("at", 0, LARGEST_TIME)) if report.has("lastDrop") else None,
        strict=report.flag("strict"),
        services=tuple(str(cidr) for cidr in report.cidrs("services")),
        nat_exemption=report.flag("natExemption"),
        peers=tuple(
            PeerStatus(
                peer.text("name"),
                peer.flag("ready"),
                peer.number("spiIn", 0, LARGEST_SPI),
                peer.number("spiOut", 0, LARGEST_SPI),
                peer.real("sequenceUse", 0, 1),
            )
            for peer in report.parts("peers")
        ),
        by_cidr=selected.texts("peers") if report.has("byCidr") else (),
        by_cidr_count=selected.number("count", 0, LARGEST_COUNT) if report.has("byCidr") else 0,
        problems=report.texts("problems"),
        **_held(report),
    )


def _held(report: Fields) -> dict[str, Any]:
    """Read what a node holds, which versions before this one did not tell."""
    if not report.has("holds"):
        return {}
    text = report.text("holds")
    try:
        holds = holdings.decode(text)
    except ConfigError as error:
        raise ConfigError(f"annotation {STATUS_ANNOTATION}.holds: {error}") from error
    since = report.real("incarnationSince", 0, LARGEST_TIME)
    return {"incarnation": report.text("incarnation", ""), "incarnation_since": since, "holds": holds}


def _time(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"spec.renewTime: {shown(text)} is no time (RFC 3339)") from None
    if when.tzinfo is None:
        raise ConfigError(f"spec.renewTime: {shown(text)} has no time zone")
    return when.timestamp()

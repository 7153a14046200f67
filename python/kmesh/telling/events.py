# SPDX-License-Identifier: Apache-2.0
"""From two records, one after the other, to Kubernetes Events for what an operator must know. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from kmesh.telling.record import Record
from kmesh_bpf import ProblemKind

COMPONENT = "kmesh-daemon"
NAMESPACE = "default"
"""Events about an object that has no namespace, a Node, belong here: the API server refuses them elsewhere."""
LONGEST_MESSAGE = 1024
"""Characters: the API server refuses longer ones."""
LONGEST_PREFIX = 220
"""Characters of the node's name in an event's name, which has room for 253."""
PATIENCE = 15.0
"""Seconds that a node may be unready before it is said: a start and a change of many pods take some."""
PEER_REASONS = {
    ProblemKind.QUARANTINE: "Quarantined",
    ProblemKind.CAPACITY: "Crowded",
    ProblemKind.CONFLICT: "Conflict",
}
"""The words for what is wrong with a peer, the worst first."""
BURST = 5
REFILL = 60.0
"""Seconds until one more event of a reason may be told, once ``BURST`` were."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may still be told for a reason: ``left`` at time ``at``; ``withheld`` were not."""

    left: float = BURST
    at: float = 0.0
    withheld: int = 0


def notes(before: Record, after: Record) -> tuple[Note, ...]:
    """Give what happened between two records; what just lasts is no news."""
    found = []
    if after.key.refused and after.key.refused != before.key.refused:
        found.append(Note("Warning", "KeyRefused", f"the key in the Secret is refused: {after.key.refused}"))
    for problem in after.plan_problems:
        if problem.kind in PEER_REASONS and problem not in before.plan_problems:
            found.append(Note("Warning", f"Peer{PEER_REASONS[problem.kind]}", problem.sentence))
    if after.renewals > before.renewals:
        message = f"{after.renewed_why}; new incarnation {after.incarnation}, peers use new keys"
        found.append(Note("Warning", "SecurityAssociationsLost", message))
    if 0 < before.settled < after.settled:
        message = (
            f"key replaced: SPI {after.settled} with {len(after.peers)} peers, nothing of SPI {before.settled} left"
        )
        found.append(Note("Normal", "KeyReplaced", message))
    if not patience_lost(before) and patience_lost(after):
        found.append(Note("Warning", "EncryptionNotReady", "; ".join(after.unready)))
    if not after.unready and (patience_lost(before) or not before.been_ready):
        message = f"ready for encryption: {after.sums.ready} of {len(after.peers)} peers, SPI {after.key.spi}"
        found.append(Note("Normal", "EncryptionReady", message))
    return tuple(found)


def patience_lost(record: Record) -> bool:
    """Tell whether a node has been unready for so long that it is worth saying."""
    return bool(record.unready) and record.attempted - record.unready_since >= PATIENCE


def admit(
    allowances: Mapping[str, Allowance], news: tuple[Note, ...], now: float
) -> tuple[dict[str, Allowance], tuple[Note, ...]]:
    """Give what may be told now, at most ``BURST`` of a reason at once and one each ``REFILL`` seconds after that.

    The next one that is told says how many were not.
    """
    after, told = dict(allowances), []
    for note in news:
        allowance = after.get(note.reason, Allowance(at=now))
        left = min(BURST, allowance.left + max(0.0, now - allowance.at) / REFILL)
        if left < 1:
            after[note.reason] = Allowance(left, now, allowance.withheld + 1)
            continue
        after[note.reason] = Allowance(left - 1, now)
        more = f" ({allowance.withheld} events like this were not told)" if allowance.withheld else ""
        told.append(Note(note.type, note.reason, _short(note.message, LONGEST_MESSAGE - len(more)) + more))
    return after, tuple(told)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def manifest(note: Note, node: str, now: float, number: int) -> dict[str, Any]:
    """Give the Event about the Node, as a kubelet writes it; ``number`` tells those of the same moment apart."""
    time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    prefix = node[:LONGEST_PREFIX].rstrip("-.")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{prefix}.{int(now * 1e6):x}-{number}", "namespace": NAMESPACE},
        # kubectl describe finds a Node's events by its name in the place of the uid.
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": note.type,
        "reason": note.reason,
        "message": note.message,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }

# SPDX-License-Identifier: Apache-2.0
"""From a record to the conditions of the node's KmeshNodeInfo, which ``kubectl wait`` and controllers read. Pure.

Written rarely: every write goes to all nodes' watches, which read it and drop it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from kmesh.cluster.objects import NAMESPACE, NODE_INFO_API
from kmesh.telling.events import PEER_REASONS, patience_lost
from kmesh.telling.record import Record

ENCRYPTION_READY, KEY_ACCEPTED, PEERS_ACCEPTED, KEY_REPLACED = TYPES = (
    "EncryptionReady",
    "KeyAccepted",
    "PeersAccepted",
    "KeyReplaced",
)
LONGEST_MESSAGE = 1024
"""Characters; the type metav1.Condition allows 32768, and nobody reads them."""
SOONEST = 10.0
"""Seconds between two writes at least."""
REPLACEMENT_PATIENCE = 90.0
"""Seconds after which a key that has not replaced the former one everywhere is worth a write of its own."""

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, as metav1.Condition has it.

    ``since``: of this status, seconds since the epoch, since the daemon's start at most; ``generation``: of the
    KmeshNodeInfo for which it was found, so that ``kubectl wait`` does not take an older answer for a newer one.
    """

    status: Status
    reason: str
    message: str
    since: float
    generation: int


def conditions(record: Record, before: Mapping[str, Condition]) -> dict[str, Condition]:
    """Give the conditions by type; what is undecided yet, a replacement under way, stays as it was ``before``."""
    found = dict(before)
    now, generation = record.attempted, record.key.generation
    for name, status, reason, message in _verdicts(record, before):
        old = before.get(name)
        since = old.since if old is not None and old.status == status else now
        found[name] = Condition(status, reason, message[:LONGEST_MESSAGE], since, generation)
    return found


def _verdicts(record: Record, before: Mapping[str, Condition]) -> Iterator[tuple[str, Status, str, str]]:
    key = record.key
    if not record.unready:
        message = f"{record.sums.ready} of {len(record.peers)} peers"
        yield ENCRYPTION_READY, "True", "Ready", message
    elif patience_lost(record):
        yield ENCRYPTION_READY, "False", "NotReady", "; ".join(record.unready)
    elif ENCRYPTION_READY not in before:
        yield ENCRYPTION_READY, "Unknown", "Starting", "; ".join(record.unready)
    if key.refused:
        yield KEY_ACCEPTED, "False", "Refused", key.refused
    elif key.spi:
        yield KEY_ACCEPTED, "True", "Accepted", f"SPI {key.spi}"
    # The worst first: its reason is told, and it is not what a long message is cut off before.
    problems = [one for kind in PEER_REASONS for one in record.plan_problems if one.kind is kind]
    if problems:
        yield PEERS_ACCEPTED, "False", PEER_REASONS[problems[0].kind], "; ".join(map(str, problems))
    else:
        yield PEERS_ACCEPTED, "True", "Accepted", f"{len(record.peers)} peers"
    if not key.spi:
        return
    if record.settled == key.spi:
        yield KEY_REPLACED, "True", "Settled", f"nothing older than SPI {key.spi} is left"
    elif record.attempted - record.key_since >= REPLACEMENT_PATIENCE:
        yield KEY_REPLACED, "False", "Replacing", f"SPI {key.spi} is not the only one yet"
    elif KEY_REPLACED not in before:
        yield KEY_REPLACED, "Unknown", "Replacing", f"SPI {key.spi} is not the only one yet"


def delay(before: Mapping[str, Condition], after: Mapping[str, Condition], written_at: float, now: float) -> float:
    """Give the seconds after which they should be written, infinity: there is nothing new.

    Other words for the same are no reason to write, but a new generation is.
    """
    news = {name: replace(one, message="") for name, one in after.items()}
    known = {name: replace(one, message="") for name, one in before.items()}
    if news == known:
        return math.inf
    return SOONEST - (now - written_at) if 0 <= now - written_at < SOONEST else 0.0


def manifest(found: Mapping[str, Condition], node: str) -> dict[str, Any]:
    """Give the KmeshNodeInfo with nothing but its status, for a server-side apply of the subresource."""
    return {
        "apiVersion": NODE_INFO_API,
        "kind": "KmeshNodeInfo",
        "metadata": {"name": node, "namespace": NAMESPACE},
        "status": {
            "conditions": [
                {
                    "type": name,
                    "status": one.status,
                    "reason": one.reason,
                    "message": one.message,
                    "lastTransitionTime": datetime.fromtimestamp(one.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "observedGeneration": one.generation,
                }
                for name, one in sorted(found.items())
            ]
        },
    }

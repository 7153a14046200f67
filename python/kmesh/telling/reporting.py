# SPDX-License-Identifier: Apache-2.0
"""A record of the daemon -> its report, and when the report is worth publishing. Pure.

Small on purpose: with thousands of nodes every report is stored, and sent to whoever watches, each minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import nsmallest

from kmesh.cluster.status import COUNTERS, Drop, NodeStatus, PeerStatus
from kmesh.telling.peers import PeerRecord
from kmesh.telling.record import Record
from kmesh_bpf import __version__

PEER_ROWS = 32
"""Peers at most that a report tells of one by one: those that are not ready, or behind, or have used up much."""
REASONS, REASON_LENGTH = 8, 240
"""Sentences in a report, and characters in each."""

SOONEST = 2.0
"""Seconds between two reports at least, whatever happens."""
PERIOD = 60.0
"""Seconds between two reports when nothing happens."""
PROGRESS_RATE = 100.0
"""Reports a second that a whole cluster may make of its progress: each node's share of that is by its peers."""


def make_status(record: Record) -> NodeStatus:
    """Make the report of a record."""
    newest = record.newest_spi
    peers = (
        PeerStatus(
            name,
            peer.ready,
            peer.ways["in"].used,
            peer.ways["out"].used,
            max(way.sequence_use for way in peer.ways.values()),
        )
        for name, peer in _told(record)
    )
    sending = [spi for spi in record.sums.sending if spi]
    refused = (f"the key in the Secret is refused: {record.key.refused}",) if record.key.refused else ()
    return NodeStatus(
        node=record.node,
        version=__version__,
        reported_at=record.now,
        ready=not record.unready,
        reasons=tuple(reason[:REASON_LENGTH] for reason in (*record.unready, *refused)[:REASONS]),
        spi=record.key.announced,
        newest_spi=newest,
        spi_out=(min(sending), max(sending)) if sending else None,
        peers_ready=record.sums.ready,
        peers_expected=len(record.peers),
        peers_on_newest=record.on_newest,
        old_inbound=record.old_inbound,
        replacing_since=record.replacing_since,
        sequence_use=record.sums.sequence_use,
        counters={name: record.counters[name] for name in COUNTERS if name in record.counters},
        last_drop=Drop(*record.last_drop) if record.last_drop else None,
        strict=record.strict,
        services=tuple(sorted(map(str, record.services))),
        nat_exemption=record.nat_exemption,
        peers=tuple(nsmallest(PEER_ROWS, peers, key=lambda peer: (peer.ready, peer.spi_out, peer.name))),
        by_cidr=tuple(sorted(record.by_cidr)[:PEER_ROWS]),
        by_cidr_count=len(record.by_cidr),
        problems=tuple(sorted({problem.kind.name for problem in record.plan_problems})),
        incarnation=record.incarnation,
        incarnation_since=record.incarnation_since,
        holds=record.sums.holds if record.incarnation else None,
    )


def _told(record: Record) -> Iterator[tuple[str, PeerRecord]]:
    """Give the peers that are not as they should be, with their names."""
    behind = (names for spi, names in record.sums.sending.items() if spi != record.newest_spi)
    for name in record.sums.noted.union(*behind):
        yield name, record.peers[name]


def delay(previous: NodeStatus | None, new: NodeStatus, now: float, jitter: float) -> float:
    """Give the seconds after which a report should be published; ``previous`` was published last, None: none was.

    What an operator or another node waits for (readiness, versions, the incarnation) is told at once, progress (peers,
    what is held of them, problems) as fast as the whole cluster can bear, else it is renewed after a minute and
    ``jitter``, seconds, drawn anew after each publication: until then it is infinity, for nobody waits for that.
    """
    since = now - previous.reported_at if previous else PERIOD
    if previous is None or since < 0:  # less than 0: the clock was set back
        return 0.0
    if _news(previous) != _news(new):
        return max(0.0, SOONEST - since)
    if _progress(previous) != _progress(new):
        return max(0.0, max(SOONEST, new.peers_expected / PROGRESS_RATE) - since)
    return 0.0 if since >= PERIOD + jitter else math.inf


def _news(status: NodeStatus) -> tuple[object, ...]:
    return (
        status.version,
        status.ready,
        status.spi,
        status.newest_spi,
        status.strict,
        status.services,
        status.incarnation,
    )


def _progress(status: NodeStatus) -> tuple[object, ...]:
    return (
        status.peers_ready,
        status.peers_expected,
        status.peers_on_newest,
        status.spi_out,
        status.replacing_since is None,
        status.nat_exemption,
        status.problems,
        status.holds,
    )

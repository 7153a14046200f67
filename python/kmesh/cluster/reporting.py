"""A pass of the daemon -> its report, and when the report is worth publishing. Pure.

Small on purpose: with thousands of nodes every report is stored, and sent to whoever watches, each minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kmesh.cluster.status import COUNTERS, DROPPING, Drop, NodeStatus, PeerStatus
from kmesh_bpf import Address, Direction, Report, View

PEER_ROWS = 32
"""Peers at most that a report tells of one by one: those that are not ready, or behind, or have used up much."""
NOTED_USE = 0.1
"""The share of sequence numbers from which on a peer is told of; the metrics tell of all of them."""
REASONS, REASON_LENGTH = 8, 240
"""Sentences in a report, and characters in each."""
SEQUENCES, SEQUENCES_ESN = 1 << 32, 1 << 64
"""Packets that an SA can carry: RFC 4303 sections 2.2 and 2.2.1."""

SOONEST = 2.0
"""Seconds between two reports at least, whatever happens."""
PERIOD = 60.0
"""Seconds between two reports when nothing happens."""
PROGRESS_RATE = 100.0
"""Reports a second that a whole cluster may make of its progress: each node's share of that is by its peers."""


@dataclass(slots=True)
class _Pair:
    """What the kernel holds for one peer; versions as in PeerStatus. ``newest``: the version sent with, by tunnel."""

    spi_in: int = 0
    newest: dict[tuple[Address, Address], tuple[int, int]] = field(default_factory=dict)
    broken: bool = False
    sequence_use: float = 0.0

    @property
    def spi_out(self) -> int:
        """The version sent with, the lower one if two tunnels differ; 0 where an SA is missing."""
        return 0 if self.broken else min((spi for _, spi in self.newest.values()), default=0)


def make_status(
    report: Report,
    counters: Mapping[str, int],
    announced: int,
    now: float,
    *,
    view: View,
    version: str,
    strict: bool,
    unready: Iterable[str] = (),
    notes: Iterable[str] = (),
    previous: NodeStatus | None = None,
) -> NodeStatus:
    """Make the report of a pass.

    ``counters`` are packets by the contract's names, ``announced`` is the SPI in our KmeshNodeInfo, ``view`` the one
    the pass was made for; ``unready`` are sentences on what keeps the node from being ready, ``notes`` on what else an
    operator should know (a key that was refused); ``previous`` is the report before this one, published or not.
    """
    state = report.observed.state
    newest = max((announced, *(sa.spi for sa in report.plan.state.sas.values() if sa.mark is not None)))
    peers = [
        PeerStatus(name, name in report.reachable, pair.spi_in, pair.spi_out, pair.sequence_use)
        for name, pair in _pairs(report, view).items()
    ]
    told = [peer for peer in peers if not (peer.ready and peer.spi_out == newest) or peer.sequence_use >= NOTED_USE]
    sending = [peer.spi_out for peer in peers if peer.spi_out]
    old_inbound = sum(1 for sa in state.sas.values() if sa.mark is not None and sa.spi < newest)
    replacing = announced < newest or old_inbound > 0 or any(spi < newest for spi in sending)
    since = previous.replacing_since if previous else None
    reasons = tuple(unready)
    return NodeStatus(
        node=view.node.name,
        version=version,
        reported_at=now,
        ready=not reasons,
        reasons=tuple(reason[:REASON_LENGTH] for reason in (*reasons, *notes)[:REASONS]),
        spi=announced,
        newest_spi=newest,
        spi_out=(min(sending), max(sending)) if sending else None,
        peers_ready=sum(1 for peer in peers if peer.ready),
        peers_expected=len(report.expected),
        peers_on_newest=sum(1 for spi in sending if spi == newest),
        old_inbound=old_inbound,
        replacing_since=(now if since is None else since) if replacing else None,
        sequence_use=max((peer.sequence_use for peer in peers), default=0.0),
        counters={name: counters[name] for name in COUNTERS if name in counters},
        last_drop=_last_drop(counters, previous, now),
        strict=strict,
        services=tuple(sorted(map(str, view.services))),
        nat_exemption=state.nat_exemption,
        peers=tuple(sorted(told, key=lambda peer: (peer.ready, peer.spi_out, peer.name))[:PEER_ROWS]),
        by_cidr=tuple(sorted(report.plan.by_cidr)[:PEER_ROWS]),
        by_cidr_count=len(report.plan.by_cidr),
        problems=tuple(sorted({problem.kind.name for problem in report.plan.problems})),
    )


def delay(previous: NodeStatus | None, new: NodeStatus, now: float, jitter: float) -> float:
    """Give the seconds after which a report should be published; ``previous`` was published last, None: none was.

    What an operator waits for (readiness, versions) is told at once, progress (peers, problems) as fast as the whole
    cluster can bear, else it is renewed after a minute and ``jitter``, seconds, drawn anew after each publication:
    until then it is infinity, for nobody waits for that.
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
    return (status.version, status.ready, status.spi, status.newest_spi, status.strict, status.services)


def _progress(status: NodeStatus) -> tuple[object, ...]:
    return (
        status.peers_ready,
        status.peers_expected,
        status.peers_on_newest,
        status.spi_out,
        status.replacing_since is None,
        status.nat_exemption,
        status.problems,
    )


def _pairs(report: Report, view: View) -> dict[str, _Pair]:
    """Sort what the kernel holds by peer; for one that has announced nothing it holds nothing."""
    pairs = {name: _Pair() for name in sorted(report.expected)}
    by_address: dict[Address, _Pair] = {
        address: pairs[peer.node.name] for peer in view.peers for address in peer.node.addresses
    }
    observed = report.observed
    for identity, sa in observed.state.sas.items():
        pair = by_address.get(sa.dst if sa.mark is None else sa.src)
        if pair is None:
            continue  # of a peer that has gone
        use = observed.usage.get(identity)
        if sa.mark is None:
            # The kernel sends with the newest.
            made = (use.added if use else 0, sa.spi)
            pair.newest[sa.src, sa.dst] = max(pair.newest.get((sa.src, sa.dst), made), made)
        else:
            pair.spi_in = max(pair.spi_in, sa.spi)
        if use is not None:
            # Without ESN the kernel's numbers are not read; the packets come to the same.
            numbers = max(use.sequence, use.packets) / (SEQUENCES_ESN if sa.replay_window else SEQUENCES)
            pair.sequence_use = max(pair.sequence_use, min(numbers, 1.0))
    for policy in observed.state.policies.values():
        if policy.direction is Direction.OUT and not policy.block:
            pair = by_address.get(policy.tunnel_dst)
            if pair is not None:
                pair.broken = pair.broken or (policy.tunnel_src, policy.tunnel_dst) not in pair.newest
    return pairs


def _last_drop(counters: Mapping[str, int], previous: NodeStatus | None, now: float) -> Drop | None:
    """Give the counter that rose most since the report before; where none did, what that report knew."""
    if previous is None:
        return None
    risen = {name: counters.get(name, 0) - previous.counters.get(name, 0) for name in DROPPING}
    most = max(DROPPING, key=lambda name: risen[name])
    return Drop(most, now) if risen[most] > 0 else previous.last_drop

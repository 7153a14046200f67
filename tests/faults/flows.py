# SPDX-License-Identifier: Apache-2.0
"""What was sent and what arrived -> how much of a span of time was lost, and for how long. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

MAGIC = b"\xfakmesh\xce\xe5"
"""In whatever is sent, at its head: where it is seen on the wire, something is in clear, whatever its addresses say."""


@dataclass(slots=True)
class Numbered:
    """A flow of numbered packets from one node to another: when each was sent, and when it arrived first.

    Times are seconds of the monotonic clock; number N is at index N. ``twice``: when a number arrived that had arrived before.
    Of ICMP what arrives is the answer.
    """

    name: str
    source: str
    target: str
    sent: list[float] = field(default_factory=list)
    arrived: dict[int, float] = field(default_factory=dict)
    twice: list[float] = field(default_factory=list)

    def take(self, number: int, now: float) -> None:
        """Take in that a number arrived; one that was never sent is nobody's."""
        if number >= len(self.sent):
            return
        if number in self.arrived:
            self.twice.append(now)
        else:
            self.arrived[number] = now


@dataclass(frozen=True, slots=True)
class Cost:
    """What a span of time cost a flow: packets, and the longest time in ms in which none arrived.

    ``last_lost``: when the last one that was lost had been sent, None if none was.
    """

    name: str
    nodes: tuple[str, str]
    sent: int
    lost: int
    twice: int
    gap: int
    last_lost: float | None


def cost(flow: Numbered, start: float, end: float) -> Cost:
    """Give what the packets sent from ``start`` until ``end`` met; those that arrived after ``end`` count as arrived."""
    first, last = bisect_left(flow.sent, start), bisect_left(flow.sent, end)
    lost = [number for number in range(first, last) if number not in flow.arrived]
    arrivals = sorted(one for number in range(first, last) if (one := flow.arrived.get(number)) is not None)
    marks = [start, *arrivals, *([end] if lost and lost[-1] == last - 1 else [])]
    gap = max((after - before for before, after in pairwise(marks)), default=end - start)
    return Cost(
        flow.name,
        (flow.source, flow.target),
        last - first,
        len(lost),
        sum(start <= one < end for one in flow.twice),
        round(gap * 1000),
        flow.sent[lost[-1]] if lost else None,
    )


@dataclass(frozen=True, slots=True)
class Stream:
    """What a span of time cost a TCP connection: bytes that arrived, how often it broke, the longest stall in ms."""

    name: str
    nodes: tuple[str, str]
    received: int
    broken: int
    stall: int
    retransmitted: int


@dataclass(frozen=True, slots=True)
class Span:
    """All that was measured from ``start`` until ``end``, seconds of the monotonic clock.

    ``sent`` counts numbered packets of all flows, ``gap`` is the longest one of any flow in ms; ``costs`` are of the flows that
    something was lost of or accepted twice. ``esp`` and ``clear`` count frames on the wire, ``what`` tells of those in clear.
    """

    start: float
    end: float
    sent: int
    gap: int
    costs: tuple[Cost, ...]
    streams: tuple[Stream, ...]
    esp: int
    clear: int
    what: tuple[str, ...] = ()

    @property
    def lost(self) -> int:
        return sum(one.lost for one in self.costs)

    @property
    def twice(self) -> int:
        return sum(one.twice for one in self.costs)

    @property
    def broken(self) -> int:
        return sum(one.broken for one in self.streams)

    @property
    def stall(self) -> int:
        return max((one.stall for one in self.streams), default=0)

    @property
    def last_lost(self) -> float | None:
        return max((one.last_lost for one in self.costs if one.last_lost is not None), default=None)

    def lost_outside(self, nodes: Iterable[str]) -> int:
        """Count what was lost between nodes none of which is one of these."""
        return sum(one.lost for one in self.costs if not {*nodes} & {*one.nodes})

    def beside(self, flows: Iterable[Numbered]) -> Span:
        """Add flows that a row has of its own, each for as long as it lasted."""
        costs = [cost(one, one.sent[0], one.sent[-1] + 1e-6) for one in flows if one.sent]
        return replace(
            self,
            sent=self.sent + sum(one.sent for one in costs),
            gap=max([self.gap, *(one.gap for one in costs)]),
            costs=(*self.costs, *(one for one in costs if one.lost or one.twice)),
        )

    def plain(self) -> dict[str, Any]:
        """Give it as JSON can hold it; :func:`span` reads it back."""
        return asdict(self)


def measure(
    flows: Iterable[Numbered], streams: Iterable[Stream], start: float, end: float, esp: int, clear: Iterable[str]
) -> Span:
    """Sum up a span of time; ``clear`` are the frames in clear that the wire saw in it."""
    costs = [cost(flow, start, end) for flow in flows]
    seen = Counter(clear)
    return Span(
        start,
        end,
        sum(one.sent for one in costs),
        max((one.gap for one in costs), default=0),
        tuple(one for one in costs if one.lost or one.twice),
        tuple(streams),
        esp,
        seen.total(),
        tuple(f"{count} of {what}" for what, count in seen.most_common(5)),
    )


def span(plain: Mapping[str, Any]) -> Span:
    """Give what :meth:`Span.plain` was made of."""
    costs = tuple(Cost(**{**one, "nodes": tuple(one["nodes"])}) for one in plain["costs"])
    streams = tuple(Stream(**{**one, "nodes": tuple(one["nodes"])}) for one in plain["streams"])
    return Span(**{**plain, "costs": costs, "streams": streams, "what": tuple(plain["what"])})

"""Traffic per peer over the life of the daemon: SAs come and go, their sums never go backwards. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from kmesh_bpf import Address, SaId, SaUsage

Way = Literal["in", "out"]
Flow = tuple[str, Way]
"""Name of a peer, and the direction as this node sees it."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What SAs counted. ``replays``: packets outside the window or seen before."""

    packets: int = 0
    bytes: int = 0
    replays: int = 0
    integrity_failures: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.replays + other.replays,
            self.integrity_failures + other.integrity_failures,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """``kept``: what SAs counted that are gone; ``seen``: the present ones, with whose they are, as last observed."""

    kept: Mapping[Flow, Traffic] = field(default_factory=lambda: MappingProxyType({}))
    seen: Mapping[SaId, tuple[Flow, SaUsage]] = field(default_factory=lambda: MappingProxyType({}))

    def sums(self) -> dict[Flow, Traffic]:
        """Give everything ever counted, by flow."""
        found = dict(self.kept)
        for flow, use in self.seen.values():
            found[flow] = found.get(flow, Traffic()) + _traffic(use)
        return found


def _by_flow(usage: Mapping[SaId, SaUsage], peers: Mapping[Address, str]) -> Iterator[tuple[SaId, Flow, SaUsage]]:
    """Give the SAs from and to peers; ``peers`` names them by address. Others are left out."""
    for identity, use in usage.items():
        if identity.src in peers:
            yield identity, (peers[identity.src], "in"), use
        elif identity.dst in peers:
            yield identity, (peers[identity.dst], "out"), use


def advance(before: Totals, usage: Mapping[SaId, SaUsage], peers: Mapping[Address, str]) -> Totals:
    """Take in what was observed now. What is known of peers that are none any more is forgotten.

    What an SA counted between its last observation and its end is lost; the planner ends idle ones only.
    """
    names = set(peers.values())
    kept = {flow: traffic for flow, traffic in before.kept.items() if flow[0] in names}
    seen = {identity: (flow, use) for identity, flow, use in _by_flow(usage, peers)}
    for identity, (flow, use) in before.seen.items():
        if flow[0] in names and not _continues(seen.get(identity), flow, use):
            kept[flow] = kept.get(flow, Traffic()) + _traffic(use)
    return Totals(kept, seen)


def _continues(now: tuple[Flow, SaUsage] | None, flow: Flow, before: SaUsage) -> bool:
    """Tell whether it is still the same SA, of the same peer, and not another one that was put in its place."""
    if now is None or now[0] != flow or now[1].added != before.added:
        return False
    use = now[1]
    return (
        use.packets >= before.packets
        and use.bytes >= before.bytes
        and use.replays >= before.replays
        and use.integrity_failures >= before.integrity_failures
    )


def _traffic(use: SaUsage) -> Traffic:
    return Traffic(use.packets, use.bytes, use.replays, use.integrity_failures)

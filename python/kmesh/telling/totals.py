# SPDX-License-Identifier: Apache-2.0
"""Traffic of a peer over the life of the daemon: SAs come and go, their sums never go backwards. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from kmesh_bpf import SaId, SaUsage

Way = Literal["in", "out"]
"""A direction as this node sees it."""
WAYS: tuple[Way, ...] = ("in", "out")


def way_of(identity: SaId) -> Way:
    """Give the direction of an SA: those that receive are told apart by a mark."""
    return "out" if identity.mark is None else "in"


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


NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True)
class Account:
    """A peer's. ``kept``: what SAs counted that are gone; ``seen``: the present ones, as last observed."""

    kept: Mapping[Way, Traffic] = field(default_factory=lambda: MappingProxyType({}))
    seen: Mapping[SaId, SaUsage] = field(default_factory=lambda: MappingProxyType({}))

    def total(self, way: Way) -> Traffic:
        """Give everything ever counted."""
        return sum((_traffic(use) for one, use in self.seen.items() if way_of(one) == way), self._kept(way))

    def after(self, usage: Mapping[SaId, SaUsage]) -> Account:
        """Take in the use of the peer's SAs as it was observed now.

        What an SA counted between its last observation and its end is lost; the planner ends idle ones only.
        """
        gone = [(one, use) for one, use in self.seen.items() if not _continues(usage.get(one), use)]
        if not gone:
            return Account(self.kept, usage)
        kept = dict(self.kept)
        for identity, use in gone:
            way = way_of(identity)
            kept[way] = kept.get(way, NO_TRAFFIC) + _traffic(use)
        return Account(kept, usage)

    def _kept(self, way: Way) -> Traffic:
        return self.kept.get(way, NO_TRAFFIC)


def _continues(now: SaUsage | None, before: SaUsage) -> bool:
    """Tell whether it is still the same SA, and not another one that was put in its place."""
    return (
        now is not None
        and now.added == before.added
        and now.packets >= before.packets
        and now.bytes >= before.bytes
        and now.replays >= before.replays
        and now.integrity_failures >= before.integrity_failures
    )


def _traffic(use: SaUsage) -> Traffic:
    return Traffic(use.packets, use.bytes, use.replays, use.integrity_failures)

# SPDX-License-Identifier: Apache-2.0
"""What there is to tell of each peer: its SAs, and whether we can send to it. Pure, and remembered from pass to pass.

Made anew only for peers of which something has changed: a tell costs what has happened, not how many nodes there are.
Everything that says something of a peer, or sums it up, goes by this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kmesh.cluster import holdings
from kmesh.telling.totals import NO_TRAFFIC, WAYS, Account, Traffic, Way, way_of
from kmesh_bpf import Address, Peer, Report, SaId, SaUsage, View

SEQUENCES, SEQUENCES_ESN = 1 << 32, 1 << 64
"""Packets that an SA can carry: RFC 4303 sections 2.2 and 2.2.1."""
NOTED_USE = 0.1
"""The share of sequence numbers from which on a peer is told of in reports; the metrics tell of all of them."""


@dataclass(frozen=True, slots=True)
class Direction:
    """The SAs of a peer in one direction.

    ``spis``: their versions, ascending, one of each SA. ``used``: the version that packets take, the lower one if two
    tunnels differ; 0: there is none, or a policy leads to where no SA is. ``sequence_use``: the largest part of its
    sequence numbers that one of them has used, 0 to 1. ``last_used``, ``since`` (the oldest of the newest version was
    made): seconds since the epoch, 0: never. ``traffic``: see :mod:`kmesh.telling.totals`.
    """

    spis: tuple[int, ...] = ()
    used: int = 0
    sequence_use: float = 0.0
    last_used: int = 0
    since: int = 0
    traffic: Traffic = NO_TRAFFIC

    @property
    def newest(self) -> int:
        """The highest version, 0: there is no SA."""
        return self.spis[-1] if self.spis else 0

    @property
    def oldest(self) -> int:
        """The lowest version, 0: there is no SA."""
        return self.spis[0] if self.spis else 0


NO_SA = Direction()
NO_WAYS: Mapping[Way, Direction] = MappingProxyType(dict.fromkeys(WAYS, NO_SA))


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer: whether we can send to it, by what is in the kernel; what it announces (0: nothing); its SAs.

    ``holds``: its incarnation, where the kernel can send to that and decrypt from it with the version that this node
    announces; empty where it cannot, or where the peer is about to go.
    """

    ready: bool = False
    announced: int = 0
    ways: Mapping[Way, Direction] = field(default_factory=lambda: NO_WAYS)
    holds: str = ""


@dataclass(frozen=True, slots=True)
class Sums:
    """All peers in a few numbers.

    ``ready``: how many we can send to. ``sending``: names of peers by the version that they are sent with, 0: none or
    not all of it; ``receiving``: SAs that receive, by version. ``oldest``, ``newest``: lowest and highest version of
    all SAs, 0: there is none. ``since``: when the first SA of the newest version was made, 0: there is none. ``noted``:
    names of peers that are not ready, or of which an SA has used up ``NOTED_USE`` of its sequence numbers. ``holds``:
    the digest of the incarnations held (:mod:`kmesh.cluster.holdings`).
    """

    ready: int = 0
    sending: Mapping[int, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    receiving: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    oldest: int = 0
    newest: int = 0
    since: int = 0
    sequence_use: float = 0.0
    noted: frozenset[str] = frozenset()
    holds: int = 0


class Tally:
    """The sums of peers that come, change and go; each change costs the same, however many there are."""

    def __init__(self) -> None:
        self._ready = 0
        self._sending: dict[int, set[str]] = {}
        self._frozen: dict[int, frozenset[str]] = {}
        self._receiving: Counter[int] = Counter()
        self._oldest: Counter[int] = Counter()
        self._newest: Counter[tuple[int, int]] = Counter()
        self._uses: dict[str, float] = {}
        self._noted: set[str] = set()
        self._holds = 0

    def change(self, name: str, before: PeerRecord | None, now: PeerRecord | None) -> None:
        """Take in what a peer was, and is; None: there was or is none."""
        for peer, number in ((before, -1), (now, 1)):
            if peer is not None:
                self._count(peer, number)
        if (before.holds if before else "") != (now.holds if now else ""):
            self._holds ^= holdings.digest((name, peer.holds) for peer in (before, now) if peer and peer.holds)
        if before is not None:
            self._frozen.pop(before.ways["out"].used, None)
            self._sending[before.ways["out"].used].discard(name)
        if now is not None:
            self._frozen.pop(now.ways["out"].used, None)
            self._sending.setdefault(now.ways["out"].used, set()).add(name)
        use = max((way.sequence_use for way in now.ways.values()), default=0.0) if now is not None else 0.0
        if use:
            self._uses[name] = use
        else:
            self._uses.pop(name, None)
        if now is not None and (not now.ready or use >= NOTED_USE):
            self._noted.add(name)
        else:
            self._noted.discard(name)

    def sums(self) -> Sums:
        """Give the sums."""
        for spi, names in self._sending.items():
            if names and spi not in self._frozen:
                self._frozen[spi] = frozenset(names)
        newest = max((spi for spi, _ in self._newest), default=0)
        return Sums(
            self._ready,
            MappingProxyType({spi: self._frozen[spi] for spi, names in self._sending.items() if names}),
            MappingProxyType(dict(self._receiving)),
            min(self._oldest, default=0),
            newest,
            min((since for spi, since in self._newest if spi == newest and since), default=0),
            max(self._uses.values(), default=0.0),
            frozenset(self._noted),
            self._holds,
        )

    def _count(self, peer: PeerRecord, number: int) -> None:
        self._ready += number * peer.ready
        for spi in peer.ways["in"].spis:
            _add(self._receiving, spi, number)
        for way in peer.ways.values():
            if way.spis:
                _add(self._oldest, way.oldest, number)
                _add(self._newest, (way.newest, way.since), number)


def _add(counter: Counter[Any], key: Any, number: int) -> None:
    counter[key] += number
    if not counter[key]:
        del counter[key]


def summed_up(peers: Mapping[str, PeerRecord]) -> Sums:
    """Sum up peers by name."""
    tally = Tally()
    for name, peer in peers.items():
        tally.change(name, None, peer)
    return tally.sums()


class Peers:
    """The peers of one node, from one pass to the next."""

    def __init__(self) -> None:
        self._records: dict[str, PeerRecord] = {}
        self._tally = Tally()
        self._accounts: dict[str, Account] = {}
        self._peers: dict[str, Peer] = {}
        self._names: dict[Address, str] = {}
        self._listed: Collection[Peer] = ()
        self._reachable: frozenset[str] = frozenset()
        self._touched: set[Address] | None = set()
        self._incarnation, self._announced = "", 0
        """Of this node, by which records were made."""

    def note(self, report: Report) -> None:
        """Take in which peers a pass has touched; each pass must be noted, :meth:`take` may be left out."""
        if report.touched is None or self._touched is None:
            self._touched = None
        else:
            self._touched |= report.touched

    def take(self, view: View, report: Report) -> tuple[Mapping[str, PeerRecord], Sums]:
        """Give the peers by name after the last pass noted, those that we should be able to send to, and their sums."""
        grown = False
        for name in self._changed(view, report):
            before = self._records.pop(name, None) if name not in report.expected else self._records.get(name)
            now = self._record(name, report) if name in report.expected else None
            if now is None:
                self._accounts.pop(name, None)
            else:
                self._records[name] = now
                grown = grown or before is None
            self._tally.change(name, before, now)
        if grown:
            self._records = dict(sorted(self._records.items()))
        return MappingProxyType(self._records.copy()), self._tally.sums()

    def _changed(self, view: View, report: Report) -> set[str]:
        """Give the names of the peers that something may have changed about."""
        touched, self._touched = self._touched, set()
        names = set(report.expected ^ self._records.keys())
        if view.peers is not self._listed:
            names.update(self._list(view.peers))
        if report.reachable is not self._reachable:
            names.update(report.reachable ^ self._reachable)
            self._reachable = report.reachable
        before, now = (self._incarnation, self._announced), (report.incarnation, view.announced)
        self._incarnation, self._announced = now
        if touched is None or before != now:
            names.update(report.expected)
        else:
            names.update(self._names[address] for address in touched if address in self._names)
        return names

    def _list(self, peers: Collection[Peer]) -> set[str]:
        """Take in what nodes announce; give the names of those that announce something else than before.

        And of those with an address of which it is now said that it is another one's.
        """
        before, former, self._listed = self._peers, self._names, peers
        self._peers = {peer.node.name: peer for peer in peers}
        self._names = {address: peer.node.name for peer in peers for address in peer.node.addresses}
        names = before.keys() ^ self._peers.keys()
        names |= {name for name, peer in self._peers.items() if before.get(name) is not peer}
        known = (peers[name] for name in names for peers in (before, self._peers) if name in peers)
        addresses = {address for peer in known for address in peer.node.addresses}
        names.update(owners[one] for one in addresses for owners in (former, self._names) if one in owners)
        return names

    def _record(self, name: str, report: Report) -> PeerRecord:
        peer = self._peers.get(name)
        if peer is None:
            self._accounts.pop(name, None)
            return PeerRecord(name in report.reachable)
        found: dict[Way, dict[SaId, SaUsage]] = {way: {} for way in WAYS}
        windows: dict[SaId, int] = {}
        paths: dict[tuple[Address, Address], tuple[int, int]] = {}
        taken: dict[tuple[Address, Address], int] = {}
        broken, as_planned = False, True
        for address in peer.node.addresses:
            if self._names[address] != name:
                continue  # of two that claim it one is listened to
            held = report.held(address)
            for identity, sa in held.sas.items():
                use = report.observed.usage.get(identity, NOT_USED)
                found[way_of(identity)][identity] = use
                windows[identity] = sa.replay_window
                as_planned = as_planned and report.plan.state.sas.get(identity, sa) == sa
                if sa.mark is None:
                    # The kernel sends with the newest.
                    path, made = (sa.src, sa.dst), (use.added, sa.spi)
                    paths[path] = max(paths.get(path, made), made)
                else:
                    taken[sa.dst, sa.src] = max(taken.get((sa.dst, sa.src), 0), sa.spi)
            broken = broken or any((ours, address) not in paths for ours in held.led_from)
        account = self._accounts.get(name, Account()).after({**found["in"], **found["out"]})
        self._accounts[name] = account
        sent_with = 0 if broken else min((spi for _, spi in paths.values()), default=0)
        used: dict[Way, int] = {"in": max((one.spi for one in found["in"]), default=0), "out": sent_with}
        ways = {way: _direction(found[way], windows, used[way], account.total(way)) for way in WAYS}
        ready, takes = name in report.reachable, all(taken.get(path, 0) >= self._announced > 0 for path in paths)
        holds = peer.node.boot_id if ready and takes and as_planned and peer.alive else ""
        return PeerRecord(ready, peer.spi, ways, holds)


NOT_USED = SaUsage(0, 0, 0, 0)


def _direction(sas: Mapping[SaId, SaUsage], windows: Mapping[SaId, int], used: int, traffic: Traffic) -> Direction:
    if not sas:
        return Direction(traffic=traffic)
    spis = tuple(sorted(identity.spi for identity in sas))
    return Direction(
        spis,
        used,
        max(_sequence_use(use, windows[identity]) for identity, use in sas.items()),
        max(use.last_used for use in sas.values()),
        min((use.added for identity, use in sas.items() if identity.spi == spis[-1] and use.added), default=0),
        traffic,
    )


def _sequence_use(use: SaUsage, window: int) -> float:
    """Give the used part of an SA's sequence numbers; without ESN the kernel tells packets only, one number each."""
    numbers = max(use.sequence, use.packets)
    return min(numbers / (SEQUENCES_ESN if window else SEQUENCES), 1.0)

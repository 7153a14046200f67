# SPDX-License-Identifier: Apache-2.0
"""Which SAs from and towards a peer there should be, by tunnel (docs/design.md, "Replacing the key").

The kernel sends with the newest outbound SA between two tunnel ends, newest by whole seconds. What is in the kernel for
two nodes' present incarnations stays as long as it is used or needed, also when its key is not known any more.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from kmesh_bpf.core import keys, marks
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Mark, PeerEntry, Sa, SaId, SaUsage
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, Key, Peer, View

OUTBOUND_LINGER = 2.0
"""Seconds an outbound SA stays after its last packet; the kernel counts use in whole seconds."""
NEVER = SaUsage(0, 0, 0, 0)
Versions = Mapping[int, Sa]
"""SAs by key version."""


@dataclass(frozen=True, slots=True)
class Held:
    """The SAs in the kernel from and towards one peer, by what they are looked up by.

    ``pinned``: those that a policy of a former version of ours points to by SPI. ``windows_begin``: this node had its
    replay window turned off and now has one. ``fresh``: those of which it is known how they were used up to now; None:
    of all. ``leading``: tunnel ends that outbound policies in the kernel lead to.
    """

    inbound: Mapping[tuple[Address, Address, Mark], Versions]
    outbound: Mapping[Ends, Versions]
    usage: Mapping[SaId, SaUsage]
    pinned: frozenset[SaId]
    windows_begin: bool
    fresh: Container[SaId] | None
    leading: Container[Ends] = ()

    def use(self, sa: Sa) -> SaUsage:
        """Give how an SA was used, as far as that is known."""
        return self.usage.get(sa.id, NEVER)

    def is_fresh(self, sa: Sa) -> bool:
        """Tell whether that is known up to now."""
        return self.fresh is None or sa.id in self.fresh


@dataclass(frozen=True, slots=True)
class TunnelSas:
    """The outcome for one tunnel.

    ``version``: to be sent with, None: there is no key that both ends hold. ``sends``: an outbound SA is among ``sas``.
    ``spi``, ``retired``: for the peer map. ``due``: when it must be looked at again though nothing has happened, in the
    planner's clock; None: never. ``missing``: the SA of a version that was sent with, which is gone and cannot be made:
    its pair of incarnations is at an end. ``asks``: SAs that may go, or not, by how they were used up to now.
    """

    sas: tuple[Sa, ...]
    version: int | None
    sends: bool
    spi: int
    retired: int
    due: float | None = None
    missing: tuple[SaId, ...] = ()
    asks: tuple[SaId, ...] = ()


def held(
    found: Iterable[Sa],
    usage: Mapping[SaId, SaUsage],
    pinned: frozenset[SaId],
    windows_begin: bool,
    fresh: Container[SaId] | None,
    leading: Container[Ends] = (),
) -> Held:
    """Sort what was found of one peer; the rest as it is kept."""
    inbound: dict[tuple[Address, Address, Mark], dict[int, Sa]] = {}
    outbound: dict[Ends, dict[int, Sa]] = {}
    for sa in found:
        if sa.mark is None:
            outbound.setdefault((sa.src, sa.dst), {})[sa.spi] = sa
        else:
            inbound.setdefault((sa.src, sa.dst, sa.mark), {})[sa.spi] = sa
    return Held(inbound, outbound, usage, pinned, windows_begin, fresh, leading)


def windows_begin(peers_without: int, sas_with: int, options: Options) -> bool:
    """Tell whether SAs that exist must be made anew with a replay window.

    That a peer begins to announce a window changes nothing about SAs that exist, or its word would cost everybody their
    keys. So where some have none, it was this node's choice only if no SA has one and every peer announces one.
    ``peers_without``: how many peers announce none; ``sas_with``: how many SAs have one.
    """
    return options.replay_window > 0 and not sas_with and not peers_without


def plan_sas(
    view: View,
    peer: Peer,
    ends: Ends,
    node_mark: int,
    before: PeerEntry,
    held: Held,
    options: Options,
    now: float,
) -> TunnelSas:
    """Decide for one tunnel. ``before``: what the peer map says of its far end, for these very incarnations."""
    tunnel = _Tunnel(
        view, peer, ends, marks.inbound_mark(node_mark, options.node_mark_mask, options.mark_mask), held, options
    )
    accepting, retired, leaving, asks = _inbound(tunnel, before.retired, now)
    sent = before.spi
    there = tunnel.living_outbound(sent)
    # Never below what was sent with, whatever the peer announces: that version's numbers have been used.
    version = max(keys.outbound_version(view.keys, peer.spi) or 0, sent, *there) or None
    if version is None:
        return TunnelSas(accepting, None, False, sent, retired, leaving, asks=asks)
    newest = tunnel.outbound(version)
    if newest is None:
        missing = (SaId(*ends, version, None),)
        return TunnelSas((*accepting, *there.values()), version, bool(there), sent, retired, leaving, missing, asks)
    older = [sa for spi, sa in there.items() if spi != version]
    wait, rests = False, None
    if version in there:
        resting = [(sa, _rests_at(sa, held, now)) for sa in older]
        asks = (*asks, *(sa.id for sa in older if not held.is_fresh(sa)))
        older = [sa for sa, at in resting if now < at]
        rests = earliest(*(at for _, at in resting if now < at))
    else:
        wait = any(held.use(sa).added >= int(now) for sa in older)
        rests = int(now) + 1.0 if wait else None
    sas = (*accepting, *(older if wait else (newest, *older)))
    # The map tells of a version once what receives with it was seen in the kernel, for one that the kernel refuses
    # would look like one that somebody removed. Of what sends it tells before that is there, where it is used from then
    # on: there is an entry of a version before, or a policy leads there (kmesh_bpf.core.reach.in_order).
    receives = all(tunnel.is_made(sa) for sa in accepting if sa.spi == version)
    used = not wait if sent or ends in held.leading else tunnel.is_made(newest)
    due = earliest(leaving, rests)
    return TunnelSas(sas, version, True, max(sent, version) if receives and used else sent, retired, due, asks=asks)


def earliest(*times: float | None) -> float | None:
    """Give the earliest of times, where there is one."""
    return min((time for time in times if time is not None and time < math.inf), default=None)


@dataclass(frozen=True, slots=True)
class _Tunnel:
    """What all SAs between two tunnel ends have in common."""

    view: View
    peer: Peer
    ends: Ends
    mark: Mark
    held: Held
    options: Options

    def found_inbound(self) -> Versions:
        local, remote = self.ends
        return self.held.inbound.get((remote, local, self.mark), {})

    def found_outbound(self) -> Versions:
        return self.held.outbound.get(self.ends, {})

    def living_outbound(self, sent: int) -> Versions:
        """Give the outbound SAs that belong to the present incarnations: by their key, or by what the map says."""
        return {
            spi: sa
            for spi, sa in self.found_outbound().items()
            if (sa.key == self._key(spi, outbound=True) if spi in self.view.keys else spi <= sent)
        }

    def inbound(self, spi: int) -> Sa:
        """Give the SA of a version whose key is known, or that is there."""
        local, remote = self.ends
        found = self.found_inbound().get(spi)
        if found is not None and spi not in self.view.keys:
            return found
        key = self._key(spi, outbound=False)
        window = self._window(found, key)
        return Sa(
            remote, local, spi, key, self.mark, marks.output_mark(self.options.mark_mask), window, any_family=True
        )

    def outbound(self, spi: int) -> Sa | None:
        """Give the SA of a version; None: its key is not known, and it is not there."""
        found = self.found_outbound().get(spi)
        if spi not in self.view.keys:
            return found
        key = self._key(spi, outbound=True)
        return Sa(*self.ends, spi, key, replay_window=self._window(found, key), any_family=True)

    def is_made(self, sa: Sa) -> bool:
        return (self.found_outbound() if sa.mark is None else self.found_inbound()).get(sa.spi) == sa

    def _key(self, spi: int, *, outbound: bool) -> Key:
        local, remote = self.ends
        here, there = self.view.node.boot_id, self.peer.node.boot_id
        if outbound:
            return keys.derive(self.view.keys[spi], local, remote, here, there)
        return keys.derive(self.view.keys[spi], remote, local, there, here)

    def _window(self, found: Sa | None, key: Key) -> int:
        """Give the window: that of the SA in place, unless this node's own setting says otherwise."""
        ours = self.options.replay_window
        if found is not None and found.key == key and found.replay_window in (0, ours) and not self.held.windows_begin:
            return found.replay_window
        return ours if self.peer.replay_window else 0


def _inbound(tunnel: _Tunnel, retired: int, now: float) -> tuple[tuple[Sa, ...], int, float | None, tuple[SaId, ...]]:
    """Give the SAs to accept with, the highest version ever retired, when the next may go, and which ones to ask of.

    Retired is also one that nothing was received with.
    """
    view, peer, found = tunnel.view, tunnel.peer, tunnel.found_inbound()
    held = {*view.keys, *found}
    usage = {spi: tunnel.held.use(sa) for spi, sa in found.items()}
    ours, rules = (view.announced, view.announced_at), tunnel.options.retirement
    kept = keys.inbound_versions(held, peer.spi, *ours, usage, now, rules, peer.sends)
    asks = {spi: sa.id for spi, sa in found.items() if spi not in kept and not tunnel.held.is_fresh(sa)}
    stay = sorted(kept.keys() | asks)  # nothing goes of which it is not known whether it is used
    sas = tuple(tunnel.inbound(spi) for spi in stay if spi in found or spi > retired)
    return sas, max((retired, *held.difference(stay))), earliest(*kept.values()), tuple(asks.values())


def _as_known(sa: Sa, held: Held, now: float) -> SaUsage:
    """Give how an SA was used; as far as that is not known, as if it had been right now."""
    use = held.use(sa)
    return use if held.is_fresh(sa) else SaUsage(use.added, int(now), use.packets, use.bytes)


def _rests_at(sa: Sa, held: Held, now: float) -> float:
    """Give when no packet is on its way through an outbound SA any more, if none comes: deleting it would drop them."""
    if sa.id in held.pinned:
        return math.inf
    return _as_known(sa, held, now).last_used + OUTBOUND_LINGER

"""Which SAs from and towards a peer there should be, by tunnel (DESIGN sections 5 and 6).

The kernel sends with the newest outbound SA between two tunnel ends, newest by whole seconds. What is in the kernel for
two nodes' present incarnations stays as long as it is used or needed, also when its key is not known any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kmesh_bpf import contract
from kmesh_bpf.core import keys, marks
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Mark, Observation, PeerEntry, Sa, SaId, SaUsage
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, Key, Peer, View

OUTBOUND_LINGER = 2.0
"""Seconds an outbound SA stays after its last packet; the kernel counts use in whole seconds."""
UPPER_BITS = 0xFFFFFFFF & ~contract.MARK_MASK
NEVER = SaUsage(0, 0, 0, 0)
Versions = Mapping[int, Sa]
"""SAs by key version."""


@dataclass(frozen=True, slots=True)
class Held:
    """The SAs in the kernel by what they are looked up by.

    ``pinned``: those that a policy of a former version of ours points to by SPI. ``windows_begin``: this node had its
    replay window turned off and now has one.
    """

    inbound: Mapping[tuple[Address, Address, Mark], Versions]
    outbound: Mapping[Ends, Versions]
    usage: Mapping[SaId, SaUsage]
    pinned: frozenset[SaId]
    windows_begin: bool

    def use(self, sa: Sa) -> SaUsage:
        """Give how an SA was used."""
        return self.usage.get(sa.id, NEVER)


@dataclass(frozen=True, slots=True)
class TunnelSas:
    """The outcome for one tunnel.

    ``version``: to be sent with, None: there is no key that both ends hold. ``sends``: an outbound SA is among ``sas``.
    ``spi``, ``retired``: for the peer map. ``waiting``: another pass is due without any event. ``missing``: the SA of a
    version that was sent with, which is gone and cannot be made: its pair of incarnations is at an end.
    """

    sas: tuple[Sa, ...]
    version: int | None
    sends: bool
    spi: int
    retired: int
    waiting: bool
    missing: tuple[SaId, ...] = ()


def index(view: View, observed: Observation, options: Options) -> Held:
    """Sort what was found, once for all peers."""
    inbound: dict[tuple[Address, Address, Mark], dict[int, Sa]] = {}
    outbound: dict[Ends, dict[int, Sa]] = {}
    windows = False
    for sa in observed.state.sas.values():
        windows = windows or sa.replay_window > 0
        if sa.mark is None:
            outbound.setdefault((sa.src, sa.dst), {})[sa.spi] = sa
        else:
            inbound.setdefault((sa.src, sa.dst, sa.mark), {})[sa.spi] = sa
    pinned = frozenset(
        SaId(one.tunnel_src, one.tunnel_dst, one.spi, None) for one in observed.state.policies.values() if one.spi
    )
    # That a peer begins to announce a window changes nothing about SAs that exist, or its word would cost everybody
    # their keys. So where some have none, it was this node's choice only if no SA has one and every peer announces one.
    begin = options.replay_window > 0 and not windows and all(peer.replay_window for peer in view.peers)
    return Held(inbound, outbound, observed.usage, pinned, begin)


def inbound_mark(node_mark: int, options: Options) -> Mark:
    """Give the mark that an inbound SA is found by: the sender's node id, and that it is ESP of ours."""
    low = options.mark_mask
    return Mark(node_mark | marks.decrypted_mark(low), options.node_mark_mask | low)


def output_mark(options: Options) -> Mark:
    """Give the mark laid on what was decrypted: node id off, bits of the low byte that are not ours left alone."""
    return Mark(marks.decrypted_mark(options.mark_mask), UPPER_BITS | options.mark_mask)


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
    tunnel = _Tunnel(view, peer, ends, inbound_mark(node_mark, options), held, options)
    accepting, retired = _inbound(tunnel, before.retired, now)
    sent = before.spi
    there = tunnel.living_outbound(sent)
    # Never below what was sent with, whatever the peer announces: that version's numbers have been used.
    version = max(keys.outbound_version(view.keys, peer.spi) or 0, sent, *there) or None
    if version is None:
        return TunnelSas(accepting, None, False, sent, retired, waiting=bool(accepting))
    newest = tunnel.outbound(version)
    if newest is None:
        return TunnelSas(
            (*accepting, *there.values()), version, bool(there), sent, retired, True, (SaId(*ends, version, None),)
        )
    older = tuple(
        sa for spi, sa in there.items() if spi != version and (version not in there or _in_use(sa, held, now))
    )
    wait = version not in there and any(held.use(sa).added >= int(now) for sa in older)
    sending = older if wait else (newest, *older)
    sas = (*accepting, *sending)
    # The map remembers what was seen in the kernel, not what is hoped for: else an SA that the kernel refuses would
    # look like one that somebody removed.
    made = version in there and all(tunnel.is_made(sa) for sa in sas if sa.spi == version)
    waiting = wait or any(sa.spi != version for sa in sas)
    return TunnelSas(sas, version, True, max(sent, version) if made else sent, retired, waiting)


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
        return Sa(remote, local, spi, key, self.mark, output_mark(self.options), window, any_family=True)

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


def _inbound(tunnel: _Tunnel, retired: int, now: float) -> tuple[tuple[Sa, ...], int]:
    """Give the SAs to accept with, and the highest version ever retired, also one that nothing was received with."""
    view, found = tunnel.view, tunnel.found_inbound()
    usage = {spi: tunnel.held.use(sa) for spi, sa in found.items()}
    held = {*view.keys, *found}
    kept = keys.inbound_versions(
        held,
        tunnel.peer.spi,
        view.announced,
        now - view.announced_at,
        usage,
        now,
        tunnel.options.retirement,
    )
    sas = tuple(tunnel.inbound(spi) for spi in kept if spi in found or spi > retired)
    return sas, max((retired, *held.difference(kept)))


def _in_use(sa: Sa, held: Held, now: float) -> bool:
    """Tell whether packets may be on their way through an outbound SA: deleting it would drop them."""
    return sa.id in held.pinned or now - held.use(sa).last_used < OUTBOUND_LINGER

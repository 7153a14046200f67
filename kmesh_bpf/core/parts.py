# SPDX-License-Identifier: Apache-2.0
"""What one other node takes of kernel objects: the part of a plan that depends on that node alone. Pure.

A part is made anew only when something that it depends on has changed, or the time that it names has come. Parts have
no object in common, so a plan is their sum, and the difference to the plan before is that of the parts that are others.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType

from kmesh_bpf.core import formers, keys, marks, sas
from kmesh_bpf.core.incarnation import lost
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.policies import Way, policies_of
from kmesh_bpf.core.sas import TunnelSas, earliest
from kmesh_bpf.core.state import KernelState, PeerEntry, PodFlags, SaId
from kmesh_bpf.core.tunnels import Ends, local_end, tunnels
from kmesh_bpf.core.view import Address, Peer, View

NO_STATE = KernelState()


@dataclass(frozen=True, slots=True)
class Ground:
    """What a part goes by besides the view, the same for all peers.

    ``used``: the highest key version of tunnels whose SAs are gone (:func:`formers.used_versions`); ``pinned``,
    ``windows_begin``, ``fresh``: as :class:`kmesh_bpf.core.sas.Held` has them.
    """

    mirror: Mirror
    options: Options
    now: float
    used: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    pinned: frozenset[SaId] = frozenset()
    windows_begin: bool = False
    fresh: Container[SaId] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One node's part.

    ``sends``: we can send to it, it is ready. ``by_cidr``: its pods are selected by pod CIDR. ``lost``: SAs that were
    there and are gone. ``returned``: nothing can be planned, for its keys were in use. ``unmade``: some of its SAs are
    not in the kernel yet. ``due``: when to look again though nothing has happened, in the planner's clock; None: never.
    ``asks``: SAs that may go, or not, by how they were used up to now, which is not known. ``tunnels``: what all of
    this comes from but for pods; None: no peer is dealt with, or nothing can be planned.
    """

    state: KernelState = NO_STATE
    sends: bool = False
    by_cidr: bool = False
    lost: tuple[SaId, ...] = ()
    returned: bool = False
    unmade: bool = False
    due: float | None = None
    asks: tuple[SaId, ...] = ()
    tunnels: _Tunnels | None = None


@dataclass(frozen=True, slots=True)
class _Tunnels:
    """The SAs of a peer, and what follows from them; ``way`` None: nothing is taken from it, nor can it be sent to."""

    state: KernelState
    lost: tuple[SaId, ...]
    unmade: bool
    due: float | None
    asks: tuple[SaId, ...]
    way: Way | None


def plan_part(
    view: View,
    pods: tuple[Address, ...],
    peer: Peer | None,
    fingerprint: int,
    node_id: int,
    wide: bool,
    ground: Ground,
    before: Part | None = None,
) -> Part:
    """Plan for another node. ``pods``: addresses of its managed pods; ``peer``: None where none is dealt with.

    ``fingerprint``, ``node_id``: of the peer. ``wide``: its pods may be selected by pod CIDR. ``before``: its part as
    it is, where nothing but its pods may have changed.
    """
    found = before.tunnels if before is not None else None
    if peer is not None and found is None:
        found = _tunnels(view, peer, fingerprint, node_id, ground)
    if peer is not None and found is None:
        return Part(_reached(view, pods, None, False, ground.options), returned=True)
    way = found.way if found else None
    by_cidr = wide and way is not None and way.sends
    rest = _reached(view, pods, way, by_cidr, ground.options)
    if peer is None or found is None:
        return Part(rest)
    sends = way is not None and way.sends
    flags = {**_own(peer, sends), **rest.pods}
    state = KernelState(found.state.sas, rest.policies, flags, found.state.peers)
    return Part(state, sends, by_cidr, found.lost, False, found.unmade, found.due, found.asks, found)


def _tunnels(view: View, peer: Peer, fingerprint: int, node_id: int, ground: Ground) -> _Tunnels | None:
    """Plan SAs and entries; None: an SA would have to be made under a key that was in use, and count from the start."""
    mirror, options = ground.mirror, ground.options
    ends = tunnels(view.node, peer.node)
    mark = marks.node_mark(node_id, options.node_mark_mask)
    before = {address: _entry(mirror, address, fingerprint) for address in peer.node.addresses}
    used = formers.used_with(view.node, peer.node, ground.used)
    reached = max((keys.outbound_version(view.keys, peer.spi) or 0, *(entry.spi for entry in before.values())))
    reached = min(reached, view.announced)
    there = chain.from_iterable(mirror.by_remote.get(address, {}).values() for address in peer.node.addresses)
    held = sas.held(there, mirror.observation.usage, ground.pinned, ground.windows_begin, ground.fresh, mirror.leading)
    made: dict[Ends, TunnelSas] = {}
    for tunnel in sorted(set(ends.values()), key=str):
        entry = before[tunnel[1]]
        if reached > used[tunnel]:  # both ends are past what was used
            entry = replace(entry, retired=max(entry.retired, used[tunnel]))
        made[tunnel] = sas.plan_sas(view, peer, tunnel, mark, entry, held, options, ground.now)
    if any(formers.reuses(one.sas, mirror.state.sas, used[tunnel]) for tunnel, one in made.items()):
        return None
    planned = {sa.id: sa for one in made.values() for sa in one.sas}
    entries: dict[Address, PeerEntry] = {}
    gone: list[SaId] = []
    for (_, remote), one in made.items():
        entries[remote] = PeerEntry(node_id, mark, one.spi, fingerprint, one.retired, _pair(view, peer, remote))
        gone += one.missing
        gone += lost(one.sas, mirror.state, remote, fingerprint, view.announced, mirror.in_use)
    for address in peer.node.addresses:
        entries.setdefault(address, PeerEntry(node_id, mark, 0, fingerprint, pair=_pair(view, peer, address)))
    sends = bool(ends) and all(one.sends for one in made.values())
    takes = any(sa.mark is not None for sa in planned.values())
    return _Tunnels(
        KernelState(sas=planned, peers=entries),
        tuple(gone),
        any(mirror.state.sas.get(identity) != sa for identity, sa in planned.items()),
        earliest(*(one.due for one in made.values())),
        tuple(chain.from_iterable(one.asks for one in made.values())),
        Way(peer, ends, sends) if sends or takes else None,
    )


def _pair(view: View, peer: Peer, remote: Address) -> int:
    """Give the fingerprint of the tunnel that leads to an address of a peer, or would if it were the first one."""
    local = local_end(view.node, remote.version)
    return keys.pair(local, remote, view.node.boot_id, peer.node.boot_id) if local else marks.UNKNOWN_PAIR


def _entry(mirror: Mirror, address: Address, fingerprint: int) -> PeerEntry:
    """Give what the peer map remembers of an address under these incarnations: nothing yet, if it has none."""
    entry = mirror.state.peers.get(address)
    return entry if entry and entry.incarnations == fingerprint else PeerEntry(0, 0, 0, fingerprint)


def _reached(view: View, pods: tuple[Address, ...], way: Way | None, by_cidr: bool, options: Options) -> KernelState:
    """Give policies and pod map: what reaches a node's pods, and itself, by the way that leads there."""
    flag = PodFlags.REMOTE
    if way is not None and way.sends:
        flag |= PodFlags.READY | (PodFlags.PEER if way.peer.node_traffic else PodFlags(0))
    found = policies_of(view, pods, way, options, by_cidr=by_cidr)
    return KernelState(policies={one.id: one for one in found}, pods=dict.fromkeys(pods, flag))


def _own(peer: Peer, sends: bool) -> dict[Address, PodFlags]:
    """Give what the pod map says of a peer's own addresses: DNAT may turn any of them into a pod's."""
    flags = dict.fromkeys(peer.node.addresses, PodFlags.CANDIDATE)
    if peer.node_traffic:
        flag = PodFlags.CANDIDATE | PodFlags.PEER | (PodFlags.READY if sends else PodFlags(0))
        flags.update((address, flag) for address in peer.node.addresses if address not in peer.unconfirmed)
    return flags

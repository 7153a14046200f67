# SPDX-License-Identifier: Apache-2.0
"""Who this node is to its peers: the one place that decides it. Pure.

Every key is made of the incarnations of the two nodes that share it. A node therefore may count on with its SAs under
one incarnation, and never from the start: **no sequence starts anew under a key that was in use, and no packet that was
recorded is accepted later.** Wherever that is not sure, it becomes another one. The boot id is never an incarnation:
what depends on pins, contract versions and pin folders lives shorter than a boot.

X: what the kernel keeps in kmesh_self. *In use*: it holds SAs, or entries of peers that say so. *Unseen*: X was chosen
and our KmeshNodeInfo has not told it yet, so whatever the cluster shows is of an incarnation before. The first row that
applies counts::

    kernel keeps  and                                                         incarnation  cause
    none          whatever SAs there are, whatever KmeshNodeInfo of ours:     new          FIRST
                  first start, reboot, uninstall, lost pins, another
                  --pin-root or contract version
    X             SAs made for X are gone or must be made otherwise: a        new          LOST
                  flush, another replay window, another key under an SPI
    X             more former peers are remembered than there is room for     new          CROWDED
    X, in use,    our KmeshNodeInfo is gone, is another one by its uid, or    new          FORGOTTEN
    not unseen    shows another incarnation: somebody's doing, and the
                  peers have removed their SAs, or will
    X, in use,    our addresses are not those that it shows: they could       new          ADDRESSES
    not unseen    change back
    X, not        our replay window is not the one that it shows: peers       new          WINDOW
    unseen        have made their SAs for that one, as they keep them, and
                  with ESN on one end only no packet is understood
    X             a peer is back whose SAs are gone, and would have them      new          RETURNED
                  made under its old keys: it was away for longer than
                  DEPARTED_LINGER, or its addresses changed and back
    X             the same, within RENEWAL_SECONDS of the last time: until    X            KEPT
                  then that peer gets no packet
    X             none of these                                               X            KEPT

A new incarnation is kept by the kernel before anything is made for it, so a crash leaves the row "X, unseen" (or, as a
restart does not know what is unseen, FORGOTTEN once more, which costs another change of keys and nothing else).

Our KmeshNodeInfo is *deleted and created anew* instead of changed when it shows another incarnation and a peer
announces nothing that only we announce: a Go node takes "exists already" for success when it makes the SAs of an
update, and would stay cut off. That deletion is no case of FORGOTTEN: the incarnation is unseen until it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from kmesh_bpf import contract
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.state import KernelState, Observation, Sa, SaId
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, Peer

RENEWAL_SECONDS = 600.0
"""Seconds between two new incarnations for the sake of peers that are back: one peer's coming and going must not keep
all others busy with new keys."""
MOST_FORMERS = contract.MAX_PEERS // 2
"""Former peers that are remembered at most; the map has room for twice as many, so that none is ever refused."""


class Cause(Enum):
    """Why the incarnation is what it is; the value tells it to people."""

    KEPT = "nothing calls for another one"
    FIRST = "the kernel keeps none of a daemon before"
    LOST = "SAs of ours had vanished, or must be made otherwise"
    CROWDED = "too many peers have come and gone"
    FORGOTTEN = "our KmeshNodeInfo was deleted or replaced, and the peers have removed their SAs"
    ADDRESSES = "our addresses change"
    WINDOW = "our replay window is not the one that the peers' SAs were made for"
    RETURNED = "a peer is back whose SAs are gone, and their keys must not be used again"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What the cluster shows of us: our KmeshNodeInfo. Without a boot id there is none. ``uid`` "": nobody counts.

    ``replay_window``: as peers read it, in packets; None: nobody has asked.
    """

    boot_id: str = ""
    addresses: tuple[str, ...] = ()
    uid: str = ""
    replay_window: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What a caller keeps from one pass to the next; a daemon that restarts begins with an empty one.

    ``unseen``: the incarnation that was chosen and not announced yet. ``uid``: of our KmeshNodeInfo when last seen.
    ``departed``: since when peers are missed, by fingerprint; ``renewed_at``: when a returned peer was the cause last.
    Both are in the planner's clock. ``outgoing``: the incarnation before this one, None: not known; ``ended``: the
    fingerprints of the pairs that came to an end with it, whose entries stay in the peer map until others take their
    places.
    """

    unseen: str = ""
    uid: str = ""
    departed: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    renewed_at: float | None = None
    outgoing: str | None = None
    ended: frozenset[int] = frozenset()

    def announced(self, *, recreated: bool) -> Memory:
        """Give what is known once the incarnation stands in our KmeshNodeInfo; a recreated one has another uid."""
        return replace(self, unseen="", uid="" if recreated else self.uid)


@dataclass(frozen=True, slots=True)
class Needs:
    """What the plan for the incarnation kept comes to. ``returned``: names of peers, ``formers``: how many are kept."""

    lost: tuple[SaId, ...] = ()
    returned: frozenset[str] = frozenset()
    formers: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The incarnation to use, whether it is a new one, and why.

    ``recreate``: our KmeshNodeInfo must be deleted and created anew, instead of changed, to announce it.
    """

    incarnation: str
    cause: Cause
    why: str
    recreate: bool = False

    @property
    def new(self) -> bool:
        """Whether the kernel does not keep it yet."""
        return self.cause is not Cause.KEPT

    @property
    def renewed(self) -> bool:
        """Whether it takes the place of one that was in the kernel: peers have to change their keys."""
        return self.new and self.cause is not Cause.FIRST


def decide(
    observed: Observation,
    needs: Needs,
    shown: Announcement | None,
    addresses: Iterable[Address],
    peers: Iterable[Peer],
    memory: Memory,
    fresh: str,
    now: float,
    replay_window: int,
) -> Decision:
    """Decide by the table above.

    ``needs`` is of the plan for the incarnation that the kernel keeps, if it does. ``shown`` None: there is no cluster
    that tells of us, so nothing follows from it. ``addresses`` and ``replay_window`` (the setting) are this node's,
    ``fresh`` an incarnation never used.
    """
    cause = _cause(observed, needs, shown, tuple(map(str, addresses)), memory, now, replay_window)
    incarnation = observed.incarnation if cause is Cause.KEPT and observed.incarnation else fresh
    why = cause.value if cause is not Cause.RETURNED else f"{cause.value}: {', '.join(sorted(needs.returned))}"
    return Decision(incarnation, cause, why, _recreate(shown, incarnation, peers))


def remember(memory: Memory, decision: Decision, shown: Announcement | None, now: float) -> Memory:
    """Give what to keep for the next decision."""
    return replace(
        memory,
        unseen=decision.incarnation if decision.new else memory.unseen,
        uid=shown.uid if shown is not None else "",
        renewed_at=now if decision.cause is Cause.RETURNED else memory.renewed_at,
    )


def lost(planned: Sequence[Sa], mirror: Mirror, ends: Ends, fingerprint: int, awaited: int) -> list[SaId]:
    """Give the SAs of a tunnel, made for these incarnations, that are gone, or differ from the plan.

    That they were in use tells the peer map, before they can be (:func:`kmesh_bpf.core.reach.in_order`). No packet
    finds an inbound SA without the node mark that an entry of these incarnations lays on it; so if there is one, for
    any address of that IP version, what receives was there with each version that is ``awaited``, as we announced it.
    What sends was, if the entry tells of its version. Where somebody removed the entry, others of its SAs tell, by
    their use, or policies that lead there: what was made before there was an entry has no use, and nothing leads to it.

    Whatever the map says, an SA whose key another one has is not to be made: one under another mark, or of another
    version, where a key came back whose history somebody erased.
    """
    there = mirror.state.sas
    gone = [sa for sa in planned if there.get(sa.id) != sa]
    if not gone:
        return []
    before, use = mirror.state.peers.get(ends[1]), mirror.observation.usage
    sent = before.spi if before is not None and before.incarnations == fingerprint else 0
    known = any(address.version == ends[1].version for address in mirror.fingerprints.get(fingerprint, ()))
    used = (sa.id in use and use[sa.id].packets for sa in planned if there.get(sa.id) == sa)
    removed = before is None and not known and (bool(mirror.leading[ends]) or any(used))

    def was_there(sa: Sa) -> bool:
        if sa.mark is None:
            return removed or sa.spi <= sent
        return (known or removed) and sa.spi <= max(awaited, sent)

    return [sa.id for sa in gone if sa.key in mirror.in_use or was_there(sa)]


def _cause(
    observed: Observation,
    needs: Needs,
    shown: Announcement | None,
    addresses: tuple[str, ...],
    memory: Memory,
    now: float,
    replay_window: int,
) -> Cause:
    kept = observed.incarnation
    if not kept:
        return Cause.FIRST
    if needs.lost:
        return Cause.LOST
    if needs.formers > MOST_FORMERS:
        return Cause.CROWDED
    if shown is not None and kept != memory.unseen and _in_use(observed.state):
        if shown.boot_id != kept or (memory.uid and shown.uid and memory.uid != shown.uid):
            return Cause.FORGOTTEN
        if shown.addresses != addresses:
            return Cause.ADDRESSES
    if shown is not None and kept == shown.boot_id and shown.replay_window not in (None, replay_window):
        return Cause.WINDOW
    rested = memory.renewed_at is None or now - memory.renewed_at >= RENEWAL_SECONDS
    return Cause.RETURNED if needs.returned and rested else Cause.KEPT


def _in_use(state: KernelState) -> bool:
    return bool(state.sas) or any(entry.spi for entry in state.peers.values())


def _recreate(shown: Announcement | None, incarnation: str, peers: Iterable[Peer]) -> bool:
    changes = shown is not None and shown.boot_id not in ("", incarnation)
    return changes and any(not (peer.replay_window or peer.node_traffic) for peer in peers)

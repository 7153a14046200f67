# SPDX-License-Identifier: Apache-2.0
"""The peers that are dealt with, their fingerprints and node ids; remembered from one view to the next. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from kmesh_bpf.core import claims, formers, marks
from kmesh_bpf.core.mirror import Changes, Mirror
from kmesh_bpf.core.node_ids import NodeIds
from kmesh_bpf.core.pods import Owners
from kmesh_bpf.core.view import Address, Node, Peer, Peers, View


class Register:
    """The peers of a view by name.

    ``accepted``: those that are dealt with; ``ids``: their node ids, by name. ``left_out``: the names of the others,
    ``quarantined``, ``crowded``: sentences on them. ``astray``: addresses that the kernel's peer map holds otherwise
    than for an accepted peer as it is now. ``without_window``: how many peers announce no replay window. ``nodes`` is
    another number whenever a node came or went, or its addresses or pod CIDRs changed.
    """

    def __init__(self, node_mark_mask: int) -> None:
        self.peers = Peers()
        self.accepted: dict[str, Peer] = {}
        self.fingerprints: dict[str, int] = {}
        self.ids: dict[str, int] = {}
        self.quarantined: tuple[str, ...] = ()
        self.crowded: tuple[str, ...] = ()
        self.astray: set[Address] = set()
        self.without_window = 0
        self.nodes = 0
        self._mask = node_mark_mask
        self._numbers = NodeIds(node_mark_mask)
        self._node: Node | None = None
        self._seen: Collection[Peer] = ()
        self._losers: frozenset[str] = frozenset()
        """Peers whose claims do not hold."""
        self._rest: tuple[str, ...] = ()
        """Peers that there is no node id for."""
        self._pairs: dict[int, set[str]] = {}
        """Peers by what tells of the keys of their tunnels (:func:`formers.pairs`)."""
        self._claimants: dict[Address, set[str]] = {}
        self._doubted: set[Address] = set()
        """Addresses that two peers claim, or a peer and a pod or this node."""
        self._unnumbered: set[str] = set()
        """Accepted peers whose node id does not stand in the peer map yet."""

    def update(
        self, view: View, mirror: Mirror, owners: Owners, moved: Iterable[Address], changes: Changes
    ) -> set[str]:
        """Take in a view; give the names of the peers for which anything is another now.

        ``moved``: addresses of managed pods that may have another owner; ``changes``: of the mirror.
        """
        touched = changes.remotes
        self._numbers.update(mirror, changes.node_ids, changes.node_marks)
        before = {name for address in touched for name in self._claimants.get(address, ())}
        changed, addresses = self._take(view)
        self._doubt((*addresses, *moved), view.node, owners)
        if changed or touched or self._doubted or self.quarantined:
            changed |= self._accept(view, mirror, owners, changed)
            changed |= self._number(mirror, changed | before)
            concerned = {*touched, *addresses}
            for peer in map(self.peers.get, changed):
                concerned.update(peer.node.addresses if peer else ())
            self._stray(concerned, mirror)
        return changed | before

    @property
    def left_out(self) -> frozenset[str]:
        """The names of the peers that are not dealt with."""
        return self._losers.union(self._rest)

    def with_pairs(self, pairs: Iterable[int]) -> set[str]:
        """Give the accepted peers that formers of these pairs may stand for (:func:`formers.used_with`)."""
        named = set(pairs)
        if marks.UNKNOWN_PAIR in named:
            return set(self.accepted)
        return {name for pair in named for name in self._pairs.get(pair, ()) if name in self.accepted}

    def name_at(self, address: Address) -> str | None:
        """Give the accepted peer that has an address."""
        return next((name for name in self._claimants.get(address, ()) if name in self.accepted), None)

    def _take(self, view: View) -> tuple[set[str], set[Address]]:
        """Take in the peers; give the names of those that are others now, and all their addresses."""
        node, same = view.node, view.node == self._node
        if same and view.peers is self._seen:
            return set(), set()
        before, now, former = self.peers, Peers.of(view.peers), self._node
        names = {name for name, _, _ in now.changes(before)} if same else {*before.names, *now.names}
        addresses: set[Address] = set() if same else set(self._claimants) | set(node.addresses)
        for name in names:
            old, new = before.get(name), now.get(name)
            for peer in (old, new):
                addresses.update(peer.node.addresses if peer else ())
            self._replace(name, old, new)
            self._pair(name, formers.pairs(former, old.node) if former and old else (), add=False)
            self._pair(name, formers.pairs(node, new.node) if new else (), add=True)
            if new is not None:
                self.fingerprints[name] = marks.incarnations(node, new.node)
            else:
                del self.fingerprints[name]
        self._node, self._seen, self.peers = node, view.peers, now
        return names, addresses

    def _pair(self, name: str, pairs: Iterable[int], *, add: bool) -> None:
        for pair in pairs:
            names = self._pairs.setdefault(pair, set())
            (names.add if add else names.discard)(name)
            if not names:
                del self._pairs[pair]

    def _replace(self, name: str, old: Peer | None, new: Peer | None) -> None:
        for address in old.node.addresses if old else ():
            self._claimants[address].discard(name)
        for address in new.node.addresses if new else ():
            self._claimants.setdefault(address, set()).add(name)
        self.without_window += bool(new and not new.replay_window) - bool(old and not old.replay_window)
        shapes = [(one.node.addresses, one.node.pod_cidrs) if one else None for one in (old, new)]
        self.nodes += shapes[0] != shapes[1]

    def _doubt(self, addresses: Iterable[Address], node: Node, owners: Owners) -> None:
        for address in addresses:
            names = self._claimants.get(address)
            if names is not None and not names:
                del self._claimants[address]
            if names and (len(names) > 1 or address in node.addresses or owners.pod(address) is not None):
                self._doubted.add(address)
            else:
                self._doubted.discard(address)

    def _accept(self, view: View, mirror: Mirror, owners: Owners, changed: set[str]) -> set[str]:
        """Decide who is dealt with; give the names of those for whom that is another answer.

        Asked are those that claim what somebody else claims, too: what the others claim is theirs alone.
        """
        claiming = {name for address in self._doubted for name in self._claimants[address]}
        losers: frozenset[str] = frozenset()
        self.quarantined = ()
        if claiming:
            several = replace(view, peers=Peers(peer for name in claiming if (peer := self.peers.get(name))))
            settled = claims.settle(several, self.fingerprints, mirror, owners.pod)
            losers, self.quarantined = frozenset(claiming) - settled.accepted, settled.quarantined
        others = {*(losers ^ self._losers), *self._rest}  # those without an id may get one now
        self._losers, self._rest, self.crowded = losers, (), ()
        for name in changed | others:
            peer = self.peers.get(name)
            if peer is None or name in losers:
                self.accepted.pop(name, None)
            else:
                self.accepted[name] = peer
        return others

    def _number(self, mirror: Mirror, names: set[str]) -> set[str]:
        """Give each accepted peer a node id; give the names of those that have another one now, or none any more."""
        for name in names:
            held = mirror.fingerprints.get(self.fingerprints[name]) if name in self.accepted else None
            number = next(iter(held.values())) if held else None
            if name not in self.accepted:
                self._unnumbered.discard(name)
                self.ids.pop(name, None)
            elif number is not None and number <= self._numbers.room:  # beyond: of a wider mask
                self._unnumbered.discard(name)
                self.ids[name] = number
            else:
                self._unnumbered.add(name)
        if not self._unnumbered:
            return set()
        wanted = sorted(self._unnumbered)
        numbers = dict(zip(wanted, self._numbers.free(len(wanted)), strict=False))
        changed = {name for name in wanted if self.ids.get(name) != numbers.get(name)}
        self.ids.update(numbers)
        rest = wanted[len(numbers) :]
        if rest:
            self._rest, self.crowded = tuple(rest), (claims.crowd(rest, self._mask),)
            self._unnumbered.difference_update(rest)
            for name in rest:
                del self.accepted[name]
                self.ids.pop(name, None)
        return changed.union(rest)

    def _stray(self, addresses: Iterable[Address], mirror: Mirror) -> None:
        for address in addresses:
            entry, name = mirror.state.peers.get(address), self.name_at(address)
            wanted = self.fingerprints[name] if name is not None else None
            if entry is None or entry.incarnations == wanted:
                self.astray.discard(address)
            else:
                self.astray.add(address)

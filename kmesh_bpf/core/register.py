"""The peers that are dealt with, their fingerprints and node ids; remembered from one view to the next. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kmesh_bpf.core import claims, keys, marks
from kmesh_bpf.core.mirror import Mirror
from kmesh_bpf.core.pods import Owners
from kmesh_bpf.core.view import Address, Node, Peer, View


class Register:
    """The peers of a view by name.

    ``accepted``: those that are dealt with; ``ids``: their node ids, by name. ``quarantined``, ``crowded``: sentences
    on the others. ``astray``: addresses that the kernel's peer map holds otherwise than for an accepted peer as it is
    now. ``without_window``: how many peers announce no replay window. ``nodes`` is another number whenever a node came
    or went, or its addresses or pod CIDRs changed.
    """

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self.accepted: dict[str, Peer] = {}
        self.fingerprints: dict[str, int] = {}
        self.ids: dict[str, int] = {}
        self.quarantined: tuple[str, ...] = ()
        self.crowded: tuple[str, ...] = ()
        self.astray: set[Address] = set()
        self.without_window = 0
        self.nodes = 0
        self._node: Node | None = None
        self._seen: tuple[Peer, ...] = ()
        self._claimants: dict[Address, set[str]] = {}
        self._doubted: set[Address] = set()
        """Addresses that two peers claim, or a peer and a pod or this node."""
        self._unnumbered: set[str] = set()
        """Accepted peers whose node id does not stand in the peer map yet."""

    def update(
        self, view: View, mirror: Mirror, owners: Owners, moved: Iterable[Address], touched: set[Address], mask: int
    ) -> set[str]:
        """Take in a view; give the names of the peers for which anything is another now.

        ``moved``: addresses of managed pods that may have another owner; ``touched``: of peers, where the kernel's
        entries or SAs have changed; ``mask``: the node mark mask.
        """
        before = {name for address in touched for name in self._claimants.get(address, ())}
        changed, addresses = self._take(view)
        self._doubt((*addresses, *moved), view.node, owners)
        if changed or touched or self._doubted or self.quarantined:
            changed |= self._accept(view, mirror, owners, changed)
            changed |= self._number(view, mirror, changed | before, mask)
            concerned = {*touched, *addresses}
            concerned.update(one for name in changed if name in self.peers for one in self.peers[name].node.addresses)
            self._stray(concerned, mirror)
        return changed | before

    def name_at(self, address: Address) -> str | None:
        """Give the accepted peer that has an address."""
        return next((name for name in self._claimants.get(address, ()) if name in self.accepted), None)

    def _take(self, view: View) -> tuple[set[str], set[Address]]:
        """Take in the peers; give the names of those that are others now, and all their addresses."""
        node, same = view.node, view.node == self._node
        if same and view.peers is self._seen:
            return set(), set()
        now = {peer.node.name: peer for peer in view.peers}
        names = {name for name, peer in now.items() if not same or self.peers.get(name) is not peer}
        names.update(self.peers.keys() - now.keys())
        addresses: set[Address] = set() if same else set(self._claimants) | set(node.addresses)
        for name in names:
            old, new = self.peers.get(name), now.get(name)
            for peer in (old, new):
                addresses.update(peer.node.addresses if peer else ())
            self._replace(name, old, new)
            if new is not None:
                self.fingerprints[name] = marks.incarnations(node, new.node)
            else:
                del self.fingerprints[name]
        self._node, self._seen, self.peers = node, view.peers, now
        return names, addresses

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
        """Decide who is dealt with; give the names of those for whom that is another answer."""
        if self._doubted:
            settled = claims.settle(view, self.fingerprints, mirror, owners.pod)
            accepted, self.quarantined = settled.accepted, settled.quarantined
        elif self.quarantined or self.crowded:
            accepted, self.quarantined = frozenset(self.peers), ()
        else:
            for name in changed:  # all are accepted, as those before were
                if name in self.peers:
                    self.accepted[name] = self.peers[name]
                else:
                    self.accepted.pop(name, None)
            return set()
        names = accepted ^ self.accepted.keys()
        self.accepted = {name: self.peers[name] for name in accepted}
        return set(names)

    def _number(self, view: View, mirror: Mirror, names: set[str], mask: int) -> set[str]:
        """Give each accepted peer a node id; give the names of those that have another one now, or none any more."""
        room = marks.capacity(mask)
        for name in names:
            held = mirror.fingerprints.get(self.fingerprints[name]) if name in self.accepted else None
            number = next(iter(held.values())) if held else None
            if name not in self.accepted:
                self._unnumbered.discard(name)
                self.ids.pop(name, None)
            elif number is not None and number <= room:
                self._unnumbered.discard(name)
                self.ids[name] = number
            else:
                self._unnumbered.add(name)
        if not self._unnumbered:
            self.crowded = ()
            return set()
        taken = {marks.node_id(mark, mask) for mark in mirror.node_marks}
        held_ids = {one: next(iter(ids.values())) for one, ids in mirror.fingerprints.items()}
        given = set(held_ids.values())
        for name in self._unnumbered:
            number = self._number_of_sas(view, mirror, self.accepted[name], mask)
            if number is not None and number not in given:
                held_ids[self.fingerprints[name]] = number
                given.add(number)
        wanted = sorted(self.accepted)
        ids = marks.allocate((self.fingerprints[name] for name in wanted), held_ids, taken, mask)
        numbers = {name: ids[self.fingerprints[name]] for name in wanted if self.fingerprints[name] in ids}
        rest = [name for name in wanted if name not in numbers]
        changed = {name for name in self._unnumbered if self.ids.get(name) != numbers.get(name)} | set(rest)
        self.ids, self.crowded = numbers, (claims.crowd(rest, mask),) if rest else ()
        for name in rest:
            del self.accepted[name]
        self._unnumbered.difference_update(rest)
        return changed

    @staticmethod
    def _number_of_sas(view: View, mirror: Mirror, peer: Peer, mask: int) -> int | None:
        """Give the node id that a peer's SAs bear, of which no entry tells.

        A daemon was killed before it wrote one, or somebody has removed it. Under another id they would have to be made
        again, with the same keys.
        """
        node = view.node
        if mirror.observation.incarnation != node.boot_id:
            return None
        found = (sa for address in peer.node.addresses for sa in mirror.by_remote.get(address, {}).values())
        for sa in found:
            if sa.mark is None or sa.spi not in view.keys or sa.mark.mask & marks.UPPER_BITS != mask:
                continue
            if sa.key == keys.derive(view.keys[sa.spi], sa.src, sa.dst, peer.node.boot_id, node.boot_id):
                return marks.node_id(sa.mark.value, mask)
        return None

    def _stray(self, addresses: Iterable[Address], mirror: Mirror) -> None:
        for address in addresses:
            entry, name = mirror.state.peers.get(address), self.name_at(address)
            wanted = self.fingerprints[name] if name is not None else None
            if entry is None or entry.incarnations == wanted:
                self.astray.discard(address)
            else:
                self.astray.add(address)

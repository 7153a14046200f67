# SPDX-License-Identifier: Apache-2.0
"""The view of a node, kept from one state of the cluster to the next: what an event does not concern is the very same.

What comes out is what :func:`kmesh.cluster.snapshot.build_view` makes of the same objects from scratch; tests hold one
against the other. There is no telling what the event was: a state is compared with the one before, which costs next to
nothing where both are :class:`kmesh.cluster.shared.Objects`. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from kmesh.cluster.objects import (
    NAMESPACE,
    ClusterObjects,
    Namespace,
    NodeInfo,
    NodeObject,
    PodObject,
    Service,
)
from kmesh.cluster.placed import Claims, Placed
from kmesh.cluster.placement import Ground
from kmesh.cluster.shared import Change, Objects
from kmesh.cluster.snapshot import (
    addresses_kept,
    candidates_of,
    ends_kept,
    enrolment,
    enrols,
    former_self,
    local_node,
    peer_of,
)
from kmesh_bpf import Address, Key, Network, Node, Peer, Peers, Pods, View


class Views:
    """The views of one node, one after the other; each is immutable and stays what it was."""

    def __init__(self, node: str) -> None:
        """``node``: the node's name."""
        self._node = node
        self._known: _Known | None = None
        self._view: View | None = None

    def claims(
        self, objects: ClusterObjects, *, evidence: frozenset[Address], known: frozenset[Address]
    ) -> tuple[Pods, tuple[str, ...]]:
        """Give the managed pods and sentences on claims that do not hold; see ``kmesh.cluster.snapshot.pod_claims``.

        Raises:
            ConfigError: see :func:`kmesh.cluster.snapshot.local_node`.

        """
        found = self._take(objects, evidence, known)
        return found.placed.pods, found.placed.problems

    def view(
        self,
        objects: ClusterObjects,
        *,
        keys: Mapping[int, Key],
        services: tuple[Network, ...],
        announced: int,
        announced_at: float,
        boot_id: str,
        evidence: frozenset[Address] = frozenset(),
        known: frozenset[Address] = frozenset(),
    ) -> View:
        """Make the view of what is so now; see :func:`kmesh.cluster.snapshot.build_view`.

        Raises:
            ConfigError: see :func:`kmesh.cluster.snapshot.local_node`.

        """
        found = self._take(objects, evidence, known)
        here = found.here
        made = View(
            node=Node(here.name, here.addresses, boot_id, here.pod_cidrs),
            peers=found.peers,
            pods=found.placed.pods,
            keys=dict(keys),
            services=services,
            candidates=found.candidates,
            contested=found.placed.contested,
            problems=found.placed.problems,
            announced=announced,
            announced_at=announced_at,
        )
        before = self._view or made
        self._view = replace(
            made,
            node=before.node if before.node == made.node else made.node,
            keys=before.keys if before.keys == made.keys else made.keys,
            services=before.services if before.services == made.services else made.services,
        )
        return self._view

    def _take(self, objects: ClusterObjects, evidence: frozenset[Address], known: frozenset[Address]) -> _Known:
        here = local_node(objects, self._node)
        found, self._known = self._known or _Known(), None  # should this fail half-way, the next one starts anew
        found.take(_State.of(objects, here, evidence, known))
        self._known = found
        return found


@dataclass(frozen=True, slots=True)
class _State:
    """All that peers, pods and candidates follow from."""

    here: NodeObject
    namespaces: Objects[Namespace] = field(default_factory=Objects)
    nodes: Objects[NodeObject] = field(default_factory=Objects)
    pods: Objects[PodObject] = field(default_factory=Objects)
    infos: Objects[NodeInfo] = field(default_factory=Objects)
    services: Objects[Service] = field(default_factory=Objects)
    evidence: frozenset[Address] = frozenset()
    known: frozenset[Address] = frozenset()

    @classmethod
    def of(
        cls, objects: ClusterObjects, here: NodeObject, evidence: frozenset[Address], known: frozenset[Address]
    ) -> _State:
        return cls(
            here,
            Objects.of(objects.namespaces),
            Objects.of(objects.nodes),
            Objects.of(objects.pods),
            Objects.of(objects.node_infos),
            Objects.of(objects.service_objects),
            evidence,
            known,
        )


class _Known:
    """What was made of a state, part by part."""

    def __init__(self) -> None:
        self.placed = Placed()
        self.peers = Peers()
        self.candidates: frozenset[Address] = frozenset()
        self.here = NodeObject("", (), (), "")
        self._state = _State(self.here)
        self._nodes: set[str] = set()
        self._of_nodes: dict[Address, str] = {}
        self._node_claims: Claims[str] = Claims()
        self._ends: Counter[Address] = Counter()
        self._mentions: Counter[Address] = Counter()

    def take(self, now: _State) -> None:
        """Go over to another state."""
        before, self._state, self.here = self._state, now, now.here
        nodes = list(now.nodes.changes(before.nodes))
        infos = list(now.infos.changes(before.infos))
        concerned = self._take_nodes(nodes)
        for old, new in (
            (frozenset(before.here.addresses), frozenset(now.here.addresses)),
            (before.evidence, now.evidence),
            (before.known, now.known),
        ):
            if old is not new:
                concerned |= old ^ new
        if bool(before.known) != bool(now.known):
            concerned.update(self._of_nodes)
        ground = Ground(
            here=now.here.name,
            own=frozenset(now.here.addresses),
            evidence=now.evidence,
            nodes=self._nodes,
            of_nodes=self._of_nodes,
            known=now.known,
            ends=self._ends,
        )
        judged = self.placed.change(_enrolled(before, now), concerned, ground)
        self._take_candidates(chain(nodes, infos, now.services.changes(before.services)), judged)
        names = {name for _, name, _, _ in chain(nodes, infos)}
        if before.here.addresses != now.here.addresses:
            names.update(info.name for info in now.infos)
        self._take_peers(now, names)

    def _take_nodes(self, changes: Iterable[Change[NodeObject]]) -> set[Address]:
        """Give the addresses for which something else counts than before."""
        concerned: set[Address] = set()
        come_or_gone = set()
        ends: Counter[Address] = Counter()
        for _, name, was, now in changes:
            if now is None:
                self._nodes.remove(name)
                come_or_gone.add(name)
            elif was is None:
                self._nodes.add(name)
                come_or_gone.add(name)
            old, new = (frozenset(addresses_kept(one)) if one else frozenset() for one in (was, now))
            for address in old - new:
                self._node_claims.remove(address, name)
            for address in new - old:
                self._node_claims.add(address, name)
            concerned |= old ^ new
            ends.subtract(ends_kept(was) if was else ())
            ends.update(ends_kept(now) if now else ())
        for address in concerned:
            names = self._node_claims.of(address)
            if names:
                self._of_nodes[address] = min(names)
            else:
                del self._of_nodes[address]
        moved = [address for address, number in ends.items() if number]
        self._ends.update({address: ends[address] for address in moved})
        for address in moved:
            if not self._ends[address]:
                del self._ends[address]
        return concerned.union(moved, self.placed.concerned(come_or_gone))

    def _take_candidates(
        self, changes: Iterable[Change[NodeObject] | Change[NodeInfo] | Change[Service]], judged: Iterable[Address]
    ) -> None:
        again = set(judged)
        for _, _, was, now in changes:
            old, new = (Counter(candidates_of(one) if one else ()) for one in (was, now))
            for address in old.keys() | new.keys():
                if old[address] != new[address]:
                    self._mentions[address] += new[address] - old[address]
                    again.add(address)
        come: list[Address] = []
        gone: list[Address] = []
        for address in again:
            mentioned = self._mentions.get(address)
            if mentioned is None:
                continue  # as nearly all of pods
            if mentioned == 0:
                del self._mentions[address]
            wanted = mentioned > 0 and self.placed.holder(address) is None
            if wanted != (address in self.candidates):
                (come if wanted else gone).append(address)
        if come or gone:
            self.candidates = self.candidates.difference(gone).union(come)

    def _take_peers(self, now: _State, names: Iterable[str]) -> None:
        edits: dict[str, Peer | None] = {}
        for name in names:
            info = now.infos.get(NAMESPACE, name) if name != now.here.name else None
            peer = peer_of(info, now.nodes.get("", name)) if info is not None else None
            if peer is None or former_self(peer, now.here):
                edits[name] = None
            elif peer != self.peers.get(name):
                edits[name] = peer
        self.peers = self.peers.changed(edits)


def _enrolled(before: _State, now: _State) -> Iterator[tuple[PodObject | None, PodObject | None]]:
    """Give what was enrolled before, and what is now (None: nothing), of each pod for which that is not the same."""
    for namespace, old, new in now.pods.changed_parts(before.pods):
        former, present = before.namespaces.get("", namespace), now.namespaces.get("", namespace)
        for _, was, one in new.changes(old):
            yield from _turned(was, former, one, present)
    for _, namespace, former, present in now.namespaces.changes(before.namespaces):
        if (former is not None and enrols(former)) != (present is not None and enrols(present)):
            old = before.pods.part(namespace)
            for name, pod in now.pods.part(namespace).items():
                if old.get(name) is pod:  # the others have been told
                    yield from _turned(pod, former, pod, present)


def _turned(
    was: PodObject | None, former: Namespace | None, now: PodObject | None, present: Namespace | None
) -> Iterator[tuple[PodObject | None, PodObject | None]]:
    old = was if was is not None and enrolment(was, former).managed else None
    new = now if now is not None and enrolment(now, present).managed else None
    if old is not new:
        yield old, new

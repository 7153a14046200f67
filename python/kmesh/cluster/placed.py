# SPDX-License-Identifier: Apache-2.0
"""Who has which address, kept from event to event: judged again is only what an event concerns. Pure.

What comes out is what :func:`kmesh.cluster.placement.place` gives for all pods at once; tests hold one against the
other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Generic, TypeVar

from kmesh.cluster.objects import PodObject
from kmesh.cluster.placement import Dispute, Ground, grant, in_order, is_contested, judge
from kmesh_bpf import Address, Pod, Pods

T = TypeVar("T")


class Claims(Generic[T]):
    """Who claims an address: of nearly all one, for whom no more than an entry of a dictionary is kept."""

    def __init__(self) -> None:
        self._claims: dict[Address, T | list[T]] = {}

    def of(self, address: Address) -> Sequence[T]:
        """Give all that claim an address."""
        found = self._claims.get(address)
        if isinstance(found, list):
            return found
        return () if found is None else (found,)

    def add(self, address: Address, who: T) -> None:
        """Take a claim."""
        found = self._claims.setdefault(address, who)
        if isinstance(found, list):
            found.append(who)
        elif found is not who:
            self._claims[address] = [found, who]

    def remove(self, address: Address, who: T) -> None:
        """Drop a claim that was taken."""
        found = self._claims[address]
        if not isinstance(found, list):
            del self._claims[address]
            return
        found.remove(who)
        if len(found) == 1:
            self._claims[address] = found[0]


class Placed:
    """The managed ``pods``, sentences on claims that do not hold, what is contested, as of the last :meth:`change`."""

    def __init__(self) -> None:
        self.pods = Pods()
        self.problems: tuple[str, ...] = ()
        self.contested: frozenset[Address] = frozenset()
        self._claims: Claims[PodObject] = Claims()
        self._judged: dict[Address, PodObject | None] = {}  # where it is not just the one that claims it
        self._disputes: dict[Address, list[Dispute]] = {}

    def holder(self, address: Address) -> PodObject | None:
        """Give the pod that has an address, if one has."""
        claimants = self._claims.of(address)
        if not claimants:
            return None
        return self._judged[address] if address in self._judged else claimants[0]

    def concerned(self, nodes: Set[str]) -> Iterator[Address]:
        """Give the addresses for which it counts whether the Nodes of such names are there."""
        for address in self._judged if nodes else ():
            if any(pod.node in nodes for pod in self._claims.of(address)):
                yield address
        for node in nodes:
            yield from (address for pod in self.pods.on(node) for address in pod.addresses)

    def change(
        self,
        changes: Iterable[tuple[PodObject | None, PodObject | None]],
        concerned: Iterable[Address],
        ground: Ground,
    ) -> set[Address]:
        """Take in what pods that are enrolled were and are now (None: not enrolled, or not there).

        ``concerned``: addresses whose ground changed. Give all that were judged again.
        """
        again = set(concerned)
        edits: dict[str, dict[str, Pod | None]] = {}
        for was, now in changes:
            if was is not None:
                edits.setdefault(was.node, {})[was.label] = None
                for address in _distinct(was.addresses):
                    self._claims.remove(address, was)
                    again.add(address)
            if now is not None:
                for address in _distinct(now.addresses):
                    self._claims.add(address, now)
                    again.add(address)
        concerned_pods: dict[int, PodObject] = {}
        told = False
        contested = set(self.contested)
        for address in again:
            claimants = self._claims.of(address)
            concerned_pods.update((id(pod), pod) for pod in claimants)
            told |= self._judge(address, claimants, ground)
            refused = self._judged.get(address, self) is None and is_contested(claimants, address, ground)
            (contested.add if refused else contested.discard)(address)
        if contested != self.contested:
            self.contested = frozenset(contested)
        for pod in concerned_pods.values():
            edits.setdefault(pod.node, {})[pod.label] = self._granted(pod)
        self.pods = self.pods.changed({node: self._edited(node, of_node) for node, of_node in edits.items()})
        if told:
            disputes = in_order(dispute for found in self._disputes.values() for dispute in found)
            self.problems = tuple(dispute.sentence for dispute in disputes)
        return again

    def _judge(self, address: Address, claimants: Sequence[PodObject], ground: Ground) -> bool:
        """Decide who has an address; tell whether other claims to it are in doubt than before."""
        disputes: list[Dispute] = []
        if self._judged:
            self._judged.pop(address, None)
        if len(claimants) > 1 or (claimants and ground.contests(address)):
            holder, disputes = judge(claimants, address, ground)
            if len(claimants) > 1 or holder is None:
                self._judged[address] = holder
        if not disputes and not self._disputes:
            return False
        before = self._disputes.pop(address, [])
        found = [dispute for dispute in disputes if not dispute.ordinary]
        if found:
            self._disputes[address] = found
        return found != before

    def _granted(self, pod: PodObject) -> Pod | None:
        """Give a pod that claims addresses with those that it has: all of which nothing was judged."""
        return grant(pod, (lambda address: self._judged.get(address, pod)) if self._judged else lambda _: pod)

    def _edited(self, node: str, edits: dict[str, Pod | None]) -> tuple[Pod, ...]:
        """Give a node's pods, by namespace and name, with some of them replaced or, where None, gone."""
        pods = list(self.pods.on(node))
        for name, pod in edits.items():
            index = bisect_left(pods, name.partition("/"), key=_order)
            there = index < len(pods) and pods[index].name == name
            pods[index : index + there] = [] if pod is None else [pod]
        return tuple(pods)


def _distinct(addresses: tuple[Address, ...]) -> Iterable[Address]:
    return addresses if len(addresses) == 1 else set(addresses)


def _order(pod: Pod) -> tuple[str, str, str]:
    return pod.name.partition("/")

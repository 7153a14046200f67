# SPDX-License-Identifier: Apache-2.0
"""Which node has the managed pod of an address. Pure.

What runs here is known better than what others say: neither this node's addresses nor its pods' can be a pod's
elsewhere. Of other nodes' pods the first by the node's name has an address; which is the right one is settled before,
by whoever makes the view, this only sees to it that a plan never says two things of one address. No peer that is dealt
with has a pod's address (:mod:`kmesh_bpf.core.claims`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.view import Address, Node, Pod, Pods

Moves = dict[Address, tuple[str | None, str | None]]
"""The node that had an address, and the one that has it now; None: no managed pod."""


class Owners:
    """The nodes of managed pods by address, remembered from view to view. ``numbers``: of addresses, by node."""

    def __init__(self) -> None:
        self.numbers: Counter[str] = Counter()
        self._pods = Pods()
        self._here = ""
        self._own: frozenset[Address] = frozenset()
        self._claims: dict[Address, str] = {}
        """A node that claims an address: the only one, or else the first of several."""
        self._rivals: dict[Address, set[str]] = {}
        """The nodes that claim an address, where they are several."""

    def update(self, here: Node, pods: Pods) -> Moves:
        """Take in what a view says; give the addresses that may have moved."""
        own = frozenset(here.addresses)
        if pods is self._pods and (self._here, self._own) == (here.name, own):
            return {}
        claims = {name: (_addresses(was), _addresses(is_)) for name, was, is_ in pods.changes(self._pods)}
        concerned = {address for was, now in claims.values() for address in was ^ now}
        if (self._here, self._own) != (here.name, own):
            concerned.update(self._claims)  # who has what may change with who we are
        had = {address: self.owner(address) for address in concerned}
        self._here, self._own, self._pods = here.name, own, pods
        for name, (was, is_) in claims.items():
            for address in was - is_:
                self._drop(address, name)
            for address in is_ - was:
                self._claim(address, name)
        moves = {address: (owner, self.owner(address)) for address, owner in had.items()}
        for owners in moves.values():
            for owner, more in zip(owners, (-1, 1), strict=True):
                if owner is not None:
                    self.numbers[owner] += more
        for owner in {owner for owners in moves.values() for owner in owners if owner is not None}:
            if not self.numbers[owner]:
                del self.numbers[owner]  # nobody without any stays
        return moves

    def all(self) -> dict[Address, str]:
        """Give the node of each address that one has."""
        return {address: owner for address in self._claims if (owner := self.owner(address)) is not None}

    def remote(self) -> int:
        """Give how many addresses other nodes have."""
        return sum(self.numbers.values()) - self.numbers[self._here]

    def elsewhere(self) -> tuple[Address, ...]:
        """Give the addresses that other nodes have."""
        return tuple(address for address, owner in self.all().items() if owner != self._here)

    def owner(self, address: Address) -> str | None:
        """Give the node that has the managed pod of an address, None: there is none."""
        if address in self._own:
            return None
        rivals = self._rivals.get(address)
        if rivals is None:
            return self._claims.get(address)
        return self._here if self._here in rivals else min(rivals)

    def pod(self, address: Address) -> Pod | None:
        """Give the managed pod that claims an address; of several, the last that would get it."""
        rivals = self._rivals.get(address)
        name = self._claims.get(address) if rivals is None else max(rivals - {self._here})
        return next((pod for pod in reversed(self._pods.on(name)) if address in pod.addresses), None) if name else None

    def on(self, name: str) -> tuple[Address, ...]:
        """Give the addresses that a node's managed pods have."""
        found = (address for pod in self._pods.on(name) for address in pod.addresses)
        return tuple(dict.fromkeys(address for address in found if self.owner(address) == name))

    def problems(self) -> Iterator[Problem]:
        """Name each pod that misses an address."""
        claimed = [address for address in self._own if address in self._claims]
        for address in sorted((*claimed, *self._rivals), key=lambda one: (one.version, one)):
            owner = self.owner(address)
            whose = "this node's own" if owner is None else f"a managed pod's on {owner}"
            for name in sorted(self._rivals.get(address, {self._claims.get(address, "")}) - {owner}):
                for pod in self._pods.on(name):
                    if address in pod.addresses:
                        sentence = f"pod {pod.name} on {name}: {address} is {whose}; delete the pod or mend its node"
                        yield Problem(ProblemKind.CONFLICT, sentence)

    def _claim(self, address: Address, name: str) -> None:
        first = self._claims.setdefault(address, name)
        if first != name:
            self._rivals.setdefault(address, {first}).add(name)

    def _drop(self, address: Address, name: str) -> None:
        rivals = self._rivals.get(address)
        if rivals is None:
            self._claims.pop(address, None)
            return
        rivals.discard(name)
        self._claims[address] = min(rivals)
        if len(rivals) == 1:
            del self._rivals[address]


def _addresses(pods: tuple[Pod, ...]) -> set[Address]:
    return {address for pod in pods for address in pod.addresses}

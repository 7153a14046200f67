# SPDX-License-Identifier: Apache-2.0
"""Which node id a peer gets: the lowest that nobody has, found without going through all that somebody has. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush

from kmesh_bpf.core import marks
from kmesh_bpf.core.mirror import Mirror


class NodeIds:
    """The node ids of a mask, and which of them are free.

    An id is free if no entry of the peer map has it, and no inbound SA: one that lives in an SA of a former incarnation
    must not be given again at once, for that would mix two keys.
    """

    def __init__(self, mask: int) -> None:
        """``mask``: the node mark mask."""
        self.room = marks.capacity(mask)
        self._mask = mask
        self._entries: Counter[int] = Counter()
        self._marks: set[int] = set()
        self._of_sas: Counter[int] = Counter()
        self._below: list[int] = []
        """A heap of ids below ``_next``: all of those that are free, and maybe others."""
        self._next = 1

    def update(self, mirror: Mirror, node_ids: Iterable[int], node_marks: Iterable[int]) -> None:
        """Take in what the kernel holds; what is given may have come or gone there since this was last done."""
        self._entries = mirror.node_ids
        gone = set(node_ids)
        for mark in node_marks:
            number = marks.node_id(mark, self._mask)
            there = mark in mirror.node_marks
            if there and mark not in self._marks:
                self._marks.add(mark)
                self._of_sas[number] += 1
            elif not there and mark in self._marks:
                self._marks.discard(mark)
                self._of_sas[number] -= 1
                gone.add(number)
        for number in gone:
            if 0 < number < self._next and not self.is_taken(number):
                heappush(self._below, number)

    def is_taken(self, number: int) -> bool:
        """Tell whether an id is not free."""
        return number in self._entries or self._of_sas.get(number, 0) > 0

    def free(self, number: int) -> list[int]:
        """Give so many free ids, the lowest ones, in order; fewer where the mask has no room. They stay free."""
        found: list[int] = []
        while self._below and len(found) < number:
            one = heappop(self._below)
            if not self.is_taken(one) and one not in found[-1:]:
                found.append(one)
        while len(found) < number and self._next <= self.room:
            if not self.is_taken(self._next):
                found.append(self._next)
            self._next += 1
        for one in found:
            heappush(self._below, one)
        return found

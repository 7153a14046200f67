# SPDX-License-Identifier: Apache-2.0
"""A map that one state shares with the next, but for what has changed. Pure.

A change copies the bucket that it concerns, some dozens of entries, so holding a former state costs next to nothing,
and what two states differ in is found by comparing which buckets are the very same. Whoever missed a hundred states is
told the difference to the last one as well: there is no list of changes that could be incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

FULL, SPARSE = 64, 16
"""Entries a bucket has at most, on an average, and after there have been made more buckets."""

EMPTY: Sequence[dict[str, Any]] = ({},)


class SharedMap(Generic[T]):
    """Values (never None) by a name, immutable."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, buckets: Sequence[dict[str, T]] = EMPTY, size: int = 0) -> None:
        """``buckets``: as many as a power of two, each with the names whose hash says so."""
        self._buckets, self._size = buckets, size

    def get(self, name: str) -> T | None:
        """Give the value of a name, if it has one."""
        return self._buckets[hash(name) & (len(self._buckets) - 1)].get(name)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def items(self) -> Iterator[tuple[str, T]]:
        """Give all names and values, in no order."""
        for bucket in self._buckets:
            yield from bucket.items()

    def __len__(self) -> int:
        return self._size

    def changed(self, edits: Mapping[str, T | None]) -> SharedMap[T]:
        """Give this map with the values of some names replaced, or, where None, gone; if none is another, this map."""
        buckets, size, copied = list(self._buckets), self._size, set()
        for name, value in edits.items():
            index = hash(name) & (len(buckets) - 1)
            before = buckets[index].get(name)
            if before is value:
                continue
            if index not in copied:
                copied.add(index)
                buckets[index] = dict(buckets[index])
            if value is None:
                del buckets[index][name]
            else:
                buckets[index][name] = value
            size += (value is not None) - (before is not None)
        if not copied:
            return self
        return SharedMap(buckets if size <= FULL * len(buckets) else _spread(buckets, size), size)

    def changes(self, before: SharedMap[T]) -> Iterator[tuple[str, T | None, T | None]]:
        """Give the names whose value is another object than before, what it was, and what it is."""
        if self is before:
            return
        pairs: Iterable[tuple[dict[str, T], dict[str, T]]] = zip(before._buckets, self._buckets, strict=False)
        if len(self._buckets) != len(before._buckets):
            pairs = [(dict(before.items()), dict(self.items()))]
        for old, new in pairs:
            if old is new:
                continue
            for name, value in new.items():
                if (was := old.get(name)) is not value:
                    yield name, was, value
            yield from ((name, was, None) for name, was in old.items() if name not in new)


def _spread(buckets: Iterable[dict[str, T]], size: int) -> Sequence[dict[str, T]]:
    """Give the entries in so many buckets that they are sparse."""
    count = 1 << (size // SPARSE).bit_length()
    made: list[dict[str, T]] = [{} for _ in range(count)]
    for bucket in buckets:
        for name, value in bucket.items():
            made[hash(name) & (count - 1)][name] = value
    return made

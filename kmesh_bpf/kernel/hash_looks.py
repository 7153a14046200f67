# SPDX-License-Identifier: Apache-2.0
"""Looks whether anybody but us has written into the hashes that hold mappings of a KernelState, and which entries.

Reading a hash of 100,000 entries takes milliseconds: a thread of its own does it, so that no event waits for that. What
we write meanwhile makes it void.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from kmesh_bpf.core import entries
from kmesh_bpf.core.entries import HASHES
from kmesh_bpf.core.mirror import MANY, SHARE, Keys
from kmesh_bpf.core.state import KernelState
from kmesh_bpf.kernel.pinned_map import PinnedMap
from kmesh_bpf.kernel.tally import GROUPS, Sums, groups_of, new_groups

TRIES = 3
"""How often sums are read aside, where we write all the time; then they are read at once."""
AT_ONCE = 4096
"""Keys that are sorted into groups in a step: a millisecond."""

T = TypeVar("T")
Added = Mapping[str, Sums | None]
"""The sums of each hash, None: this kernel does not give them."""


class HashLooks:
    """Over the hashes of some maps, by name."""

    def __init__(self, hashes: Mapping[str, PinnedMap]) -> None:
        self._groups = new_groups()
        self._hashes = {name: (one.keep_tally(self._groups), one) for name, one in hashes.items()}
        self._aside = ThreadPoolExecutor(1, "look")

    def close(self) -> None:
        """End the thread, and close what adds up."""
        self._aside.shutdown()
        programs = [one.adder.program for _, one in self._hashes.values() if one.adder is not None]
        for fd in (self._groups, *programs):
            if fd is not None:
                os.close(fd)

    def covers(self, mapping: str) -> bool:
        """Tell whether a look finds whatever others do to a mapping, a key of HASHES."""
        return all(self._hashes[name][0].is_known for name in HASHES[mapping])

    def look(self, known: KernelState) -> Iterator[Keys | None]:
        """Look, in steps of a millisecond; each gives what is to be asked for, None: there is nothing to do as yet.

        What others have written is among the keys told, each once, or its mapping is as a whole. ``known``: what was
        last read or written.

        Raises:
            KernelError: it could not be found out.

        """
        added = yield from self._all_sums()
        for mapping, names in HASHES.items():
            for name in names:
                sums = added[name]
                if sums is not None:
                    yield from self._look_at(mapping, name, sums, getattr(known, mapping))

    def _look_at(self, mapping: str, name: str, sums: Sums, known: Mapping[Any, Any]) -> Iterator[Keys | None]:
        tally, one = self._hashes[name]
        if not tally.is_known:
            yield Keys(whole=frozenset({mapping}))
            return
        groups = tally.differing(sums)
        if not groups:
            return
        keys = yield from self._keys_in(one, groups, list(known))
        tally.asked_for(groups)
        yield Keys(whole=frozenset({mapping})) if keys is None else Keys.named(mapping, keys)

    def _keys_in(
        self, one: PinnedMap, groups: frozenset[int], known: list[Any]
    ) -> Generator[Keys | None, None, dict[Any, None] | None]:
        """Give the keys of some groups, those that are there and those that should be; None: that are too many."""
        name, size = one.path.name, one.info.key_size
        key_of, packed_of = entries.key_of(name), entries.packed_of(name)
        room = max(MANY, len(known) // SHARE)
        if one.adder is None or len(groups) > GROUPS // SHARE:
            return None
        reading = self._aside.submit(one.adder.keys_in, groups, room)
        found: dict[Any, None] = {}
        for start in range(0, len(known), AT_ONCE):
            some = [(key, packed) for key in known[start : start + AT_ONCE] if (packed := packed_of(key)) is not None]
            numbers = groups_of(b"".join(packed for _, packed in some), size)
            found.update((key, None) for (key, _), group in zip(some, numbers, strict=True) if group in groups)
            yield Keys()
        there = yield from _done(reading)
        if there is None:
            return None
        found.update((key_of(there[at : at + size]), None) for at in range(0, len(there), size))
        return found

    def _all_sums(self) -> Generator[Keys | None, None, Added]:
        """Give the sums of all hashes, of a time in which we have not written."""
        for _ in range(TRIES):
            writes = self._writes()
            added = yield from _done(self._aside.submit(self._add_up))
            if self._writes() == writes:
                return added
        return self._add_up()

    def _writes(self) -> int:
        return sum(tally.writes for tally, _ in self._hashes.values())

    def _add_up(self) -> Added:
        return {name: tally.sums() for name, (tally, _) in self._hashes.items()}


def _done(job: Future[T]) -> Generator[Keys | None, None, T]:
    while not job.done():
        yield None
    return job.result()

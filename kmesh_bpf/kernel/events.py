# SPDX-License-Identifier: Apache-2.0
"""The ring that the programs tell of packets in, and who is told: a build's own two maps, pinned beside it."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_NB
from pathlib import Path

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi
from kmesh_bpf.core.watched import EVENT_BYTES, Event, decode
from kmesh_bpf.errors import ConflictError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.pin_root import locked
from kmesh_bpf.kernel.programs import RING, SAMPLING, find_build

ROOM = 1024
"""Records taken out of the ring at a time."""
ASKED_SECONDS = 10.0
"""So long after somebody has looked last, nobody is told any more."""
FIRST = bytes(4)
"""The key of an array's only entry."""


class EventRing:
    """What the programs of one build tell, since it was asked for. :func:`watching` makes one."""

    def __init__(self, sampling: int, ring: int, one_of: int, folder: Path) -> None:
        self._sampling, self._one_of, self._folder = sampling, one_of, folder
        page, info = mmap.PAGESIZE, bpf.map_info(ring, folder / RING)
        self._page, self._size = page, info.max_entries
        # Its layout: Documentation/bpf/ringbuf.rst. Only the consumer's page may be written.
        self._consumer = mmap.mmap(ring, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(ring, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._records = ffi.new(f"char[{ROOM * EVENT_BYTES}]")

    def take(self) -> Iterator[Event]:
        """Give what was told since the last time, and ask to be told for ASKED_SECONDS more.

        Raises:
            KernelError: the maps are gone.

        """
        self._write(self._one_of, self.lost())
        for records in self._taken():
            for start in range(0, len(records), EVENT_BYTES):
                yield decode(records[start : start + EVENT_BYTES])

    def lost(self) -> int:
        """Give how many events found no room since this began."""
        found = ffi.new("struct kmesh_sampling *")
        bpf.check(bpf.map_lookup(self._sampling, FIRST, found), "read", self._folder / SAMPLING)
        return int(found.lost)

    def begin(self) -> None:
        """Begin with nothing: what is in the ring was told to somebody else, and so was what got lost."""
        self._write(one_of=0, lost=0)
        for _ in self._taken():
            pass

    def stop(self) -> None:
        """Have nobody told any more."""
        self._write(one_of=0, lost=self.lost())

    def _write(self, one_of: int, lost: int) -> None:
        until = time.monotonic_ns() + int(ASKED_SECONDS * 1e9)
        value = contract.packed("kmesh_monitor", "value", {"until": until, "one_of": one_of, "lost": lost})
        bpf.check(bpf.map_update(self._sampling, FIRST, ffi.from_buffer(value)), "write", self._folder / SAMPLING)

    def _taken(self) -> Iterator[bytes]:
        consumer, producer = ffi.from_buffer(memoryview(self._consumer)), ffi.from_buffer(memoryview(self._producer))
        while found := bpf.ring_take(consumer, producer, self._page, self._size, self._records, EVENT_BYTES, ROOM):
            yield bytes(ffi.buffer(self._records, found * EVENT_BYTES))


@contextmanager
def watching(pin_root: Path, one_of: int = 1) -> Iterator[EventRing]:
    """Be told of one packet of ``one_of``, for the length of a block.

    Raises:
        UnsupportedError: no build of this version is pinned there.
        ConflictError: somebody else is told already.
        KernelError: the maps cannot be used.

    """
    folder = find_build(pin_root)
    if folder is None:
        raise UnsupportedError(
            f"a build of the programs below {pin_root}", "is a daemon of this version running, with this pin root?"
        )
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder, LOCK_NB))
        except BlockingIOError as error:
            raise ConflictError("watch", str(folder), errno.EBUSY, "somebody else does: stop that one first") from error
        sampling, ring = bpf.open_pinned(folder / SAMPLING), bpf.open_pinned(folder / RING)
        held.callback(os.close, sampling)
        held.callback(os.close, ring)
        found = EventRing(sampling, ring, one_of, folder)
        found.begin()
        held.callback(found.stop)
        yield found

# SPDX-License-Identifier: Apache-2.0
"""One pinned map as keys and values of bytes and C structs; what they mean is kmesh_bpf.kernel.maps' business."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from kmesh_bpf._abi import ffi
from kmesh_bpf.errors import KernelError, MapFullError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.tally import Tally

BATCH_ENTRIES = 65536
LOOK_ENTRIES, AUDIT_ENTRIES = 4096, 512
"""Entries in a step where events wait meanwhile, added up by C and decoded by Python: a millisecond or two."""
FOLLOWED = 1000
"""Up to so many entries written in one go are followed by the tally: that takes two more look-ups for each."""
FEW = 12
"""Up to so many are followed one by one, so that a reading under way need not begin anew."""
LOOK_TRIES = 3
NO_ROOM = (errno.E2BIG, errno.ENOSPC)
"""What a hash and a trie say when they are full."""
NO_BATCH = (errno.EINVAL, bpf.ENOTSUPP)
"""What kernels before 5.6, and maps of a type without them, say to batch operations."""


class PinnedMap:
    """A map; the types of key and value are those of the members of the contract's struct of the same name.

    ``fd`` is the owner's to close. Keys and values are written as they lie there.

    Raises:
        KernelError: it cannot be opened.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        members = dict(ffi.typeof(f"struct {path.name}").fields)
        self._key, self._value = members["key"].type, members["value"].type
        self.fd = bpf.open_pinned(path)
        self.info = bpf.map_info(self.fd, path)
        self._tally = Tally()

    def differences(self, wanted_type: int, value_size: int | None = None) -> Iterator[str]:
        """Tell in what the map is not as the contract has it; ``value_size`` where a former version had another."""
        for field, found, wanted in (
            ("type", self.info.type, wanted_type),
            ("bytes of key", self.info.key_size, ffi.sizeof(self._key)),
            ("bytes of value", self.info.value_size, value_size or ffi.sizeof(self._value)),
        ):
            if found != wanted:
                yield f"{self.path.name}: {field} {found}, not {wanted}"

    def set(self, key: bytes, value: bytes) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        with self._followed(key):
            answer = bpf.map_update(self.fd, ffi.from_buffer(key), ffi.from_buffer(value))
        self._check_room(answer, "write")

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries.

        Raises:
            MapFullError: there is no room.

        """
        if len(entries) > FOLLOWED:
            self._tally.wrote_many()
        left = iter(entries.items())
        while chunk := list(islice(left, BATCH_ENTRIES)):
            keys = b"".join(key for key, _ in chunk)
            values = b"".join(value for _, value in chunk)
            with self._followed(keys):
                answer = bpf.map_update_batch(self.fd, ffi.from_buffer(keys), ffi.from_buffer(values), len(chunk))
            if -answer in NO_BATCH:
                for key, value in chunk:
                    self.set(key, value)
            else:
                self._check_room(answer, "write")

    def delete(self, key: bytes) -> None:
        """Remove an entry, if there."""
        with self._followed(key):
            answer = bpf.map_delete(self.fd, ffi.from_buffer(key))
        if answer != -errno.ENOENT:
            bpf.check(answer, "delete from", self.path)

    def get(self, key: bytes) -> Any:
        """Give a pointer to a copy of a value; what a shorter one of a former version lacks is 0."""
        value = ffi.new(ffi.getctype(self._value, "*"))
        bpf.check(bpf.map_lookup(self.fd, ffi.from_buffer(key), value), "read", self.path)
        return value

    def find(self, key: bytes) -> Any:
        """Give a pointer to a copy of a value, as :meth:`get` does; None: there is no such entry."""
        try:
            return self.get(key)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def get_per_cpu(self, key: bytes, cpus: int) -> tuple[int, ...]:
        """Give the value of each CPU, of a per-CPU map of 64-bit numbers."""
        values = ffi.new("__u64[]", cpus)
        bpf.check(bpf.map_lookup(self.fd, ffi.from_buffer(key), values), "read", self.path)
        return tuple(values)

    def each_key(self) -> Iterator[bytes]:
        """Give all keys one by one: the way of tries, whose batch operations came late (6.0)."""
        key, following = ffi.NULL, ffi.new(ffi.getctype(self._key, "*"))
        while (answer := bpf.map_next_key(self.fd, key, following)) == 0:
            yield bytes(ffi.buffer(following))
            key = following
        if answer != -errno.ENOENT:
            bpf.check(answer, "dump", self.path)

    def entries(self) -> Iterator[tuple[bytes, Any]]:
        """Give (key, value) of all entries of a hash; a value is good until the next step: :meth:`pieces`."""
        for piece in self.pieces(BATCH_ENTRIES):
            yield from piece

    def pieces(self, room: int = AUDIT_ENTRIES) -> Iterator[list[tuple[bytes, Any]]]:
        """Give (key, value) of all entries of a hash, so many a step; values are good until the next step.

        What is read to the end is what :meth:`look` goes by from then on.

        Raises:
            KernelError: the dump broke off; what came is not the whole.

        """
        reading, size = self._tally.begin(), self.info.key_size
        try:
            for keys, values, count in self._batches(room):
                if keys is None:
                    yield self._one_by_one()
                    self._tally.wrote_many()
                    return
                reading.take(self._sum_of(keys, values, count))
                raw = bytes(ffi.buffer(keys, count * size))
                yield [(raw[index * size : index * size + size], values[index]) for index in range(count)]
            self._tally.learn(reading)
        finally:
            self._tally.give_up(reading)

    def look(self) -> Iterator[bool]:
        """Read a hash in steps of a millisecond or two; tell at the last one whether anybody else has written.

        That is all but surely so where entries come to another sum than when they were read last. Where it is not
        known, for we have written so much or this kernel gives entries one by one only, it is told that somebody may.

        Raises:
            KernelError: the dump broke off.

        """
        for _ in range(LOOK_TRIES):
            reading = self._tally.begin()
            try:
                for keys, values, count in self._batches(LOOK_ENTRIES):
                    if keys is None:
                        yield False  # there are audits
                        return
                    reading.take(self._sum_of(keys, values, count))
                    yield False
                if reading.tells:
                    break
            finally:
                self._tally.give_up(reading)
        yield not self._tally.agrees(reading)

    def _one_by_one(self) -> list[tuple[bytes, Any]]:
        found = ((key, self.find(key)) for key in list(self.each_key()))
        return [(key, value) for key, value in found if value is not None]

    @contextmanager
    def _followed(self, keys: bytes) -> Iterator[None]:
        """Have the tally follow what is done to entries meanwhile; ``keys`` stand end to end."""
        count = len(keys) // self.info.key_size
        if not self._tally.is_kept or count > FOLLOWED:
            yield
            return
        before = self._sums(keys, count)
        try:
            yield
        finally:
            added = [new - old for new, old in zip(self._sums(keys, count), before, strict=True)]
            if len(added) == count:
                for one in added:
                    self._tally.wrote(one)
            else:
                self._tally.wrote_together(sum(added))

    def _sums(self, keys: bytes, count: int) -> list[int]:
        """Give what the entries under some keys add up to: a number for each where they are few, else one for all."""
        size, value_size = self.info.key_size, self.info.value_size
        step = size if count <= FEW else len(keys)
        starts = range(0, len(keys), step)
        some = ((ffi.from_buffer(keys[at : at + step]), step // size) for at in starts)
        return [bpf.map_sum(self.fd, held, size, value_size, number, self.path) for held, number in some]

    def _sum_of(self, keys: Any, values: Any, count: int) -> int:
        return bpf.entries_sum(keys, self.info.key_size, values, self.info.value_size, count)

    def _batches(self, room: int) -> Iterator[tuple[Any, Any, int]]:
        """Give arrays of keys and values, and how many they hold; keys None, once: it can be read one by one only.

        The kernel has no batches then, or the values are a former version's: shorter, and end to end in a batch.
        """
        if self.info.value_size != ffi.sizeof(self._value):
            yield None, None, 0
            return
        room, size = min(self.info.max_entries, room), self.info.key_size
        keys = ffi.new(ffi.getctype(self._key, "[]"), room)
        values = ffi.new(ffi.getctype(self._value, "[]"), room)
        place, following, last = ffi.NULL, ffi.new("char[]", max(8, size)), False
        while not last:
            answer, count = bpf.map_lookup_batch(self.fd, place, following, keys, values, room)
            if place == ffi.NULL and -answer in NO_BATCH:
                yield None, None, 0
                return
            last = answer == -errno.ENOENT
            if not last:
                bpf.check(answer, "dump", self.path)
            yield keys, values, count
            place = following

    def _check_room(self, answer: int, operation: str) -> None:
        if -answer in NO_ROOM:
            raise MapFullError(operation, str(self.path), self.path.name, self.info.max_entries)
        if answer < 0:
            raise KernelError(operation, str(self.path), -answer)

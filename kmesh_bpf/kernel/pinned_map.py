# SPDX-License-Identifier: Apache-2.0
"""One pinned map as keys and values of bytes and C structs; what they mean is kmesh_bpf.kernel.maps' business."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from kmesh_bpf._abi import ffi
from kmesh_bpf.errors import KernelError, MapFullError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.tally import Adder, Layout, Tally

BATCH_ENTRIES = 65536
AUDIT_ENTRIES = 512
"""Entries in a step where events wait meanwhile, decoded by Python: a millisecond or two."""
NO_ROOM = (errno.E2BIG, errno.ENOSPC)
"""What a hash and a trie say when they are full."""


class PinnedMap:
    """A map; the types of key and value are those of the members of the contract's struct of the same name.

    ``fd`` is the owner's to close. Keys and values are written as they lie there. ``tally``: what it adds up to, None:
    that is not kept; it goes by ``adder``.

    Raises:
        KernelError: it cannot be opened.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        members = dict(ffi.typeof(f"struct {path.name}").fields)
        self._key, self._value = members["key"].type, members["value"].type
        self.fd = bpf.open_pinned(path)
        self.info = bpf.map_info(self.fd, path)
        self.adder: Adder | None = None
        self.tally: Tally | None = None

    def keep_tally(self, groups_fd: int | None) -> Tally:
        """Keep a tally of this hash from now on; ``groups_fd``: see :class:`kmesh_bpf.kernel.tally.Adder`."""
        layout = Layout(self.fd, self.info.key_size, self.info.value_size, self.path)
        self.adder = Adder(layout, groups_fd)
        self.tally = Tally(layout, self.adder.sums)
        return self.tally

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
        with self._following(key):
            answer = bpf.map_update(self.fd, ffi.from_buffer(key), ffi.from_buffer(value))
        self._check_room(answer, "write")

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries.

        Raises:
            MapFullError: there is no room.

        """
        left = iter(entries.items())
        while chunk := list(islice(left, BATCH_ENTRIES)):
            keys = b"".join(key for key, _ in chunk)
            values = b"".join(value for _, value in chunk)
            with self._following(keys):
                answer = bpf.map_update_batch(self.fd, ffi.from_buffer(keys), ffi.from_buffer(values), len(chunk))
            if -answer in bpf.NO_BATCH:
                for key, value in chunk:
                    self.set(key, value)
            else:
                self._check_room(answer, "write")

    def delete(self, key: bytes) -> None:
        """Remove an entry, if there."""
        with self._following(key):
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

        The tally goes by what is read here: it is learnt before.

        Raises:
            KernelError: the dump broke off; what came is not the whole.

        """
        size = self.info.key_size
        if self.tally is not None:
            self.tally.learn()
        for keys, values, count in self._batches(room):
            if keys is None:
                yield self._one_by_one()
                return
            raw = bytes(ffi.buffer(keys, count * size))
            yield [(raw[index * size : index * size + size], values[index]) for index in range(count)]

    def _one_by_one(self) -> list[tuple[bytes, Any]]:
        found = ((key, self.find(key)) for key in list(self.each_key()))
        return [(key, value) for key, value in found if value is not None]

    def _following(self, keys: bytes) -> AbstractContextManager[None]:
        return self.tally.following(keys) if self.tally is not None else nullcontext()

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
            if place == ffi.NULL and -answer in bpf.NO_BATCH:
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

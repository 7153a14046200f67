# SPDX-License-Identifier: Apache-2.0
"""What the entries of a map add up to, by groups: as last taken in, and kept up to date by what we write ourselves.

Whoever else writes an entry makes its group's sum another one than is expected: the keys of that group are to be asked
for, one in a thousand of all. What the numbers are, and how the kernel adds them up: kmesh_bpf/_map_sums.c.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.kernel import bpf

GROUPS: int = lib.KMESH_GROUPS
Sums = Any
"""An array of ``GROUPS`` numbers of 64 bits."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A hash: its descriptor, the sizes of its keys and values in bytes, and what errors call it."""

    fd: int
    key_size: int
    value_size: int
    target: object


class Adder:
    """Adds up the entries of a map: the kernel does, where it can run a program over a map (5.13) and lets us.

    ``groups_fd``: of a map from :func:`new_groups`, None: there is none. Readings of maps that share one must not
    overlap.
    """

    def __init__(self, layout: Layout, groups_fd: int | None) -> None:
        self._layout, self._groups = layout, -1 if groups_fd is None else groups_fd
        one = layout
        program = -1 if groups_fd is None else lib.kmesh_load_summing(one.fd, one.key_size, one.value_size, groups_fd)
        if program >= 0 and self._add_up(program, ffi.new("uint64_t[]", GROUPS)) < 0:
            os.close(program)
            program = -1
        self.program: int | None = program if program >= 0 else None
        """The descriptor of the program, the owner's to close; None: all entries are copied out instead."""

    def sums(self) -> Sums | None:
        """Give the sums, of one moment as far as this process writes; None: this kernel gives entries one by one only.

        Raises:
            KernelError: they cannot be read.

        """
        found = ffi.new("uint64_t[]", GROUPS)
        answer = self._add_up(-1 if self.program is None else self.program, found)
        if -answer in bpf.NO_BATCH and self.program is None:
            return None
        bpf.check(answer, "add up", self._layout.target)
        return found

    def _add_up(self, program: int, found: Sums) -> int:
        one = self._layout
        return int(lib.kmesh_sums(one.fd, one.key_size, one.value_size, program, self._groups, found))

    def keys_in(self, groups: frozenset[int], room: int) -> bytes | None:
        """Give the keys there are of some groups, end to end; None: they are more than ``room``.

        Raises:
            KernelError: they cannot be read.

        """
        one, wanted = self._layout, bytes(group in groups for group in range(GROUPS))
        keys = ffi.new("unsigned char[]", room * one.key_size)
        answer = lib.kmesh_keys_in(one.fd, one.key_size, one.value_size, wanted, keys, room)
        if answer == -bpf.TOO_MANY:
            return None
        bpf.check(answer, "read", one.target)
        return bytes(ffi.buffer(keys, answer * one.key_size))


def new_groups() -> int | None:
    """Give the descriptor of a map that programs add up into; None: the kernel refuses."""
    answer = lib.kmesh_create_groups()
    return answer if answer >= 0 else None


def groups_of(keys: bytes, key_size: int) -> Any:
    """Give the group of each of some keys, end to end."""
    count = len(keys) // key_size
    found = ffi.new("uint16_t[]", count)
    lib.kmesh_groups_of(ffi.from_buffer(keys), key_size, count, found)
    return found


class Tally:
    """What one map is expected to add up to. ``sums`` as :meth:`Adder.sums` gives them."""

    def __init__(self, layout: Layout, sums: Callable[[], Sums | None]) -> None:
        self._layout, self.sums = layout, sums
        self._expected: Sums | None = None
        self._doubted: frozenset[int] = frozenset()
        self.writes = 0
        """How often we have written: sums that were added up meanwhile say nothing."""

    @property
    def is_known(self) -> bool:
        """Whether there is anything to compare with."""
        return self._expected is not None

    def learn(self) -> None:
        """Take in what the map adds up to now: all of it is read after that, and compared.

        Raises:
            KernelError: it cannot be read.

        """
        self._expected, self._doubted = None, frozenset()
        self._expected = self.sums()

    def differing(self, found: Sums) -> frozenset[int]:
        """Give the groups that others have written in; each until :meth:`asked_for` them."""
        if self._expected is not None and bytes(ffi.buffer(found)) != bytes(ffi.buffer(self._expected)):
            self._doubted |= {group for group in range(GROUPS) if found[group] != self._expected[group]}
            self._expected = found
        return self._doubted

    def asked_for(self, groups: frozenset[int]) -> None:
        """Take in that all keys of some groups were told, to be asked for."""
        self._doubted -= groups

    @contextmanager
    def following(self, keys: bytes) -> Iterator[None]:
        """Take in what we do meanwhile to entries; ``keys``, end to end."""
        self.writes += 1
        self._follow(keys, -1)
        try:
            yield
        finally:
            self._follow(keys, 1)

    def _follow(self, keys: bytes, sign: int) -> None:
        if self._expected is None:
            return
        one, count = self._layout, len(keys) // self._layout.key_size
        held = ffi.from_buffer(keys)
        answer = lib.kmesh_follow(one.fd, held, one.key_size, one.value_size, count, sign, self._expected)
        if answer < 0:
            self._expected = None  # a look learns it anew, and has all of it read

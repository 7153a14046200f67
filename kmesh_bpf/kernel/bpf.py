# SPDX-License-Identifier: Apache-2.0
"""bpf(2) in Python: thin, typed, errors as ours. The C side is kmesh_bpf/_bpf_calls.c."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.errors import KernelError

TCX_INGRESS: int = lib.KMESH_BPF_TCX_INGRESS
TCX_EGRESS: int = lib.KMESH_BPF_TCX_EGRESS
BEFORE: int = lib.KMESH_BPF_F_BEFORE
CHAIN = 64
"""Programs that a chain has room for, BPF_MPROG_MAX of linux/bpf_mprog.h."""
PACKET_ROOM = 1 << 16
ENOTSUPP = 524
"""Of linux/errno.h, which user space is not meant to see, and bpf(2) answers all the same."""


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A TCX link; ``ifindex`` 0: its device is gone."""

    id: int
    program_id: int
    ifindex: int
    attach_type: int


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map's layout: sizes in bytes, ``type`` of enum bpf_map_type."""

    type: int
    key_size: int
    value_size: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program made of a packet (BPF_PROG_TEST_RUN); ``nanoseconds`` is the mean of the repetitions."""

    verdict: int
    mark: int
    packet: bytes
    nanoseconds: int


def check(answer: int, operation: str, target: object) -> int:
    """Give a non-negative answer back.

    Raises:
        KernelError: it was -errno.

    """
    if answer < 0:
        raise KernelError(operation, str(target), -answer)
    return answer


def pin(fd: int, path: Path) -> None:
    """Pin an object into bpffs."""
    check(lib.kmesh_obj_pin(os.fsencode(path), fd), "pin", path)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a pinned object for the length of a block."""
    fd = check(lib.kmesh_obj_get(os.fsencode(path)), "open pinned object", path)
    try:
        yield fd
    finally:
        os.close(fd)


def open_pinned(path: Path) -> int:
    """Open a pinned object; the caller closes the descriptor."""
    return check(lib.kmesh_obj_get(os.fsencode(path)), "open pinned object", path)


def program_id(path: Path) -> int:
    """Give the kernel's number of a pinned program."""
    with opened(path) as fd:
        return program_number(fd, path)


def program_number(fd: int, target: object) -> int:
    """Give the kernel's number of a program."""
    return check(lib.kmesh_prog_id(fd), "ask about program", target)


def is_bpffs(path: Path) -> bool:
    """Tell whether a path lies in a bpffs: nothing can be pinned elsewhere."""
    return bool(check(lib.kmesh_is_bpffs(os.fsencode(path)), "ask about file system of", path))


def map_info(fd: int, path: Path) -> MapInfo:
    """Give the layout of a map."""
    found = ffi.new("struct kmesh_map_info *")
    check(lib.kmesh_map_info(fd, found), "ask about map", path)
    return MapInfo(found.type, found.key_size, found.value_size, found.max_entries)


def map_lookup(fd: int, key: Any, value: Any) -> int:
    """Copy the value of a key; give 0 or -errno, as the other map functions do: which errors are errors varies."""
    return int(lib.kmesh_map_lookup(fd, key, value))


def map_update(fd: int, key: Any, value: Any) -> int:
    """Write an entry; give 0 or -errno."""
    return int(lib.kmesh_map_update(fd, key, value))


def map_update_batch(fd: int, keys: Any, values: Any, count: int) -> int:
    """Write many entries, arrays of keys and of values; give 0 or -errno."""
    return int(lib.kmesh_map_update_batch(fd, keys, values, ffi.new("uint32_t *", count)))


def map_delete(fd: int, key: Any) -> int:
    """Remove an entry; give 0 or -errno."""
    return int(lib.kmesh_map_delete(fd, key))


def map_next_key(fd: int, key: Any, following: Any) -> int:
    """Copy the key behind a key (NULL: the first); give 0, -ENOENT after the last, or -errno."""
    return int(lib.kmesh_map_next_key(fd, key, following))


def map_lookup_batch(fd: int, place: Any, following: Any, keys: Any, values: Any, room: int) -> tuple[int, int]:
    """Copy entries from a place on (NULL: the start) and the place behind them; give the answer and how many.

    The answer is 0, -ENOENT with the last of them, or -errno.
    """
    count = ffi.new("uint32_t *", room)
    answer = lib.kmesh_map_lookup_batch(fd, place, following, keys, values, count)
    return int(answer), int(count[0])


def entries_sum(keys: Any, key_size: int, values: Any, value_size: int, count: int) -> int:
    """Give a number that stands for entries, arrays of keys and of values: the sum, modulo 2^64, of one for each."""
    return int(lib.kmesh_sum(keys, key_size, values, value_size, count))


def map_sum(fd: int, keys: Any, key_size: int, value_size: int, count: int, target: object) -> int:
    """Give the same of the entries that a map has under some keys, an array."""
    found = ffi.new("uint64_t *")
    check(lib.kmesh_map_sum(fd, keys, key_size, value_size, count, found), "read", target)
    return int(found[0])


def ring_take(consumer: Any, producer: Any, page: int, size: int, records: Any, record: int, room: int) -> int:
    """Take up to ``room`` records of ``record`` bytes out of a ring of ``size`` bytes; give how many."""
    return int(lib.kmesh_ring_take(consumer, producer, page, size, records, record, room))


def create_link(program: int, ifindex: int, attach_type: int) -> int:
    """Attach a program by TCX at the head of the device's chain; give the link's descriptor, or -errno."""
    return int(lib.kmesh_link_create(program, ifindex, attach_type, BEFORE))


def first_program(ifindex: int, attach_type: int) -> int:
    """Give the kernel's number of the program at the head of a device's TCX chain; 0: there is none."""
    return check(lib.kmesh_first_program(ifindex, attach_type), "ask about programs of device", ifindex)


def programs_on(ifindex: int, attach_type: int) -> tuple[int, ...]:
    """Give the kernel's numbers of all programs of a device's TCX chain, the first one first."""
    ids = ffi.new("uint32_t[]", CHAIN)
    count = check(lib.kmesh_programs_on(ifindex, attach_type, ids, CHAIN), "ask about programs of device", ifindex)
    return tuple(ids[0:count])


def direction(egress: bool) -> int:
    """Give the attach type of TCX for a direction."""
    return TCX_EGRESS if egress else TCX_INGRESS


def detach_link(link: int, target: object) -> None:
    """Take a link's program off at once: the descriptor stays, and does nothing any more."""
    check(lib.kmesh_link_detach(link), "detach", target)


def update_link(link: int, program: int, target: object) -> None:
    """Put another program into a link, without a gap."""
    check(lib.kmesh_link_update(link, program), "update link", target)


def link_info(fd: int, target: object) -> LinkInfo:
    """Give what a link is."""
    found = ffi.new("struct kmesh_link_info *")
    check(lib.kmesh_link_info(fd, found), "ask about link", target)
    return LinkInfo(found.id, found.prog_id, found.ifindex, found.attach_type)


def test_run(
    program: Path, packet: bytes, mark: int = 0, repeat: int = 1, segment: int = 0, ifindex: int = 0
) -> TestRun:
    """Run a pinned program on a packet with its Ethernet header; newer kernels refuse one whose IP header is cut.

    ``segment``: payload bytes of each segment of a packet that is yet to be cut up (GSO); 0: it is whole. ``ifindex``:
    the device that it came by, of the network namespace that the caller lives in (kernels from 5.9 on); 0: lo.
    """
    run = ffi.new("struct kmesh_test_run *")
    data, room = ffi.from_buffer(packet), ffi.new("char[]", PACKET_ROOM)
    run.packet, run.packet_size = data, len(packet)
    run.packet_out, run.packet_out_size = room, PACKET_ROOM
    run.mark, run.ifindex, run.repeat = mark, ifindex, repeat
    run.gso_size, run.gso_segs = segment, len(packet) // segment if segment else 0
    with opened(program) as fd:
        check(lib.kmesh_prog_test_run(fd, run), "test-run", program)
    return TestRun(run.verdict, run.mark, bytes(ffi.buffer(room, run.packet_out_size)), run.duration_ns)

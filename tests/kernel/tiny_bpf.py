# SPDX-License-Identifier: Apache-2.0
"""What the product has no use for: programs of a few instructions, and asking a device what runs on it.

bpf(2) through libc, layouts of linux/bpf.h: union bpf_attr for BPF_PROG_LOAD, BPF_OBJ_PIN and BPF_PROG_QUERY.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_QUERY, LINK_CREATE = 5, 6, 7, 16, 28
MAP_LOOKUP, PSEUDO_MAP_FD = 1, 1
TCX_INGRESS, TCX_EGRESS = 46, 47
F_BEFORE = 1 << 3
SCHED_CLS, XDP = 3, 6
MARK_OFFSET = 8  # __sk_buff.mark
TC_ACT_UNSPEC, TC_ACT_OK = -1, 0
XDP_PASS = 2
LIBC = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    room = ctypes.create_string_buffer(attr, len(attr))
    answer = LIBC.syscall(SYS_BPF, command, room, len(attr))
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}: {os.strerror(ctypes.get_errno())}")
    return answer, room.raw


def instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, offset, immediate)


def load(digit: int, verdict: int = TC_ACT_UNSPEC, shift: int = 4) -> int:
    """Load a program that appends a hexadecimal digit to the packet's mark; give its descriptor.

    The mark of a packet that passed programs 1, 2, 3 in this order is 0x123. With a shift of 0 it only sets bits.
    """
    code = b"".join(
        [
            instruction(0x61, dst=2, src=1, offset=MARK_OFFSET),  # r2 = skb->mark
            instruction(0x67, dst=2, immediate=shift),  # r2 <<= 4
            instruction(0x47, dst=2, immediate=digit),  # r2 |= digit
            instruction(0x63, dst=1, src=2, offset=MARK_OFFSET),  # skb->mark = r2
            instruction(0xB7, dst=0, immediate=verdict),
            instruction(0x95),
        ]
    )
    return _load(code)


def load_lookups(map_fd: int, keys: Iterable[bytes]) -> int:
    """Load a program that looks keys up in a map, and nothing else; give its descriptor. Keys are of whole words."""
    code = b""
    for key in keys:
        words = struct.unpack(f"<{len(key) // 4}i", key)
        code += b"".join(
            instruction(0x62, dst=10, offset=4 * index - len(key), immediate=word) for index, word in enumerate(words)
        )
        code += instruction(0x18, dst=1, src=PSEUDO_MAP_FD, immediate=map_fd) + instruction(0)  # r1 = the map
        code += instruction(0xBF, dst=2, src=10) + instruction(0x07, dst=2, immediate=-len(key))  # r2 = the key
        code += instruction(0x85, immediate=MAP_LOOKUP)
    return _load(code + instruction(0xB7, dst=0, immediate=TC_ACT_UNSPEC) + instruction(0x95))


def load_passing_xdp() -> int:
    """Load an XDP program that lets everything pass; give its descriptor."""
    return _load(instruction(0xB7, dst=0, immediate=XDP_PASS) + instruction(0x95), XDP)


def _load(code: bytes, kind: int = SCHED_CLS) -> int:
    text, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("<IIQQ", kind, len(code) // 8, ctypes.addressof(text), ctypes.addressof(license_))
    fd, _ = bpf(PROG_LOAD, attr.ljust(120, b"\0"))
    return fd


def get(path: Path) -> int:
    """Give a descriptor of what is pinned."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    fd, _ = bpf(OBJ_GET, struct.pack("<QII", ctypes.addressof(name), 0, 0))
    return fd


def pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(OBJ_PIN, struct.pack("<QII", ctypes.addressof(name), fd, 0))


def attach(fd: int, ifindex: int, attach_type: int, first: bool) -> int:
    """Attach by a TCX link, at the head or the end of the chain; give the link's descriptor."""
    link, _ = bpf(
        LINK_CREATE, struct.pack("<IIII", fd, ifindex, attach_type, F_BEFORE if first else 0).ljust(64, b"\0")
    )
    return link


def running(ifindex: int, attach_type: int) -> list[int]:
    """Give the numbers of the programs on a device's TCX chain, in their order."""
    room = (ctypes.c_uint32 * 16)()
    attr = struct.pack("<IIIIQII", ifindex, attach_type, 0, 0, ctypes.addressof(room), 16, 0)
    _, answer = bpf(PROG_QUERY, attr.ljust(64, b"\0"))
    return list(room)[: struct.unpack_from("<I", answer, 24)[0]]

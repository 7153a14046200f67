# SPDX-License-Identifier: Apache-2.0
"""All rules of our marks: those of a setting, those that SAs and policies carry, node ids and how they lie in the mark.

What is *ours* among SAs and policies goes by the form of their marks and not by the setting at hand: what another
setting has made must be found to be removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from kmesh_bpf import contract
from kmesh_bpf.core.state import Direction, Mark
from kmesh_bpf.core.view import Node
from kmesh_bpf.errors import ConfigError

MARK_BITS = 32
MIN_NODE_BITS = 8
TELLING_BITS = contract.MARK_ENCRYPT ^ contract.MARK_DECRYPTED
"""The two bits that tell the marks apart: one asks for encryption, one tells of decryption."""
ASKS_ENCRYPTION = contract.MARK_AGAIN & ~contract.MARK_DECRYPTED
TELLS_DECRYPTION = contract.MARK_AGAIN & ~contract.MARK_ENCRYPT
ALL_BITS = (1 << MARK_BITS) - 1
UPPER_BITS = ALL_BITS & ~contract.MARK_MASK
UNMARKED = Mark(0, 0)
"""Matches every packet."""
UNKNOWN_PAIR = 0
"""In the place of :func:`keys.pair`, where contract version 1 has left an entry of the peer map, which had none."""


def check_mark_mask(mask: int) -> int:
    """Give the mask back if our marks can be told apart by the bits it leaves them.

    Raises:
        ConfigError: it has bits outside of the low byte, or lacks one of 0x30.

    """
    if mask & ~contract.MARK_MASK or mask & TELLING_BITS != TELLING_BITS:
        raise ConfigError(
            f"mark mask {mask:#x} cannot be used: it holds bits of the low byte, and 0x20 and 0x10 among them, "
            "which tell the marks 0xe0 and 0xd0 apart"
        )
    return mask


def encrypt_mark(mask: int) -> int:
    """Give the mark of what is to be encrypted."""
    return contract.MARK_ENCRYPT & mask


def decrypted_mark(mask: int) -> int:
    """Give the mark of what was decrypted."""
    return contract.MARK_DECRYPTED & mask


def again_mark(mask: int) -> int:
    """Give the mark of both: decrypted, and to be encrypted again if a policy selects it."""
    return contract.MARK_AGAIN & mask


def to_encrypt(mask: int) -> Mark:
    """Give the mark that selects what is to be encrypted, decrypted before or not. ``mask``: bits that are ours."""
    return Mark(encrypt_mark(mask), mask & ~TELLS_DECRYPTION)


def was_decrypted(mask: int) -> Mark:
    """Give the mark that selects what was decrypted, to be encrypted again or not."""
    return Mark(decrypted_mark(mask), mask & ~ASKS_ENCRYPTION)


def inbound_mark(node_mark: int, node_mark_mask: int, mask: int) -> Mark:
    """Give the mark that an inbound SA is found by: the sender's node id, and that it is ESP of ours."""
    return Mark(node_mark | decrypted_mark(mask), node_mark_mask | mask)


def output_mark(mask: int) -> Mark:
    """Give the mark laid on what was decrypted: node id off, bits of the low byte that are not ours left alone."""
    return Mark(decrypted_mark(mask), UPPER_BITS | mask)


def may_be_of_sa(mark: Mark | None) -> bool:
    """Tell whether an SA of ours may have this mark: none at all (outbound), or a node mark and the decrypted mark."""
    if mark is None:
        return True
    low = mark.mask & contract.MARK_MASK
    return _says(mark.value & contract.MARK_MASK, low, contract.MARK_DECRYPTED, TELLS_DECRYPTION)


def are_of_sa(mark: Mark | None, output: Mark | None) -> bool:
    """Tell whether an SA's marks are ours: that by which it is found, and that which it lays on what it decrypts."""
    if mark is None or not may_be_of_sa(mark):
        return mark is None and output is None
    return output == output_mark(mark.mask & contract.MARK_MASK)


def is_of_policy(direction: Direction, mark: Mark) -> bool:
    """Tell whether a policy's mark is ours; also with the masks of former versions, which were whole."""
    if mark == UNMARKED:
        return direction is Direction.OUT
    if direction is Direction.OUT:
        return _says(mark.value, mark.mask, contract.MARK_ENCRYPT, ASKS_ENCRYPTION)
    return _says(mark.value, mark.mask, contract.MARK_DECRYPTED, TELLS_DECRYPTION)


def _says(value: int, mask: int, meaning: int, needed: int) -> bool:
    return not mask & ~contract.MARK_MASK and mask & needed == needed and value == meaning & mask


def check_mask(mask: int) -> int:
    """Give the mask back if node ids can live in it.

    Raises:
        ConfigError: it is no 32-bit number, touches the low byte, or has fewer than 8 bits.

    """
    if not 0 < mask < 1 << MARK_BITS:
        raise ConfigError(f"node mark mask {mask:#x} is not a 32-bit number above 0")
    if mask & contract.MARK_MASK:
        raise ConfigError(f"node mark mask {mask:#x} overlaps the low byte, which holds the marks 0xe0 and 0xd0")
    if mask.bit_count() < MIN_NODE_BITS:
        raise ConfigError(
            f"node mark mask {mask:#x} has room for {2 ** mask.bit_count() - 1} nodes only: use more bits"
        )
    return mask


def capacity(mask: int) -> int:
    """Give the highest node id that fits."""
    return min(1 << mask.bit_count(), 1 << contract.NODE_ID_BITS) - 1


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """Give the mask's runs of set bits from the highest down, as (lowest bit, width)."""
    bit = MARK_BITS
    while bit > 0:
        bit -= 1
        if mask >> bit & 1:
            high = bit
            while bit > 0 and mask >> (bit - 1) & 1:
                bit -= 1
            yield bit, high - bit + 1


def node_mark(node_id: int, mask: int) -> int:
    """Lay a node id into the mask: its low bits into the mask's highest run of bits, the next ones into the next run.

    For the default 0xfff01f00: low 12 bits at 20-31, the next 5 at 8-12.

    Raises:
        ConfigError: the id does not fit.

    """
    mark, rest = 0, node_id
    for low, width in _runs(mask):
        mark |= (rest & ((1 << width) - 1)) << low
        rest >>= width
    if rest:
        raise ConfigError(f"node id {node_id} does not fit into node mark mask {mask:#x}")
    return mark


@lru_cache(maxsize=1 << contract.NODE_ID_BITS)
def node_id(mark: int, mask: int) -> int:
    """Read a node id back from a mark: the inverse of :func:`node_mark`.

    Kept, as it is asked of all inbound SAs when a plan begins.
    """
    found, at = 0, 0
    for low, width in _runs(mask):
        found |= (mark >> low & ((1 << width) - 1)) << at
        at += width
    return found


def incarnations(local: Node, peer: Node) -> int:
    """Give a 64-bit fingerprint of a pair of incarnations: a new boot id on either side gives another.

    The same as of contract version 1, so that what it kept is recognised after an upgrade.
    """
    return _fingerprint(local.name, local.boot_id, peer.name, peer.boot_id, *map(str, peer.addresses))


def second_pair(local: Node, peer: Node) -> int:
    """Give what contract version 2 had in the place of :func:`keys.pair`: of the two boot ids alone.

    It is the same for a node that announces another one's boot id, so nothing new is remembered by it.
    """
    return _fingerprint(local.boot_id, peer.boot_id) or 1


def _fingerprint(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big")

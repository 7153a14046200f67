# SPDX-License-Identifier: Apache-2.0
"""Which incarnations of other nodes a node's kernel holds keys for: a digest as small for thousands as for two. Pure.

``ROWS`` rows of ``CELLS`` cells of ``BITS`` bits each, in one number. A node's name chooses one cell of each row, its
name and incarnation what is XORed into these: so a digest is changed peer by peer, and two digests show whose
incarnations differ between them: a node's whose cells do in every row. The fewer differ, the surer is that.
"""

from __future__ import annotations

import hashlib
import math
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable
from functools import lru_cache

from kmesh.text import shown
from kmesh_bpf import ConfigError

ROWS, CELLS, BITS = 4, 32, 16
BYTES = ROWS * CELLS * BITS // 8
MISNAMED, LIKELIEST = 0.1, 0.1
"""How many names may be wrong, on average, and how likely it may be that one is, for names to be given."""


@lru_cache(maxsize=1 << 14)
def _places(name: str) -> tuple[int, ...]:
    """Give the cell of each row that a name chooses, counted through all rows."""
    return tuple(row * CELLS + byte % CELLS for row, byte in enumerate(hashlib.sha256(name.encode()).digest()[:ROWS]))


def item(name: str, incarnation: str) -> int:
    """Give what one node's incarnation adds to a digest (XOR), and takes away from it."""
    values = hashlib.sha256(f"{name}\0{incarnation}".encode()).digest()
    found = 0
    for row, place in enumerate(_places(name)):
        found |= (int.from_bytes(values[2 * row : 2 * row + 2], "big") or 1) << BITS * place
    return found


def digest(incarnations: Iterable[tuple[str, str]]) -> int:
    """Give the digest of nodes and their incarnations."""
    found = 0
    for name, incarnation in incarnations:
        found ^= item(name, incarnation)
    return found


def differing(one: int, other: int, names: Collection[str]) -> frozenset[str] | None:
    """Give the names of those of which two digests hold something else; None: too many differ to say which.

    A node that differs is missed once in 16,000 times.
    """
    difference, mask = one ^ other, (1 << BITS) - 1
    cells = [bool(difference >> BITS * place & mask) for place in range(ROWS * CELLS)]
    by_chance = math.prod(sum(cells[row * CELLS :][:CELLS]) / CELLS for row in range(ROWS))
    if by_chance > LIKELIEST:
        return None
    found = frozenset(name for name in names if all(cells[place] for place in _places(name)))
    misnamed = (len(names) - len(found)) * by_chance / (1 - by_chance)
    return found if misnamed <= MISNAMED else None


def encode(found: int) -> str:
    """Give a digest as text."""
    return b64encode(found.to_bytes(BYTES, "big")).decode()


def decode(text: str) -> int:
    """Read a digest.

    Raises:
        ConfigError: it is none.

    """
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        data = b""
    if len(data) != BYTES:
        raise ConfigError(f"{shown(text)} is no digest of {BYTES} bytes in base64")
    return int.from_bytes(data, "big")

# SPDX-License-Identifier: Apache-2.0
"""What is known of the kernel against the kernel, a piece at a time, while both go on changing. Pure.

A difference that an audit finds is a reason to ask for that object, no more: what was read in pieces is not of one
moment. So nothing has to stand still meanwhile, and nothing wrong can come of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kmesh_bpf.core.mirror import MAPPINGS, Keys, Mirror
from kmesh_bpf.core.state import SaId, SaUsage


@dataclass(frozen=True, slots=True)
class Piece:
    """Some objects of one mapping of a KernelState as the kernel holds them, of SAs with their usage.

    ``begins``: what was read of this mapping before does not count, for it is read from the start. ``ends``: it has
    been read to the end.
    """

    name: str
    found: Mapping[Any, Any] = field(default_factory=lambda: MappingProxyType({}))
    usage: Mapping[SaId, SaUsage] = field(default_factory=lambda: MappingProxyType({}))
    begins: bool = False
    ends: bool = False


class Audit:
    """Takes pieces, and tells which objects are to be asked for."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._left: dict[str, set[Any]] = {}
        """Objects that are known and were in no piece yet, by mapping."""

    def take(self, piece: Piece) -> Keys:
        """Give the objects to be asked for by a piece; take in how its SAs are used.

        They are those that are other than known, and with the last piece of a mapping those that were in none.
        """
        known: Mapping[Any, Any] = getattr(self._mirror.state, piece.name)
        if piece.begins:
            self._left[piece.name] = set(known)
        differing = [key for key, value in piece.found.items() if known.get(key) != value]
        self._left[piece.name].difference_update(piece.found)
        self._mirror.use(piece.usage)
        if piece.ends:
            differing.extend(key for key in self._left.pop(piece.name) if key in known)
        return Keys.named(piece.name, differing)

    def read(self, keys: Keys) -> None:
        """Take in that objects have been asked for meanwhile, and are known as they are."""
        for name, left in self._left.items():
            left.difference_update(getattr(keys, name))
            if name in keys.whole:
                left.clear()


def order(names: frozenset[str] | None = None) -> tuple[str, ...]:
    """Give the mappings in the order that an audit reads them; ``names``: those alone."""
    return tuple(name for name in MAPPINGS if names is None or name in names)

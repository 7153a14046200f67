"""What is known of the kernel against the kernel, a piece at a time, while both go on changing. Pure.

A difference that an audit finds is a reason to ask for that object, no more: what was read in pieces is not of one
moment. So nothing has to stand still meanwhile, and nothing wrong can come of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

from kmesh_bpf.core.mirror import MAPPINGS, Keys, Mirror
from kmesh_bpf.core.state import SaId, SaUsage

LOOKED_UP = 1000
"""How many objects are looked for in one step among those that were read."""


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
        self._seen: dict[str, set[Any]] = {}

    def take(self, piece: Piece) -> Keys:
        """Give the objects of a piece that are other than known, and take in how its SAs are used."""
        if piece.begins:
            self._seen[piece.name] = set()
        known = getattr(self._mirror.state, piece.name)
        differing = [key for key, value in piece.found.items() if known.get(key) != value]
        self._seen.setdefault(piece.name, set()).update(piece.found)
        self._mirror.use(piece.usage)
        return Keys.named(piece.name, differing)

    def read(self, keys: Keys) -> None:
        """Take in that objects have been asked for meanwhile, and are known as they are."""
        for name, seen in self._seen.items():
            seen.update(getattr(self._mirror.state, name) if name in keys.whole else getattr(keys, name))

    def missing(self, name: str) -> Iterator[Keys]:
        """Give the objects that are known and were in no piece of a mapping; many steps, each of few objects."""
        left = iter(list(getattr(self._mirror.state, name)))
        while some := list(islice(left, LOOKED_UP)):
            yield Keys.named(name, (key for key in some if key not in self._seen.get(name, ())))
        self._seen.pop(name, None)


def order(names: frozenset[str] | None = None) -> tuple[str, ...]:
    """Give the mappings in the order that an audit reads them; ``names``: those alone."""
    return tuple(name for name in MAPPINGS if names is None or name in names)

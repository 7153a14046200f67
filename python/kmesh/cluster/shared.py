# SPDX-License-Identifier: Apache-2.0
"""Objects by namespace and name, immutable, in small parts that one state of a cluster shares with the next. Pure.

Those are maps of maps: :class:`kmesh_bpf.SharedMap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import eq, itemgetter
from typing import ClassVar, Protocol, TypeVar, cast, overload

from kmesh_bpf import SharedMap

T = TypeVar("T")
K = TypeVar("K")

Change = tuple[str, str, T | None, T | None]
"""Namespace and name of an object, what it was, what it is; None: it was or is not there."""


class Named(Protocol):
    """What :meth:`Objects.of` can order; what has no ``namespace`` counts as of the one without a name."""

    @property
    def name(self) -> str:
        """Its name, one object's only in its namespace."""


N = TypeVar("N", bound=Named)


class Objects(Sequence[T]):
    """Objects of one kind, as a sequence ordered by namespace and name; equal to any sequence of equal ones."""

    __slots__ = ("_parts",)
    __hash__: ClassVar[None]  # type: ignore[assignment] # they may hold dicts

    def __init__(self) -> None:
        self._parts: SharedMap[SharedMap[T]] = SharedMap()

    @staticmethod
    def of(objects: Sequence[N]) -> Objects[N]:
        """Give objects by namespace and name: what is given, if it is that already."""
        if isinstance(objects, Objects):
            return cast("Objects[N]", objects)
        return Objects[N]().changed((key(one), one) for one in objects)

    def get(self, namespace: str, name: str) -> T | None:
        """Give an object, if there."""
        part = self._parts.get(namespace)
        return part.get(name) if part is not None else None

    def part(self, namespace: str) -> SharedMap[T]:
        """Give the objects of a namespace."""
        return self._parts.get(namespace) or SharedMap()

    def items(self) -> Iterator[tuple[tuple[str, str], T]]:
        """Give all objects with their namespace and name, in no order."""
        for namespace, part in self._parts.items():
            for name, one in part.items():
                yield (namespace, name), one

    def changed(self, edits: Iterable[tuple[tuple[str, str], T | None]]) -> Objects[T]:
        """Give these, with some put in place or, where None, taken out; if none is another, these themselves."""
        by_namespace: dict[str, dict[str, T | None]] = {}
        for (namespace, name), one in edits:
            by_namespace.setdefault(namespace, {})[name] = one
        return self.with_parts({space: self.part(space).changed(names) for space, names in by_namespace.items()})

    def with_parts(self, parts: Mapping[str, SharedMap[T]]) -> Objects[T]:
        """Give these, with all of some namespaces replaced; if none is another, these themselves."""
        new = self._parts.changed({namespace: part if len(part) else None for namespace, part in parts.items()})
        if new is self._parts:
            return self
        made = Objects[T]()
        made._parts = new
        return made

    def changes(self, before: Objects[T]) -> Iterator[Change[T]]:
        """Give what is another object than before."""
        for namespace, old, new in self.changed_parts(before):
            for name, was, one in new.changes(old):
                yield namespace, name, was, one

    def changed_parts(self, before: Objects[T]) -> Iterator[tuple[str, SharedMap[T], SharedMap[T]]]:
        """Give the namespaces in which something is another object than before, all that was there, and is."""
        for namespace, old, new in self._parts.changes(before._parts):
            yield namespace, old or SharedMap(), new or SharedMap()

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts.items())

    def __iter__(self) -> Iterator[T]:
        for _, part in sorted(self._parts.items(), key=itemgetter(0)):
            for _, one in sorted(part.items(), key=itemgetter(0)):
                yield one

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    def __repr__(self) -> str:
        return f"Objects({list(self)})"


def find(objects: Sequence[N], name: str, namespace: str = "") -> N | None:
    """Give the object of a name, if there: at once of :class:`Objects`, of others after having looked at each."""
    if isinstance(objects, Objects):
        return cast("Objects[N]", objects).get(namespace, name)
    return next((one for one in objects if key(one) == (namespace, name)), None)


def key(one: Named) -> tuple[str, str]:
    """Give what an object is found by: its namespace, empty for what has none, and its name."""
    return getattr(one, "namespace", ""), one.name


def stacked(layers: Mapping[K, Objects[T]], former_layers: Mapping[K, Objects[T]], former: Objects[T]) -> Objects[T]:
    """Give the objects of all layers, and where several have one of a name, the last one's.

    ``former``: what this gave for ``former_layers``; two layers that both have must be in the same order in both.
    """
    none: Objects[T] = Objects()
    touched: dict[str, set[str]] = {}
    for one in {**former_layers, **layers}:
        for namespace, old, new in layers.get(one, none).changed_parts(former_layers.get(one, none)):
            touched.setdefault(namespace, set()).update(name for name, _, _ in new.changes(old))
    parts: dict[str, SharedMap[T]] = {}
    for namespace, names in touched.items():
        found = [part for layer in layers.values() if len(part := layer.part(namespace))]
        if len(found) > 1:
            parts[namespace] = former.part(namespace).changed({name: _last(found, name) for name in names})
        else:
            parts[namespace] = found[0] if found else none.part(namespace)  # shared with the layer, not copied
    return former.with_parts(parts)


def _last(parts: Sequence[SharedMap[T]], name: str) -> T | None:
    return next((one for part in reversed(parts) if (one := part.get(name)) is not None), None)

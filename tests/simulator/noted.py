# SPDX-License-Identifier: Apache-2.0
"""Dicts and sets that note when they change: whether anything has is asked thousands of times as often as it does.

A stamp is never given twice, so two that are equal are those of the same content of the same collection.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

_stamps = count(1)


def _noting(name: str, base: Any) -> Callable[..., Any]:
    """Give the method of that name, which notes that there was a change if it may have made one."""
    method = getattr(base, name)

    def changing(self: Any, *arguments: Any, **named: Any) -> Any:
        self.stamp = next(_stamps)
        return method(self, *arguments, **named)

    return changing


class NotedDict(dict[Any, Any]):
    """A dict; ``stamp`` is another one after each change."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stamp = next(_stamps)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove what is there: nothing changes where nothing is."""
        if key in self:
            self.stamp = next(_stamps)
        return super().pop(key, *default)

    def clear(self) -> None:
        """Remove all."""
        if self:
            self.stamp = next(_stamps)
        super().clear()

    __setitem__ = _noting("__setitem__", dict)
    __delitem__ = _noting("__delitem__", dict)
    update = _noting("update", dict)
    setdefault = _noting("setdefault", dict)
    popitem = _noting("popitem", dict)


class NotedSet(set[Any]):
    """A set; ``stamp`` is another one after each change."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stamp = next(_stamps)

    def discard(self, one: Any) -> None:
        """Remove what is there: nothing changes where nothing is."""
        if one in self:
            self.stamp = next(_stamps)
        super().discard(one)

    def clear(self) -> None:
        """Remove all."""
        if self:
            self.stamp = next(_stamps)
        super().clear()

    add = _noting("add", set)
    remove = _noting("remove", set)
    update = _noting("update", set)
    difference_update = _noting("difference_update", set)


def noted(value: object) -> object:
    """Give a dict or set as one that notes its changes."""
    if isinstance(value, NotedDict | NotedSet):
        return value
    return NotedDict(value) if isinstance(value, dict) else NotedSet(value) if isinstance(value, set) else value

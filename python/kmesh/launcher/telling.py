"""How much the log says of what a pass carried out and found wrong. Pure."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from kmesh_bpf import Operation

MOST = 50
"""Operations of one kind in a pass that are told one by one. Pods may come by thousands, with four policies each: to
tell of each would take a good part of the time that it takes to carry them out, and hide everything else."""


def told(applied: Sequence[Operation]) -> Iterator[tuple[int, Operation, int]]:
    """Give (level, operation, how many more it stands for) in their order.

    Of a kind that there are many of, the first stands for all; the others are for who debugs.
    """
    numbers = Counter(map(type, applied))
    begun: set[type[Operation]] = set()
    for operation in applied:
        kind = type(operation)
        if numbers[kind] <= MOST:
            yield logging.INFO, operation, 0
        elif kind not in begun:
            begun.add(kind)
            yield logging.INFO, operation, numbers[kind] - 1
        else:
            yield logging.DEBUG, operation, 0


def news(before: Collection[str], now: Sequence[str]) -> Iterator[str]:
    """Give the problems to tell of: each when it comes, and when it comes back, but not for as long as it lasts."""
    known = frozenset(before)
    fresh = [problem for problem in dict.fromkeys(now) if problem not in known]
    yield from fresh[:MOST]
    if len(fresh) > MOST:
        yield f"and {len(fresh) - MOST} more problems like these"

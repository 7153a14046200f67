# SPDX-License-Identifier: Apache-2.0
"""What the log says of what a pass carried out and found wrong. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from kmesh_bpf import Operation

MOST = 50
"""Problems that come in one pass that are told one by one."""
PUTTING, REMOVING = ("Add", "Replace", "Set", "Install", "Lower", "Attach"), ("Delete", "Remove", "Restore", "Detach")
"""How the names of operations begin."""
NOUNS = {
    "Sa": ("SA", "SAs"),
    "Policy": ("policy", "policies"),
    "Pod": ("pod", "pods"),
    "Peer": ("peer", "peers"),
    "Source": ("source", "sources"),
    "PodDevice": ("pod device", "pod devices"),
    "Former": ("former peer", "former peers"),
    "Service": ("service prefix", "service prefixes"),
    "HashThresholds": ("hash thresholds", "hash thresholds"),
    "NatExemption": ("NAT exemption", "NAT exemptions"),
    "": ("program", "programs"),
}
"""What they are about, by how their names go on, in the order in which it is told: map entries by whose they are."""


def _split(name: str) -> tuple[bool, str]:
    """Give whether an operation of this name puts something in place, and which noun it is about."""
    verb = next(verb for verb in (*PUTTING, *REMOVING) if name.startswith(verb))
    return verb in PUTTING, name.removeprefix(verb)


KINDS = {one: _split(one.__name__) for one in get_args(Operation)}


def counted(applied: Iterable[Operation]) -> str:
    """Give what was carried out in numbers: "3 SAs, 9 policies, 340 pods; removed: 1 SA"."""
    numbers: Counter[tuple[bool, str]] = Counter()
    for kind, number in Counter(map(type, applied)).items():
        numbers[KINDS[kind]] += number
    put, removed = (_listed({noun: numbers[puts, noun] for noun in NOUNS}) for puts in (True, False))
    return "; ".join(part for part in (put, removed and f"removed: {removed}") if part)


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {NOUNS[noun][number != 1]}" for noun, number in numbers.items() if number)


def milliseconds(seconds: float) -> str:
    """Give a duration, short ones with a digit after the point."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def news(before: Collection[str], now: Sequence[str]) -> Iterator[str]:
    """Give the problems to tell of: each when it comes, and when it comes back, but not for as long as it lasts."""
    known = frozenset(before)
    fresh = [problem for problem in dict.fromkeys(now) if problem not in known]
    yield from fresh[:MOST]
    if len(fresh) > MOST:
        yield f"and {len(fresh) - MOST} more problems like these"

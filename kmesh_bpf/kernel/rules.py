# SPDX-License-Identifier: Apache-2.0
"""Reads rules of others that may be in our way, rarely and few: chains of prerouting and of devices.

A proxy's thousands aside.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from kmesh_bpf.core import boot_guard, detours, interference, masquerade
from kmesh_bpf.core.interference import Json
from kmesh_bpf.core.state import Detour, Suspect
from kmesh_bpf.errors import KmeshBpfError
from kmesh_bpf.kernel import nat, nft

RARELY, SOON = 300.0, 10.0
"""Seconds without another reading after one: at most, and at least. The second, too, as long as a rule is in the way,
which somebody may be mending."""
TIMES = 500.0
"""In between, so many times as long as the reading took: a new rule among few is named soon, and where a proxy's are
thousands and change all the time, reading takes no more than 1 of 500 parts of a processor."""
MOST_CHAINS = 64
"""Chains that are read, of all tables together: each takes a process."""
OURS = frozenset({masquerade.TABLE, boot_guard.TABLE})
SHAPELESS = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What a listing in another shape than nft's manual has comes to."""
TABLES = ("raw", "mangle")
LEGACY = {"ip": Path("/proc/net/ip_tables_names"), "ip6": Path("/proc/net/ip6_tables_names")}
"""The tables of iptables' old kernel part; its programs would make those that are missing."""


class Rules:
    """Suspects, read again only when the rule set has changed, and rarely. ``clock``: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = -math.inf
        self._generation: int | None = None
        self._found: tuple[Suspect | Detour, ...] = ()

    def suspects(self) -> tuple[Suspect, ...]:
        """Give the rules that may be in our way; none where they cannot be read: it is only advice."""
        self._read()
        return tuple(one for one in self._found if isinstance(one, Suspect))

    def detours(self) -> tuple[Detour, ...]:
        """Give what rules of devices' own chains do behind our programs; the same otherwise."""
        self._read()
        return tuple(one for one in self._found if isinstance(one, Detour))

    def _read(self) -> None:
        began = self._clock()
        if began < self._due:
            return
        self._due = began + RARELY
        with suppress(KmeshBpfError, OSError, subprocess.TimeoutExpired, *SHAPELESS):
            generation = nat.generation()
            if generation is None or generation != self._generation or any(map(_legacy_tables, LEGACY)):
                self._found = tuple(dict.fromkeys(_read(lambda: self._clock() - began < nft.TIMEOUT)))
                self._generation = generation
            ended = self._clock()
            self._due = ended + (SOON if self._found else min(max(SOON, TIMES * (ended - began)), RARELY))


def _read(in_time: Callable[[], bool]) -> Iterator[Suspect | Detour]:
    chains = [item["chain"] for item in _listed("list", "chains")["nftables"] if "chain" in item]
    yield from _of_devices(chains)
    listings = list(_chains(chains, in_time))
    for _, listing in listings:
        yield from interference.suspects_of_nft(listing)
    unreadable = {place for place, listing in listings if interference.holds_xt(listing)}
    for family in LEGACY:
        legacy = set(_legacy_tables(family))
        for table in TABLES:
            if (family, table) in unreadable:
                yield from interference.suspects_of_iptables(_saved(family, "nft", table), family, table)
            if table in legacy:
                yield from interference.suspects_of_iptables(_saved(family, "legacy", table), family, table)


def _of_devices(chains: Iterable[Json]) -> Iterator[Detour]:
    for one in [one for one in chains if one.get("hook") in detours.HOOKS][:MOST_CHAINS]:
        place = ("list", "chain", one["family"], one["table"], one["name"])
        devices = detours.devices_of_nft(nft.run("list", "rules of others", place))
        yield from detours.of_nft(_listed(*place), devices)


def _chains(chains: Iterable[Json], in_time: Callable[[], bool]) -> Iterator[tuple[tuple[str, str], Json]]:
    """Give ((family, table), listing) of each chain that packets of prerouting get to."""
    waiting = [
        (one["family"], one["table"], one["name"])
        for one in chains
        if one.get("hook") == "prerouting" and one.get("type") == "filter" and one["table"] not in OURS
    ]
    done: set[tuple[str, str, str]] = set()
    while waiting and len(done) < MOST_CHAINS and in_time():
        family, table, name = place = waiting.pop()
        if place in done:
            continue
        done.add(place)
        listing = _listed("list", "chain", family, table, name)
        yield (family, table), listing
        waiting += [(family, table, target) for target in interference.jumps(listing)]


def _listed(*arguments: str) -> Json:
    found: Json = json.loads(nft.run("list", "rules of others", ["-j", *arguments]))
    return found


def _legacy_tables(family: str) -> list[str]:
    try:
        return LEGACY[family].read_text().split()
    except OSError:
        return []


def _saved(family: str, sort: str, table: str) -> str:
    """Give iptables' own text of a table; nothing where it is not installed."""
    program = shutil.which(f"{family}tables-{sort}-save")
    if program is None:
        return ""
    return nft.finish([program, "-t", table]).stdout

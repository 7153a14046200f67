# SPDX-License-Identifier: Apache-2.0
"""What the kernel's network stack says that it dropped, beside XFRM and our programs: a packet that was lost is in one of these.

Each counter is one of a packet's end. What is refused with an error to who sends it, and what a device does not count, is in none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tests.lab.network import inside

NET = Path("/proc/thread-self/net")
SNMP = frozenset(
    f"{family} {name}"
    for family, names in {
        "Ip": "InHdrErrors InAddrErrors InUnknownProtos InDiscards OutDiscards OutNoRoutes ReasmFails FragFails",
        "Ip6": "InHdrErrors InTooBigErrors InNoRoutes InAddrErrors InUnknownProtos InTruncatedPkts InDiscards OutDiscards "
        "OutNoRoutes ReasmFails FragFails",
        "Udp": "NoPorts InErrors RcvbufErrors SndbufErrors InCsumErrors MemErrors",
        "Udp6": "NoPorts InErrors RcvbufErrors SndbufErrors InCsumErrors MemErrors",
    }.items()
    for name in names.split()
)
"""RFC 4293's and 4113's, as Documentation/networking/snmp_counter.rst tells them."""
CONNTRACK = ("insert_failed", "drop", "early_drop", "clashres")
NEIGHBOURS = ("unresolved_discards", "table_fulls")


def snmp(text: str) -> dict[str, int]:
    """Give the counters of /proc/net/snmp that tell of drops: a line of names, then one of numbers, each behind the family's name."""
    found, lines = {}, text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        family, _, columns = names.partition(": ")
        for name, value in zip(columns.split(), values.partition(": ")[2].split(), strict=True):
            if f"{family} {name}" in SNMP:
                found[f"{family} {name}"] = int(value)
    return found


def snmp6(text: str) -> dict[str, int]:
    """Give those of /proc/net/snmp6: a line each."""
    found = {}
    for line in text.splitlines():
        name, value = line.split()
        for family in ("Ip6", "Udp6"):
            if (full := f"{family} {name.removeprefix(family)}") in SNMP and name.startswith(family):
                found[full] = int(value)
    return found


def table(text: str, wanted: Iterable[str]) -> dict[str, int]:
    """Give columns of a file of /proc/net/stat, summed up over its lines, one of a processor each: hexadecimal, below their names."""
    names, *lines = [line.split() for line in text.splitlines()]
    return {name: sum(int(line[names.index(name)], 16) for line in lines) for name in wanted if name in names}


def softnet(text: str) -> int:
    """Give how many packets found no place in a processor's queue: the second column of /proc/net/softnet_stat."""
    return sum(int(line.split()[1], 16) for line in text.splitlines())


def drops(namespaces: Iterable[str]) -> dict[str, int]:
    """Give all of them, by namespace and counter; one that is not there has dropped nothing."""
    found: dict[str, int] = {}
    for namespace in namespaces:
        with suppress(OSError), inside(namespace):
            found |= {f"{namespace} {name}": value for name, value in _of_this_one()}
    for name in ("arp_cache", "ndisc_cache"):  # those two and softnet_stat are the machine's
        found |= {f"{name} {key}": value for key, value in _table(name, NEIGHBOURS).items()}
    found["softnet dropped"] = softnet((NET / "softnet_stat").read_text())
    return found


def _of_this_one() -> Iterator[tuple[str, int]]:
    yield from snmp((NET / "snmp").read_text()).items()
    yield from snmp6((NET / "snmp6").read_text()).items()
    yield from ((f"conntrack {name}", value) for name, value in _table("nf_conntrack", CONNTRACK).items())


def _table(name: str, wanted: Iterable[str]) -> Mapping[str, int]:
    file = NET / "stat" / name
    return table(file.read_text(), wanted) if file.exists() else {}

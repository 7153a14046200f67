# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl monitor``: what this node's programs decide on packets, as it happens, by pair of pods."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any, TextIO

import kmesh_bpf
from kmesh.cluster.objects import ClusterObjects
from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.errors import ClusterError
from kmesh.kmeshctl.output import STRUCTURED, printable, structured
from kmesh.text import one_line
from kmesh_bpf import (
    DEFAULT_PIN_ROOT,
    Address,
    ConfigError,
    EventTotals,
    PacketFate,
    PacketPair,
    PacketSum,
    privileges,
)

LOOK_SECONDS = 0.1
"""How often the ring is emptied: it holds some 4,600 events."""


def run(
    flags: argparse.Namespace,
    connect: Callable[[], ClusterSource],
    stdout: TextIO,
    stderr: TextIO,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show until the time is over, or until interrupted; give the exit status.

    Raises:
        KmeshBpfError: there is nothing to watch here, or it is not permitted.

    """
    watching = kmesh_bpf.watching  # looked up here: what speaks to a kernel is not there on every system
    privileges.need(privileges.Capability.BPF)
    with watching(flags.pin_root or DEFAULT_PIN_ROOT, flags.sample) as ring:
        names = _names(connect, stderr)
        totals, lost = EventTotals(flags.sample), 0
        end = clock() + flags.limit if flags.limit is not None else float("inf")
        if flags.output not in STRUCTURED:
            packets = "every packet" if flags.sample == 1 else f"one packet of {flags.sample}"
            print(f"kmeshctl: watching {packets} that the programs decide on; Ctrl-C ends", file=stderr, flush=True)
        now, shown = clock(), clock()
        while now < end:
            totals.add(ring.take())
            sleep(min(LOOK_SECONDS, end - now))
            now = clock()
            if now - shown >= flags.interval or now >= end:
                totals.add(ring.take())
                rows = [row for row in totals.taken() if flags.only in (None, row[0].fate.value)]
                stdout.write(render(rows, names, flags.output, now))
                stdout.flush()
                missed, shown = ring.lost(), now
                if missed > lost:
                    way = f"--sample {flags.sample * 10} shows fewer"
                    print(f"kmeshctl: {missed - lost} events found no room, and are not shown: {way}", file=stderr)
                lost = missed
    return 0


def _names(connect: Callable[[], ClusterSource], stderr: TextIO) -> dict[Address, str]:
    """Give the names of pods and nodes by address, where a cluster can be asked; else say why there are none."""
    try:
        with closing(connect()) as source:
            return named(read_whole(source))
    except (ClusterError, ConfigError) as error:
        print(f"kmeshctl: pods are shown by address, for there is nobody to ask: {one_line(str(error))}", file=stderr)
        return {}


def named(objects: ClusterObjects) -> dict[Address, str]:
    """Give the names of pods (``NAMESPACE/NAME``) and of nodes (``node/NAME``) by address."""
    names = {address: f"node/{node.name}" for node in objects.nodes for address in node.addresses}
    for pod in objects.pods:
        if not pod.host_network:
            names.update(dict.fromkeys(pod.addresses, f"{pod.namespace}/{pod.name}"))
    return names


def render(rows: Iterable[tuple[PacketPair, PacketSum]], names: Mapping[Address, str], form: str, now: float) -> str:
    """Give rows for people, or as lines of JSON, or as YAML's documents."""
    at = time.strftime("%H:%M:%S", time.localtime(now))
    if form in STRUCTURED:
        plain = [_plain(pair, total, names, now) for pair, total in rows]
        return "".join(f"{json.dumps(one)}\n" if form == "json" else f"---\n{structured(one, form)}" for one in plain)
    return printable(
        "".join(
            f"{at}  {_shout(pair.fate):<10} {_who(pair.source, names)} -> {_who(pair.destination, names)}  "
            f"{total.packets} packets, {total.bytes} bytes: {pair.reason}\n"
            for pair, total in rows
        )
    )


def _plain(pair: PacketPair, total: PacketSum, names: Mapping[Address, str], now: float) -> dict[str, Any]:
    return {
        "time": round(now, 3),
        "source": _text(pair.source),
        "destination": _text(pair.destination),
        "sourceName": names.get(pair.source) if pair.source else None,
        "destinationName": names.get(pair.destination) if pair.destination else None,
        "fate": pair.fate.value,
        "decision": pair.decision,
        "packets": total.packets,
        "bytes": total.bytes,
    }


def _shout(fate: PacketFate) -> str:
    word: str = fate.value
    return word.upper() if fate is PacketFate.DROPPED else word


def _text(address: Address | None) -> str | None:
    return str(address) if address else None


def _who(address: Address | None, names: Mapping[Address, str]) -> str:
    if address is None:
        return "(no address)"
    known: str | None = names.get(address)
    return known or str(address)

# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl explain``: is the traffic between two pods encrypted now, each way, and why or why not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import TextIO

from kmesh.cluster.endpoints import endpoints
from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.kmeshctl.ends import End
from kmesh.kmeshctl.health import read_reports
from kmesh.kmeshctl.output import STRUCTURED, coloured, printable, span, structured, table
from kmesh.kmeshctl.terminal import Reader
from kmesh.kmeshctl.traffic import Cluster, Explanation, Way, explain, plain, services_asked
from kmesh_bpf import Fate, Network

EXIT_NOT_ENCRYPTED = 1
MEANINGS = {Fate.ENCRYPTED: "good", Fate.CLEAR: "wrong", Fate.DROPPED: "bad", Fate.UNKNOWN: "wrong"}
DEFAULT_NAMESPACE = "default"


def run(
    flags: argparse.Namespace,
    source: ClusterSource,
    stdout: TextIO,
    clock: Callable[[], float] = time.time,
    reader: Reader | None = None,
) -> int:
    """Answer; give the exit status.

    Raises:
        ClusterError: the cluster cannot be asked.
        ConfigError: an end names nothing.

    """
    namespace = getattr(flags, "namespace", None) or DEFAULT_NAMESPACE
    cluster, answer = asked(source, (flags.ends[0], flags.ends[1]), namespace, flags.service_cidr, clock())
    if flags.output in STRUCTURED:
        stdout.write(structured(plain(answer), flags.output))
    else:
        stdout.write(render(answer, colour=reader is not None and reader.colour))
        if flags.output == "wide":
            stdout.write(f"\n{_nodes(cluster, answer)}")
    return 0 if answer.encrypted else EXIT_NOT_ENCRYPTED


def asked(
    source: ClusterSource, ends: tuple[str, str], namespace: str, cidrs: Iterable[Network], now: float
) -> tuple[Cluster, Explanation]:
    """Ask the cluster, and answer.

    Raises:
        ClusterError: the cluster cannot be asked.
        ConfigError: an end names nothing.

    """
    reports, _ = read_reports(source.statuses())
    services = {*cidrs, *(ip_network(cidr) for report in reports.values() for cidr in report.services)}
    objects = read_whole(source)
    found = {one: endpoints(source.endpoint_slices(*one)) for one in services_asked(objects, ends, namespace)}
    cluster = Cluster(objects, reports, tuple(sorted(services, key=str)), now, found)
    return cluster, explain(cluster, ends, namespace)


def render(answer: Explanation, *, colour: bool = False) -> str:
    """Give the answer for people."""
    lines = []
    for end in answer.ends:
        lines += [_end(end), *(f"  endpoint {_end(one)}" for one in answer.behind.get(end.name, ()))]
    lines += ["", *(line for way in answer.ways for line in _way(way, colour=colour))]
    if answer.notes:
        lines += ["", *map(printable, answer.notes)] if answer.ways else map(printable, answer.notes)
    return "".join(f"{line}\n" for line in lines)


def _end(end: End) -> str:
    addresses = ", ".join(map(str, end.addresses)) if end.kind == "pod" or end.name.startswith("node ") else ""
    where = f" on {end.node}" if end.node and not end.name.startswith("node ") else ""
    return printable(f"{end.name}{f' ({addresses})' if addresses else ''}{where}: {_managed(end)}{end.reason}")


def _managed(end: End) -> str:
    if end.kind != "pod":
        return ""
    return "managed, " if end.managed else "not managed, "


def _way(way: Way, *, colour: bool) -> Iterable[str]:
    spi = f" with SPI {way.spi}" if way.spi else ""
    fate = way.trace.fate
    verdict = coloured(fate.value.upper(), MEANINGS[fate], colour=colour)
    yield f"{way.src} -> {way.dst}: {verdict}{spi}"
    yield printable(f"  {way.trace.reason}")
    policy = way.trace.policy
    if policy is not None:
        yield f"  policy {policy.src} -> {policy.dst}, tunnel {policy.tunnel_src} -> {policy.tunnel_dst}"


def _nodes(cluster: Cluster, answer: Explanation) -> str:
    """Give what is reported by the nodes that the answer rests on."""
    found = [*answer.ends, *(end for behind in answer.behind.values() for end in behind)]
    rows = []
    for name in dict.fromkeys(end.node for end in found if end.node):
        report = cluster.reports.get(name)
        if report is None:
            rows.append((name, *[""] * 6))
            continue
        low, high = report.spi_out or (0, 0)
        age = span(cluster.now - report.reported_at)
        mode, ready = "strict" if report.strict else "permissive", "yes" if report.ready else "no"
        rows.append((name, ready, str(report.spi), f"{low}-{high}" if high else "", mode, str(report.dropped), age))
    return table(("NODE", "READY", "SPI", "SPI OUT", "MODE", "DROPS", "AGE"), rows)

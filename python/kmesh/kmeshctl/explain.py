# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl explain``: is the traffic between two pods encrypted now, each way, and why or why not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Any, TextIO

from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.kmeshctl.health import read_reports
from kmesh.kmeshctl.output import STRUCTURED, printable, structured
from kmesh.kmeshctl.traffic import Cluster, End, Explanation, Way, explain, plain
from kmesh_bpf import Network

EXIT_NOT_ENCRYPTED = 1
DEFAULT_NAMESPACE = "default"
EPILOG = """\
examples:
  kmeshctl explain web api                 # two pods of the default namespace
  kmeshctl explain shop/web backend/api
  kmeshctl explain shop/web 10.244.2.10    # an address: a pod's, a node's or a Service's
  kmeshctl explain web 10.96.0.10 --service-cidr 10.96.0.0/12
  kmeshctl explain web api -o json

Service CIDRs are those that the daemons report, and those given.

exit status: 0 encrypted both ways, 1 not so (the answer says why) or failed, 2 refused
"""


def register(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command to kmeshctl's."""
    parser = commands.add_parser(
        "explain",
        help="say whether the traffic between two pods is encrypted, and why",
        parents=[shared],
        description="Says whether the traffic between two ends is encrypted now, each way, and why or why not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ends", nargs=2, metavar="POD", help="POD, NAMESPACE/POD or an address")
    parser.add_argument(
        "--service-cidr", action="append", default=[], type=_cidr, metavar="CIDR", help="a Service CIDR (several)"
    )
    parser.add_argument("-o", "--output", choices=("text", *STRUCTURED), default="text", help="default: %(default)s")


def _cidr(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(
    flags: argparse.Namespace, source: ClusterSource, stdout: TextIO, clock: Callable[[], float] = time.time
) -> int:
    """Answer; give the exit status.

    Raises:
        ClusterError: the cluster cannot be asked.
        ConfigError: an end names no pod.

    """
    reports, _ = read_reports(source.statuses())
    services = {*flags.service_cidr, *(ip_network(cidr) for report in reports.values() for cidr in report.services)}
    cluster = Cluster(read_whole(source), reports, tuple(sorted(services, key=str)), clock())
    namespace = getattr(flags, "namespace", None) or DEFAULT_NAMESPACE
    answer = explain(cluster, (flags.ends[0], flags.ends[1]), namespace)
    stdout.write(structured(plain(answer), flags.output) if flags.output in STRUCTURED else render(answer))
    return 0 if answer.encrypted else EXIT_NOT_ENCRYPTED


def render(answer: Explanation) -> str:
    """Give the answer for people."""
    lines = [*map(_end, answer.ends), "", *(line for way in answer.ways for line in _way(way))]
    if answer.notes:
        lines += ["", *answer.notes] if answer.ways else answer.notes
    return printable("".join(f"{line}\n" for line in lines))


def _end(end: End) -> str:
    addresses = ", ".join(map(str, end.addresses)) if end.kind == "pod" else ""
    where = f" on {end.node}" if end.node else ""
    return f"{end.name}{f' ({addresses})' if addresses else ''}{where}: {_managed(end)}{end.reason}"


def _managed(end: End) -> str:
    if end.kind != "pod":
        return ""
    return "managed, " if end.managed else "not managed, "


def _way(way: Way) -> Iterable[str]:
    spi = f" with SPI {way.spi}" if way.spi else ""
    yield f"{way.src} -> {way.dst}: {way.trace.fate.value.upper()}{spi}"
    yield f"  {way.trace.reason}"
    policy = way.trace.policy
    if policy is not None:
        yield f"  policy {policy.src} -> {policy.dst}, tunnel {policy.tunnel_src} -> {policy.tunnel_dst}"

# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl status``: one table for the cluster, and a sentence for each thing that is not as it should be."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.errors import ClusterError
from kmesh.kmeshctl.health import Finding, Health, NodeHealth, examine, plain, replacement
from kmesh.kmeshctl.output import STRUCTURED, named, printable, share, span, structured, table

EXIT_UNHEALTHY = 1
WATCH_SECONDS = 2.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"
HEAD = ("NODE", "READY", "SPI", "PEERS", "REPLACEMENT", "SEQ USE", "DROPS", "VERSION", "AGE")
WIDE_HEAD = ("ADDRESSES", "SPI OUT", "OLD SAS", "MODE", "LAST DROP")
EPILOG = """\
examples:
  kmeshctl status
  kmeshctl status -o wide
  kmeshctl status --problems         # no table
  kmeshctl status --watch            # every 2 seconds, until Ctrl-C
  kmeshctl status -o json

READY unknown: there is no report of that node, or it is too old; nodes of Go Kmesh never report. DROPS: packets
that the programs dropped because they would have left, or had arrived, in clear. AGE: of the node's report.

exit status: 0 all is as it should be, 1 something is not (said under the table) or failed, 2 refused
"""


def register(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command to kmeshctl's."""
    parser = commands.add_parser(
        "status",
        help="show every node, and what is not as it should be",
        parents=[shared],
        description="Shows every node of the cluster, and under the table what is not as it should be.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "wide", *STRUCTURED), default="table", help="default: %(default)s"
    )
    parser.add_argument(
        "--problems", action="store_true", help="only what is not as it should be, a line each; nothing: all is"
    )
    parser.add_argument(
        "-w",
        "--watch",
        type=_seconds,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"show it again and again (default: every {WATCH_SECONDS:g})",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds


def run(
    flags: argparse.Namespace,
    source: ClusterSource,
    stdout: TextIO,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show it once, or until interrupted; give the exit status.

    Raises:
        ClusterError: the cluster cannot be asked.

    """
    shown = ""
    while True:
        now = clock()
        at = time.strftime("%H:%M:%S", time.localtime(now))
        try:
            health = _look(source, now)
        except ClusterError as error:
            if not shown or flags.output in STRUCTURED:
                raise  # whoever begins with that has likely asked the wrong one; and programs read no sentences
            stdout.write(printable(f"{at}: {error}; the last answer is of {shown}\n"))
        else:
            shown = at
            if flags.watch is not None and stdout.isatty():
                stdout.write(CLEAR_SCREEN)
            when = f", {at}" if flags.watch is not None else ""
            stdout.write(render(health, flags.output, problems_only=flags.problems, at=when))
        stdout.flush()
        if flags.watch is None:
            return EXIT_UNHEALTHY if health.findings else 0
        sleep(flags.watch)


def _look(source: ClusterSource, now: float) -> Health:
    objects, leases = read_whole(source), source.statuses()
    health = examine(objects, leases, now)
    return examine(objects, leases, now, source.daemons()) if health.silent else health


def render(health: Health, form: str, *, problems_only: bool = False, at: str = "") -> str:
    """Give the text for a value of ``-o``; ``problems_only``: of tables nothing but what is not as it should be.

    ``at`` stands behind the first line.
    """
    if form in STRUCTURED:
        return structured(plain(health), form)
    if problems_only:
        return printable("".join(f"{sentence}\n" for sentence in grouped(health.findings)))
    wide = form == "wide"
    head = (*HEAD, *WIDE_HEAD) if wide else HEAD
    ill = {finding.node for finding in health.findings}
    ordered = sorted(health.nodes, key=lambda node: node.name not in ill)  # else as they are: by name
    lines = table(head, ((*_row(node), *_more(node)) if wide else _row(node) for node in ordered))
    well = "all that is known is as it should be" if health.notes else "all is as it should be"
    sentences = [*(grouped(health.findings) if health.findings else [well]), *grouped(health.notes)]
    return printable(f"{_summary(health)}{at}\n\n{lines}\n" + "".join(f"{sentence}\n" for sentence in sentences))


def _summary(health: Health) -> str:
    """Give in a line what a person wants to know first."""
    fresh = [node.fresh for node in health.nodes if node.fresh is not None]
    unknown = len(health.nodes) - len(fresh)
    ready = f"{sum(report.ready for report in fresh)} of {len(health.nodes)} nodes ready"
    key = f"key SPI {health.key_spi}" if health.key_spi else "no usable key"
    return f"{ready}{f', {unknown} unknown' if unknown else ''}, {key}"


def grouped(findings: Sequence[Finding]) -> list[str]:
    """Give the sentences, each once: what is so of several nodes is said of all of them."""
    nodes: dict[str, list[str]] = {}
    for one in findings:
        nodes.setdefault(one.sentence, []).append(one.node)
    return [f"{named(of)}: {sentence}" if of[0] else sentence for sentence, of in nodes.items()]


def _row(node: NodeHealth) -> tuple[str, ...]:
    status = node.status
    ready = "unknown" if node.fresh is None else "yes" if node.fresh.ready else "no"
    spi = str(node.info.spi) if node.info else ""
    if status is None:
        return (node.name, ready, spi, *[""] * 6)
    return (
        node.name,
        ready,
        spi,
        f"{status.peers_ready}/{status.peers_expected}",
        replacement(status),
        share(status.sequence_use),
        str(status.dropped),
        status.version,
        span(node.age),
    )


def _more(node: NodeHealth) -> tuple[str, ...]:
    status = node.status
    addresses = ",".join(node.info.addresses) if node.info else ""
    if status is None:
        return (addresses, *[""] * 4)
    drop = status.last_drop
    now = status.reported_at + node.age
    dropped = f"{drop.counter} {span(now - drop.at)} ago" if drop else ""
    low, high = status.spi_out or (0, 0)
    return (
        addresses,
        (str(low) if low == high else f"{low}-{high}") if high else "",
        str(status.old_inbound),
        "strict" if status.strict else "permissive",
        dropped,
    )

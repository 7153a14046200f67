# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl status``: one table for the cluster, and a sentence for each thing that is not as it should be."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TextIO

from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.errors import ClusterError
from kmesh.kmeshctl.health import Finding, Health, NodeHealth, examine, plain, replacement
from kmesh.kmeshctl.output import (
    STRUCTURED,
    Marked,
    coloured,
    named,
    printable,
    share,
    span,
    structured,
    table,
    wrapped,
)
from kmesh.kmeshctl.terminal import Reader, fitted, screen

EXIT_UNHEALTHY = 1
HEAD = ("NODE", "READY", "SPI", "PEERS", "REPLACEMENT", "SEQ USE", "DROPS", "VERSION", "AGE")
WIDE_HEAD = ("ADDRESSES", "SPI OUT", "OLD SAS", "MODE", "LAST DROP")
LEAST = ("VERSION", "SEQ USE", "SPI")
"""Columns that are left out first where there is no room; ``-o wide`` has them all."""


def run(
    flags: argparse.Namespace,
    source: ClusterSource,
    stdout: TextIO,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    reader: Reader | None = None,
) -> int:
    """Show it once, or until interrupted; give the exit status.

    Raises:
        ClusterError: the cluster cannot be asked.

    """
    reader = reader or Reader()
    if flags.watch is not None:
        return _watch(flags, source, stdout, clock, sleep, reader)
    health = look(source, clock())
    stdout.write(render(health, flags.output, problems_only=flags.problems, reader=reader))
    return EXIT_UNHEALTHY if health.findings else 0


def _watch(
    flags: argparse.Namespace,
    source: ClusterSource,
    stdout: TextIO,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    reader: Reader,
) -> int:
    """Show it until interrupted."""
    # Before the first answer nothing is known, and an error is for the screen that stays.
    health, shown, trouble = look(source, clock()), _at(clock), ""
    on_screen = reader.terminal and flags.output not in STRUCTURED
    with screen(stdout) if on_screen else nullcontext() as draw:
        while True:
            if draw is not None:
                said = [coloured(printable(trouble), "bad", colour=reader.colour)] if trouble else []
                parts = _parts(health, flags, reader, f", {shown}")
                draw(fitted([[*said, *parts[0]], *parts[1:]], reader.size()[1]))
            elif trouble:
                stdout.write(f"{printable(trouble)}\n")
            else:
                at = f", {shown}"
                stdout.write(render(health, flags.output, problems_only=flags.problems, at=at, reader=reader))
            stdout.flush()
            sleep(flags.watch)
            try:
                health, trouble = look(source, clock()), ""
                shown = _at(clock)
            except ClusterError as error:
                if flags.output in STRUCTURED:
                    raise  # programs read no sentences
                trouble = f"{_at(clock)}: {error}; the last answer is of {shown}"


def _at(clock: Callable[[], float]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(clock()))


def look(source: ClusterSource, now: float) -> Health:
    """Judge the cluster as it is now.

    Raises:
        ClusterError: it cannot be asked.

    """
    objects, leases = read_whole(source), source.statuses()
    health = examine(objects, leases, now)
    return examine(objects, leases, now, source.daemons()) if health.silent else health


def render(
    health: Health, form: str, *, problems_only: bool = False, at: str = "", reader: Reader | None = None
) -> str:
    """Give the text for a value of ``-o``; ``problems_only``: of tables nothing but what is not as it should be.

    ``at`` stands behind the first line.
    """
    if form in STRUCTURED:
        return structured({**plain(health), "replacement": progress(health)}, form)
    flags = argparse.Namespace(output=form, problems=problems_only)
    parts = _parts(health, flags, reader or Reader(), at)
    return "\n".join("".join(f"{line}\n" for line in part) for part in parts)


def _parts(health: Health, flags: argparse.Namespace, reader: Reader, at: str) -> list[list[str]]:
    """Give what is shown, in the lines that stand together."""
    said = [printable(wrapped(one, 0 if flags.problems else reader.line)) for one in grouped(health.findings)]
    ill = [coloured(line, "bad", colour=reader.colour) for one in said for line in one.splitlines()]
    if flags.problems:
        return [ill]
    well = "all that is known is as it should be" if health.notes else "all is as it should be"
    notes = [line for one in grouped(health.notes) for line in printable(wrapped(one, reader.line)).splitlines()]
    under = [*(ill or [coloured(well, "good", colour=reader.colour)]), *notes]
    head = [coloured(f"{summary(health)}{at}", "head", colour=reader.colour)]
    if now := progress(health):
        head.append(wrapped(now, reader.line))
    return [head, _table(health, flags.output, reader).splitlines(), under]


def _table(health: Health, form: str, reader: Reader) -> str:
    ill = {finding.node for finding in health.findings}
    ordered = sorted(health.nodes, key=lambda node: node.name not in ill)  # else as they are: by name
    if form == "wide":
        rows = [(*_row(node, ill), *_more(node)) for node in ordered]
        return table((*HEAD, *WIDE_HEAD), rows, colour=reader.colour)
    return table(HEAD, [_row(node, ill) for node in ordered], reader.columns, LEAST, colour=reader.colour)


def summary(health: Health) -> str:
    """Give in a line what a person wants to know first."""
    fresh = [node.fresh for node in health.nodes if node.fresh is not None]
    unknown = len(health.nodes) - len(fresh)
    ready = f"{sum(report.ready for report in fresh)} of {len(health.nodes)} nodes ready"
    key = f"key SPI {health.key_spi}" if health.key_spi else "no usable key"
    return f"{ready}{f', {unknown} unknown' if unknown else ''}, {key}"


def progress(health: Health) -> str:
    """Say how far the cluster is with a replacement of the key; empty: there is none, or no usable key.

    It is known from when the key was stored, before any node has followed.
    """
    announced = [node.info.spi for node in health.nodes if node.info is not None]
    reports = [node.fresh for node in health.nodes if node.fresh is not None]
    behind = sum(spi < health.key_spi for spi in announced)
    if not health.key_spi or not (behind or any(one.replacing_since is not None for one in reports)):
        return ""
    sending = sum(one.newest_spi >= health.key_spi and one.peers_on_newest >= one.peers_expected for one in reports)
    older = sum(one.old_inbound > 0 for one in reports)
    left = f"; {older} still take the one before" if older and not behind else ""
    return (
        f"replacement in progress: SPI {health.key_spi} is announced by {len(announced) - behind} of {len(announced)} "
        f"nodes, sent with by {sending}{left}"
    )


def grouped(findings: Sequence[Finding]) -> list[str]:
    """Give the sentences, each once: what is so of several nodes is said of all of them."""
    nodes: dict[str, list[str]] = {}
    for one in findings:
        nodes.setdefault(one.sentence, []).append(one.node)
    return [f"{named(of)}: {sentence}" if of[0] else sentence for sentence, of in nodes.items()]


def _row(node: NodeHealth, ill: set[str]) -> tuple[str, ...]:
    status = node.status
    word, meaning = (
        ("unknown", "wrong") if node.fresh is None else ("yes", "good") if node.fresh.ready else ("no", "bad")
    )
    spi = str(node.info.spi) if node.info else ""
    first = (Marked(node.name, "bad") if node.name in ill else node.name, Marked(word, meaning), spi)
    if status is None:
        return (*first, *[""] * 6)
    return (
        *first,
        f"{status.peers_ready}/{status.peers_expected}",
        replacement(status),
        share(status.sequence_use),
        Marked(str(status.dropped), "wrong") if status.dropped else "0",
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

# SPDX-License-Identifier: Apache-2.0
"""What the dashboard shows, as plain values: nodes, a matrix of them, progress, findings, recent drops. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from kmesh.kmeshctl.health import Health, NodeHealth, replacement
from kmesh.kmeshctl.output import span
from kmesh.kmeshctl.status import grouped, progress, summary

SELF, NEWEST, OLDER, NOT_READY, CUT_OFF, FOREIGN = ".", "n", "o", "x", "c", "?"
"""What stands in a cell of the matrix: how a node (the row) sends to another one (the column).

CUT_OFF: nobody knows, for the row's node has not reported for too long, or never; FOREIGN: its make never does.
"""
MINUTES = 15
"""How far back drops are kept."""


class Drops:
    """Packets dropped from one look to the next, for the last minutes; counters begin anew with a node's programs."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self.seen: deque[tuple[float, dict[str, int]]] = deque()

    def take(self, health: Health, now: float) -> None:
        """Take what the reports say now."""
        counted = {node.name: node.status.dropped for node in health.nodes if node.status is not None}
        new = {name: count - self._last[name] for name, count in counted.items() if count > self._last.get(name, count)}
        self._last = counted
        self.seen.append((now, new))
        while self.seen[0][0] < now - MINUTES * 60:
            self.seen.popleft()

    def by_minute(self, now: float) -> list[int]:
        """Give how many there were in each of the last minutes, the newest last."""
        found = [0] * MINUTES
        for at, new in self.seen:
            ago = int((now - at) // 60)
            if 0 <= ago < MINUTES:
                found[MINUTES - 1 - ago] += sum(new.values())
        return found

    def by_node(self) -> dict[str, int]:
        """Give how many there were on each node, the most first."""
        found: dict[str, int] = {}
        for _, new in self.seen:
            for name, count in new.items():
                found[name] = found.get(name, 0) + count
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def overview(health: Health, drops: Drops, now: float) -> dict[str, Any]:
    """Give all of it; ``now`` is in seconds since the epoch."""
    ill = {finding.node for finding in health.findings}
    nodes = sorted(health.nodes, key=lambda node: (node.name not in ill, node.name))
    return {
        "summary": summary(health),
        "progress": progress(health),
        "share": _share(health),
        "findings": grouped(health.findings),
        "notes": grouped(health.notes),
        "nodes": [_node(node, ill) for node in nodes],
        "matrix": matrix(health, [node.name for node in nodes]),
        "drops": drops.by_minute(now),
        "dropsByNode": drops.by_node(),
    }


def _share(health: Health) -> float | None:
    """Give how much of a replacement is done, 0 to 1: of all pairs that are reported, those on the newest version."""
    if not progress(health):
        return None
    reports = [node.fresh for node in health.nodes if node.fresh is not None]
    pairs = sum(report.peers_expected for report in reports)
    done = sum(report.peers_on_newest for report in reports if report.newest_spi >= health.key_spi)
    return done / pairs if pairs else 0.0


def _node(node: NodeHealth, ill: set[str]) -> dict[str, Any]:
    status = node.status
    return {
        "name": node.name,
        "ready": node.fresh.ready if node.fresh else None,
        "ill": node.name in ill,
        "spi": node.info.spi if node.info else None,
        "peers": f"{status.peers_ready}/{status.peers_expected}" if status else "",
        "replacement": replacement(status) if status else "",
        "drops": status.dropped if status else None,
        "age": span(node.age) if status else "",
    }


def matrix(health: Health, order: list[str]) -> list[str]:
    """Give a row of cells for each node, in that order: how it sends to each of the others.

    A report names only those peers that something is to be said of (:mod:`kmesh.telling.reporting`), 32 at most: where
    more than that cannot be sent to, the ones that it does not name are taken to be well.
    """
    known = {node.name: node for node in health.nodes}
    return ["".join(_cells(known[name], order, health.key_spi, known)) for name in order]


def _cells(node: NodeHealth, order: list[str], newest: int, known: Mapping[str, NodeHealth]) -> list[str]:
    if node.fresh is None:
        return [SELF if name == node.name else FOREIGN if node.foreign else CUT_OFF for name in order]
    rows = {peer.name: peer for peer in node.fresh.peers}
    cells = []
    for name in order:
        peer = rows.get(name)
        if name == node.name:
            cells.append(SELF)
        elif (peer is not None and not peer.ready) or known[name].info is None:
            cells.append(NOT_READY)
        elif (peer.spi_out if peer else _sent_with(node)) < newest:
            cells.append(OLDER)
        else:
            cells.append(NEWEST)
    return cells


def _sent_with(node: NodeHealth) -> int:
    """Give the version that a node sends with to the peers that its report does not name: all that are not behind."""
    return node.fresh.newest_spi if node.fresh else 0

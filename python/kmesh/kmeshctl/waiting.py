# SPDX-License-Identifier: Apache-2.0
"""How far a cluster is with a key that was just stored, for whoever waits for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmesh.cluster.objects import NodeInfo
from kmesh.cluster.snapshot import announced_by_us
from kmesh.cluster.status import LEASE_SECONDS, NodeStatus
from kmesh.kmeshctl.output import named


@dataclass(frozen=True, slots=True)
class Progress:
    """Which nodes of ours send with a version of the key to all their peers, and what the others wait for."""

    version: int
    done: tuple[str, ...]
    behind: Mapping[str, str]

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return bool(self.done) and not self.behind

    def __str__(self) -> str:
        nodes = len(self.done) + len(self.behind)
        if not nodes:
            return "no daemon of this project reports"
        if self.over:
            return f"all {nodes} nodes send with SPI {self.version}"
        return f"{len(self.done)} of {nodes} nodes send with SPI {self.version}; {_grouped(self.behind)}"


def progress(infos: Iterable[NodeInfo], reports: Mapping[str, NodeStatus], version: int, now: float) -> Progress:
    """Judge; ``now`` is in seconds since the epoch. Nodes of Go Kmesh report nothing, and nobody waits for them."""
    announced = {info.name for info in infos if announced_by_us(info, None)}
    behind = {name: _missing(reports.get(name), version, now) for name in sorted(announced | reports.keys())}
    return Progress(
        version,
        tuple(name for name, what in behind.items() if not what),
        {name: what for name, what in behind.items() if what},
    )


def _missing(report: NodeStatus | None, version: int, now: float) -> str:
    if report is None or now - report.reported_at > LEASE_SECONDS:
        return "no report"
    if report.spi < version:
        return "not announced yet"
    if report.peers_on_newest < report.peers_expected:
        return "not with all peers yet"
    return ""


def _grouped(behind: Mapping[str, str]) -> str:
    found: dict[str, list[str]] = {}
    for name, what in behind.items():
        found.setdefault(what, []).append(name)
    return "; ".join(f"{what}: {named(names)}" for what, names in found.items())

# SPDX-License-Identifier: Apache-2.0
"""Do nodes hold what the others announce? What each reports of its kernel, compared with what the cluster shows. Pure.

A daemon that was killed, or that does not see the cluster, says nothing any more of what changes around it; its kernel
goes on with what it holds. What that was stands in its last report, however old that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from kmesh.cluster import holdings
from kmesh.cluster.objects import ClusterObjects, NodeInfo
from kmesh.cluster.snapshot import peer_of
from kmesh.cluster.status import NodeStatus
from kmesh.kmeshctl.output import named, span
from kmesh.telling.reporting import PROGRESS_RATE

PATIENCE = 10.0
"""Seconds that others may take to make and to report keys for a new incarnation of a small cluster's node; what a large
one's reports take longer is added."""


@dataclass(frozen=True)
class Agreement:
    """What nodes announce, and what they report. ``now``: seconds since the epoch."""

    infos: Mapping[str, NodeInfo]
    """Of nodes that others have to hold keys for."""
    reports: Mapping[str, NodeStatus]
    now: float

    @classmethod
    def of(cls, objects: ClusterObjects, reports: Mapping[str, NodeStatus], now: float) -> Agreement:
        """Take it from the cluster's objects."""
        nodes = {node.name: node for node in objects.nodes}
        infos = {one.name: one for one in objects.node_infos if one.spi and peer_of(one, nodes.get(one.name)).alive}
        return cls(infos, reports, now)

    def strangers(self, here: str) -> frozenset[str] | None:
        """Give the nodes whose present incarnation a node's kernel holds no keys for, by its last report.

        None: too many to say which. Where nothing is known, or it is too early to say (both incarnations must have been
        there for a while), it is none of them.
        """
        report = self.reports.get(here)
        if report is None or report.holds is None or not self._settled(report):
            return frozenset()
        wanted = self._all
        if here in self.infos:
            wanted ^= holdings.item(here, self.infos[here].boot_id)
        if wanted == report.holds:
            return frozenset()
        found = holdings.differing(wanted, report.holds, self.infos.keys() - {here})
        if found is None:
            return None
        refused = {peer.name for peer in report.peers if not peer.ready}  # of these the node tells itself
        return frozenset(name for name in found - refused if self._is_settled(name))

    def sentences(self, here: str) -> Iterator[str]:
        """Give what is to be said of a node that holds something else."""
        report, strangers = self.reports.get(here), self.strangers(here)
        age = span(self.now - report.reported_at) if report is not None else ""
        if self._contradicts(here):
            yield (
                f"it announces another incarnation than its kernel uses by its last report, {age} old: what others "
                "send there is lost; does its daemon run, and may it write its KmeshNodeInfo?"
            )
        if strangers is None:
            yield f"its kernel holds keys for other incarnations than many nodes announce by its last report, {age} old"
        elif strangers:
            yield (
                f"its kernel holds no keys for the present incarnation of {named(sorted(strangers))} by its last "
                f"report, {age} old: what they send each other is lost; does its daemon run, and see the cluster?"
            )

    def apart(self, one: str, other: str) -> str:
        """Give a sentence where two nodes surely do not hold keys for each other; empty where nothing says so."""
        for here, there in ((one, other), (other, one)):
            strangers = self.strangers(here)
            if self._contradicts(here) or (strangers is not None and there in strangers):
                return "; ".join(f"{here}: {sentence}" for sentence in self.sentences(here))
        return ""

    def doubt(self, one: str, other: str) -> str:
        """Give a sentence where it cannot be said whether two nodes hold keys for each other; empty: it can."""
        return "; ".join(
            f"{here}: {sentence}"
            for here in (one, other)
            if self.strangers(here) is None
            for sentence in self.sentences(here)
        )

    def _contradicts(self, here: str) -> bool:
        """Tell whether a node announces another incarnation than its kernel uses by its last report.

        A daemon that runs mends that at once, and reports it.
        """
        report, info = self.reports.get(here), self.infos.get(here)
        if report is None or info is None or report.holds is None or self.now - report.reported_at < PATIENCE:
            return False
        return bool(report.incarnation) and report.incarnation != info.boot_id

    @cached_property
    def _all(self) -> int:
        return holdings.digest((name, info.boot_id) for name, info in self.infos.items())

    def _is_settled(self, name: str) -> bool:
        """Tell whether a node has used what it announces for so long that others should hold keys for it."""
        report = self.reports.get(name)
        return report is not None and report.incarnation == self.infos[name].boot_id and self._settled(report)

    def _settled(self, report: NodeStatus) -> bool:
        patience = PATIENCE + len(self.infos) / PROGRESS_RATE
        return report.holds is not None and self.now - report.incarnation_since >= patience

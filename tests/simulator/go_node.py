# SPDX-License-Identifier: Apache-2.0
"""A node of another make, as Go Kmesh looks to the others: what it announces, and what it cannot do.

It announces the kernel's boot id as its incarnation, SPI 0 before it has a key, no replay window and no traffic of
nodes; reports nothing; lets pass what should have come encrypted. When it makes and drops SAs is decided by our own
planner: this is a peer for our nodes to get on with, and no model of what Go Kmesh gets wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kmesh.cluster.objects import ClusterObjects, parse
from kmesh.cluster.snapshot import kmesh_node_info, local_node
from kmesh.launcher.daemon import Daemon

from kmesh_bpf import AddSa, Report, View

FLAGS = ("--permissive", "--replay-window=0")


class GoDaemon(Daemon):
    """Our daemon in the other one's clothes; its ``fresh`` gives the boot id."""

    def view(self, objects: ClusterObjects) -> View:
        """Give what it knows, but for what only our nodes announce."""
        view = super().view(objects)
        return replace(
            view, peers=tuple(replace(peer, node_traffic=False, replay_window=0, sends=0) for peer in view.peers)
        )

    def _announce(self, report: Report, objects: ClusterObjects) -> None:
        ours, ring = self._ours(objects), self.keys.keyring
        began = ours is not None and ours.boot_id == report.incarnation
        missing = any(isinstance(one, AddSa) and one.sa.mark is not None for one in report.drift)
        spi = ring.current if ring is not None and began and not missing else self.memory.announced
        wanted = announcement(kmesh_node_info(local_node(objects, self.config.node), spi, 0, report.incarnation))
        if ours != parse(wanted):
            self.source.publish(wanted)
        if spi != self.memory.announced:
            self.memory.announced, self.memory.announced_at = spi, self.clock()
        self.memory.published = True


def announcement(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give an announcement of ours without what only we announce."""
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": {}}}


class NoReports:
    """In the place of an outbox: it reports nothing."""

    def tell(self, event: Mapping[str, Any]) -> None:
        """No Event."""

    def conditions(self, node_info: Mapping[str, Any]) -> None:
        """No condition."""

    def report(self, lease: Mapping[str, Any]) -> None:
        """No Lease."""

    def turn(self) -> None:
        """Nothing waits."""

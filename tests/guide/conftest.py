# SPDX-License-Identifier: Apache-2.0
"""One cluster for the whole session: a real API server, three nodes, a daemon on each, all under emulation."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.lab.capture import Capture
from tests.lab.cluster import ROOT, wait_for
from tests.lab.kube import KubeCluster, KubeDaemon
from tests.lab.network import Network, Pod
from tests.lab.traffic import Count, Echo, Flow

RATE = 20.0
"""Packets a second of each family on a bad day, which takes a minute: more would keep the processors from all else."""


def steps() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("## Five steps")[2].partition("\n## ")[0]
    return re.findall(r"^ {7}(\S.*)$", section, re.MULTILINE)


class Guide:
    def __init__(self, work: Path) -> None:
        self.network = Network(3)
        self.cluster = KubeCluster(work, self.network, meanwhile=self.make_pods)
        for pod in self.network.pods.values():
            self.cluster.pod(pod)
        self.key, self.start, self.label, self.look, self.key_again = steps()
        self.daemons = {node.name: KubeDaemon(node.name, self.cluster, work, self.start) for node in self.network.nodes}

    def make_pods(self):
        for node in self.network.nodes:
            for number, letter in ((10, "a"), (11, "b")):
                self.network.add_pod(f"p{node.index}{letter}", node, number)
        self.echoes = [Echo(pod) for pod in self.network.pods.values()]

    def pod(self, name):
        return self.network.pods[name]

    def managed(self, node):
        return self.daemons[node].managed()

    def wait_managed(self, address, managed=True):
        for node in self.daemons:
            what = f"{address} managed={managed} on {node}"
            wait_for(what, lambda n=node: (address in self.managed(n)) is managed, 120)  # a watch may be backing off

    def wait_spi(self, spi):
        wait_for(f"all announce SPI {spi}", lambda: all(self.cluster.spi(node) == spi for node in self.daemons), 120)

    def close(self):
        for daemon in self.daemons.values():
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop()
            daemon.close()
        for echo in self.echoes:
            echo.close()
        self.cluster.close()
        self.network.close()

    @contextmanager
    def nothing_lost(self, what: str) -> Iterator[tuple[Count, Count]]:
        """Let traffic of both families flow between the nodes for the length of the block: all of it arrives, as ESP."""
        with Capture(self.network) as seen, Flow(self.pod("p1a"), self.pod("p2a").address(4), RATE) as four:
            with Flow(self.pod("p2a"), self.pod("p3a").address(6), RATE) as six:
                yield four, six
        print(f"{what}: IPv4 {four}, IPv6 {six}")
        assert (four.lost, six.lost, seen.pods_in_clear()) == (0, 0, 0)
        # A listener on a busy machine misses some.
        assert sum(seen.esp("10.10.0.1", "10.10.0.2").values()) > four.sent / 2, "what crosses in no way proves nothing"
        assert min(four.sent, six.sent) >= 50

    def reasons(self) -> set[tuple[str, str]]:
        """Give (node, reason) of all Events."""
        return {(event["involvedObject"]["name"], event["reason"]) for event in self.cluster.events()}

    def news(self, number: int) -> None:
        """Make a pod that only the API server knows of: all nodes hear of it, and of its end."""
        pod = Pod(f"news{number}", "n3", (ip_address(f"10.244.3.{number}"), ip_address(f"fd00:244:3::{number:x}")), "")
        self.cluster.pod(pod)
        self.wait_managed(pod.address(4))
        self.cluster.delete_pod(pod.name)
        self.wait_managed(pod.address(4), managed=False)


@pytest.fixture(scope="session")
def guide():
    made = Guide(Path(tempfile.mkdtemp(prefix="kmesh-guide-")))
    yield made
    made.close()

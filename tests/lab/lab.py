# SPDX-License-Identifier: Apache-2.0
"""Three nodes with their pods, their cluster and their daemons: what e2e and the fault matrix stand on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cluster import LABEL, Cluster, Daemon, wait_for
from tests.lab.network import Network, Node, Pod
from tests.lab.traffic import Echo

FIRST_KEY = "5a" * 35 + "a5"
SERVICES = ("--service-cidr=10.96.0.0/16", "--service-cidr=fd00:96::/112")


class Lab:
    """Three nodes, two pods each; every pod answers on UDP port 7."""

    def __init__(self, work: Path, *flags: str) -> None:
        self.network = Network(3)
        self.cluster = Cluster(work / "cluster", self.network)
        self.echoes: dict[str, Echo] = {}
        for node in self.network.nodes:
            for number, letter in ((10, "a"), (11, "b")):
                self.add_pod(f"p{node.index}{letter}", node.index, number, bridge="cni0" if node.index == 3 else None)
        self._work, self._flags = work, flags
        # One node attaches its programs as kernels without TCX have to, one has its node ids in other bits.
        own = {"n2": ("--tc-attach=clsact",), "n3": ("--node-mark-mask=0x0fff0000",)}
        self.daemons = {
            node.name: Daemon(node.name, self.cluster, work, *flags, *own.get(node.name, ()))
            for node in self.network.nodes
        }

    def join(self) -> Node:
        """Let one more node join: its network, its Node object, its daemon; give the node when it is ready."""
        node = self.network.add_node()
        self.cluster.node(node)
        daemon = self.daemons[node.name] = Daemon(node.name, self.cluster, self._work, *self._flags)
        daemon.start()
        daemon.wait_ready()
        return node

    def leave(self, node: Node) -> None:
        """Let a node leave for good."""
        daemon = self.daemons.pop(node.name)
        daemon.stop()
        done = daemon.uninstall()
        assert done.returncode == 0, done.stderr
        self.cluster.delete_node(node.name)
        self.network.delete_node(node)

    @contextmanager
    def silent_node(self) -> Iterator[Pod]:
        """Have a node n4 with a managed pod p4a that answers, and no daemon; give the pod."""
        node = self.network.add_node()
        self.cluster.node(node)
        pod = self.add_pod("p4a", node.index, 10)
        self.wait_managed(pod.address(4))
        try:
            yield pod
        finally:
            self.delete_pod("p4a")
            self.cluster.delete_node(node.name)
            self.network.delete_node(node)

    def add_pod(
        self, name: str, node: int, number: int, bridge: str | None = None, labels: dict[str, str] | None = None
    ) -> Pod:
        pod = self.network.add_pod(name, self.network.nodes[node - 1], number, bridge)
        self.cluster.pod(pod, labels)
        self.echoes[name] = Echo(pod)
        return pod

    def delete_pod(self, name: str) -> None:
        self.cluster.delete_pod(name)
        self.echoes.pop(name).close()
        self.network.delete_pod(name)

    def pod(self, name: str) -> Pod:
        return self.network.pods[name]

    def managed(self, node: str) -> set[str]:
        """Give the addresses of managed pods that a node's pod maps hold."""
        return self.daemons[node].managed()

    def candidates(self, node: str) -> set[str]:
        """Give the addresses there that DNAT may turn into a pod's."""
        return self.daemons[node].pod_map().keys() - self.managed(node)

    def counters(self, node: str) -> dict[str, int]:
        from kmesh_bpf import open_maps  # noqa: PLC0415 # in the VM, each import at the head costs seconds

        maps = open_maps(self.daemons[node].pin_root)
        try:
            return dict(maps.counters())
        finally:
            maps.close()

    def wait_managed(self, address: str, managed: bool = True) -> None:
        """Wait until all nodes agree that an address is, or is not, a managed pod's."""
        for node in self.daemons:
            wait_for(f"{address} managed={managed} on {node}", lambda n=node: (address in self.managed(n)) is managed)

    def label(self, value: str) -> None:
        self.cluster.namespace({LABEL: value} if value else {})
        for pod in self.network.pods.values():
            self.wait_managed(pod.address(4), managed=bool(value))

    def wait_spi(self, spi: int) -> None:
        names = self.daemons
        wait_for(f"all announce SPI {spi}", lambda: all(self.cluster.spi(name) == spi for name in names))

    def begin(self) -> None:
        """Store the first key, start every daemon, wait until all are ready and announced."""
        stored = self.cluster.kmeshctl("secret", "--key=" + FIRST_KEY)
        assert stored.returncode == 0, stored.stderr
        for daemon in self.daemons.values():
            daemon.start()
        for daemon in self.daemons.values():
            daemon.wait_ready()
        self.wait_spi(1)

    def close(self) -> None:
        """Stop what runs, remove the namespaces."""
        for daemon in self.daemons.values():
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop()
        for echo in self.echoes.values():
            echo.close()
        self.network.close()

# SPDX-License-Identifier: Apache-2.0
"""The cluster as a folder of manifests, as ``kubectl get -o yaml`` prints them, and the daemons that live on it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.lab.network import Network, Node, Pod

if TYPE_CHECKING:
    from kmesh_bpf.core.state import PodFlags

ROOT = Path(__file__).resolve().parents[2]
PINS = Path("/sys/fs/bpf")
LABEL = "istio.io/dataplane-mode"
PATIENCE = 400.0
"""Seconds that a daemon may take until it is ready, under emulation; whoever knows how slow the machine is gives more."""


def wait_for(what: str, true: Callable[[], bool], seconds: float = 90.0) -> float:
    """Wait until something is true; give how long it took.

    A look that takes long is taken less often: what is waited for needs the processors.
    """
    start = looked = time.monotonic()
    while not true():
        now = time.monotonic()
        if now - start > seconds:
            raise TimeoutError(f"after {seconds:.0f} s: {what}")
        time.sleep(min(max(0.05, 3 * (now - looked)), 5.0))
        looked = time.monotonic()
    return time.monotonic() - start


def node_manifest(node: Node, pod_cidrs: bool = True) -> dict[str, Any]:
    """Give a Node as its kubelet and the node-ipam controller write it."""
    spec = {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)} if pod_cidrs else {}
    status = {
        "addresses": [{"type": "InternalIP", "address": address} for address in node.addresses],
        "nodeInfo": {"bootID": f"b007{node.index:04d}-0000-4000-8000-000000000000"},
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}, "spec": spec, "status": status}


def service_manifest(name: str, cluster_ip: str | None = None, balanced: Sequence[str] = ()) -> dict[str, Any]:
    """Give a Service; ``balanced``: addresses that a load balancer has for it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "LoadBalancer" if balanced else "ClusterIP", "clusterIP": cluster_ip, "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": address} for address in balanced]}},
    }


def pod_manifest(pod: Pod, labels: dict[str, str] | None = None, phase: str = "Running", **spec: Any) -> dict[str, Any]:
    """Give a Pod as its kubelet tells of it; ``containers`` are names, ``nodeName`` is where it runs unless given."""
    containers = spec.pop("containers", ["app"])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "labels": labels or {}},
        "spec": {
            "nodeName": pod.node,
            "containers": [{"name": name, "image": "lab"} for name in containers],
            **spec,
        },
        "status": {
            "phase": phase,
            "podIP": pod.address(4),
            "podIPs": [{"ip": str(one)} for one in pod.addresses],
        },
    }


class Cluster:
    """The folder: a file an object."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.namespace({})
        for node in network.nodes:
            self.node(node)

    def _write(self, name: str, manifest: dict[str, Any]) -> None:
        draft = self.folder / f".{name}"
        draft.write_text(yaml.safe_dump(manifest))
        draft.rename(self.folder / f"{name}.yaml")

    def apply(self, name: str, manifest: dict[str, Any]) -> None:
        """Write any other object, in a file of that name."""
        self._write(name, manifest)

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.yaml").unlink(missing_ok=True)

    def namespace(self, labels: dict[str, str]) -> None:
        metadata = {"name": "default", "labels": {"kubernetes.io/metadata.name": "default", **labels}}
        self._write("namespace-default", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def node(self, node: Node, pod_cidrs: bool = True) -> None:
        self._write(f"node-{node.name}", node_manifest(node, pod_cidrs))

    def delete_node(self, name: str) -> None:
        (self.folder / f"node-{name}.yaml").unlink()

    def publish(self, info: dict[str, Any]) -> None:
        """Write a KmeshNodeInfo as the daemon of another make would."""
        self._write(f"kmeshnodeinfo-{info['metadata']['name']}", info)

    def withdraw(self, node: str) -> None:
        (self.folder / f"kmeshnodeinfo-{node}.yaml").unlink()

    def pod(self, pod: Pod, labels: dict[str, str] | None = None, phase: str = "Running", **spec: Any) -> None:
        self._write(f"pod-{pod.name}", pod_manifest(pod, labels, phase, **spec))

    def put(self, manifest: dict[str, Any]) -> None:
        """Write any object, in a file of its own."""
        self._write(f"{manifest['kind'].lower()}-{manifest['metadata']['name']}", manifest)

    def delete_pod(self, name: str) -> None:
        (self.folder / f"pod-{name}.yaml").unlink()

    def info(self, node: str) -> dict[str, Any] | None:
        path = self.folder / f"kmeshnodeinfo-{node}.yaml"
        return yaml.safe_load(path.read_text()) if path.exists() else None

    def spi(self, node: str) -> int:
        info = self.info(node)
        return info["spec"]["spi"] if info else 0

    def kmeshctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kmeshctl, within this process: under emulation its start takes seconds, of which this is no test."""
        from kmesh.kmeshctl import cli  # noqa: PLC0415 # in the VM, each import at the head costs seconds

        out, errors = io.StringIO(), io.StringIO()
        command = ["--manifests", str(self.folder), *arguments]
        status = cli.main(command, io.StringIO(), out, errors)
        return subprocess.CompletedProcess(command, status, out.getvalue(), errors.getvalue())


class Daemon:
    """The daemon of one node, started as the guide says, in the node's network namespace."""

    def __init__(self, node: str, cluster: Cluster, logs: Path, *flags: str) -> None:
        self.node = node
        self.pin_root = PINS / f"kmesh-{node}"
        self.log = logs / f"{node}.log"
        self.state_dir = logs / f"state-{node}"
        self._cluster, self._flags = cluster, flags
        self.ahead: tuple[str, ...] = ()
        """A command that runs the command which follows it, in another surrounding."""
        self.patience = PATIENCE
        self.process: subprocess.Popen[bytes] | None = None

    def _command(self, *arguments: str) -> list[str]:
        script = str(ROOT / "scripts/start_kmesh.sh")
        where = ["--manifests", str(self._cluster.folder), "--pin-root", str(self.pin_root)]
        where += ["--state-dir", str(self.state_dir)]
        # Not `ip netns exec`: that remounts /sys, and with it bpffs disappears.
        return ["nsenter", f"--net=/run/netns/{self.node}", *self.ahead, script, *arguments, *where]

    def start(self, *flags: str) -> None:
        """Start it, with its own flags and for this time with these."""
        guide = ("--mode=dual-engine", "--enable-bypass=false", "--enable-ipsec=true", "--log-level=debug")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(*guide, *self._flags, *flags),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "NODE_NAME": self.node},
            )

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_ready(self, seconds: float | None = None) -> float:
        def ready() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the daemon of {self.node} ended with {self.process.returncode}:\n{self.text()}")
            return " ready: " in self.text()

        try:
            return wait_for(f"the daemon of {self.node} is not ready", ready, seconds or self.patience)
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n{self.text()[-3000:]}") from error

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.log.rename(self.log.with_suffix(f".{time.monotonic_ns()}.log"))
        return status

    def pod_map(self) -> dict[str, PodFlags]:
        """Give what the node's pod maps hold, by address."""
        from kmesh_bpf import open_maps  # noqa: PLC0415 # in the VM, each import at the head costs seconds

        maps = open_maps(self.pin_root)
        try:
            return {str(address): flags for address, flags in maps.pods().items()}
        finally:
            maps.close()

    def managed(self) -> set[str]:
        """Give the addresses of managed pods that the node knows, its own and others'."""
        return {address for address, flags in self.pod_map().items() if flags & 3}  # LOCAL, REMOTE

    def uninstall(self) -> subprocess.CompletedProcess[str]:
        return self._once("uninstall")

    def boot_guard(self) -> subprocess.CompletedProcess[str]:
        """Do what is done early in a boot, before the daemon can be started."""
        return self._once("boot-guard")

    def _once(self, command: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "NODE_NAME": self.node}
        return subprocess.run(self._command(command), capture_output=True, text=True, check=False, env=env)

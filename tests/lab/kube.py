# SPDX-License-Identifier: Apache-2.0
"""The lab's nodes as a Kubernetes cluster: a real API server on the wire, daemons in it as pods of our DaemonSet would be."""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kmesh.cluster.kubernetes.resources import Collection

from tests.image.container import Spec, confined
from tests.lab import objects
from tests.lab.apiserver import LESS_WORK, ApiServer, RefusedError
from tests.lab.cluster import ROOT, Daemon, node_manifest, pod_manifest
from tests.lab.network import Network, Node, Pod, run

ADDRESS, DEVICE = "10.10.0.254", "kmesh-api"
IN_A_POD = """
mount --bind "$BPFFS" /sys/fs/bpf
mkdir -p /var/lib/kmesh-ipsec && mount --bind "$STATE" /var/lib/kmesh-ipsec
mkdir -p /run/secrets && mount -t tmpfs tmpfs /run/secrets && mkdir -p /run/secrets/kubernetes.io
ln -s "$ACCOUNT" /run/secrets/kubernetes.io/serviceaccount
cd "$SCRIPTS"
exec {confined} {command}
"""
"""What a kubelet sees to: the node's bpffs and state folder, the account's token, the DaemonSet's capabilities; then the command."""


class KubeCluster:
    """A cluster with what ``kubectl apply -k deploy/base`` puts into it, and Nodes and Pods as kubelets write them.

    ``meanwhile`` is called while the API server starts.
    """

    def __init__(self, folder: Path, network: Network, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._network = network
        network.attach_host(DEVICE, ADDRESS)
        self.server = ApiServer(folder / "api", ApiServer.available(), address=ADDRESS)
        self.server.start(meanwhile)
        self.kubeconfig = self.server.kubeconfig("admin", self.server.token)
        self.server.kubectl("apply", "--server-side", "--validate=strict", "-k", str(ROOT / "deploy/base"))
        self.server.kubectl("wait", "--for=condition=Established", "crd/kmeshnodeinfos.kmesh.net", "--timeout=120s")
        self._accounts = folder / "accounts"
        for node in network.nodes:
            self.node(node)
            account = self.account(node.name)
            account.mkdir(parents=True)
            (account / "ca.crt").write_bytes(self.server.certificate.read_bytes())
            (account / "namespace").write_text("kmesh-system")
        self.renew_tokens()

    @property
    def environment(self) -> dict[str, str]:
        """What an operator has at hand: kubectl, kmeshctl, start_kmesh.sh, a kubeconfig."""
        path = f"{ROOT / '.venv/bin'}:{self.server.binaries}:{os.environ['PATH']}"
        return {**os.environ, **LESS_WORK, "PATH": path, "KUBECONFIG": str(self.kubeconfig)}

    def account(self, node: str) -> Path:
        """Give the folder that the daemon's pod on a node has its account in."""
        return self._accounts / node

    def renew_tokens(self) -> None:
        for node in self._network.nodes:
            account = self.account(node.name)
            (account / ".token").write_text(objects.daemon_token(self.server, node.name))
            (account / ".token").rename(account / "token")

    def node(self, node: Node, pod_cidrs: bool = True) -> None:
        objects.put(self.server, node_manifest(node, pod_cidrs))

    def pod(self, pod: Pod, labels: dict[str, str] | None = None, phase: str = "Running", **spec: Any) -> None:
        objects.put(self.server, pod_manifest(pod, labels, phase, **spec))

    def put(self, manifest: dict[str, Any]) -> None:
        objects.put(self.server, manifest)

    def many_pods(self, pods: Sequence[Pod]) -> list[dict[str, Any]]:
        """Give what an API server stores of pods that are alike; none of them is there afterwards."""
        first = pod_manifest(pods[0])
        stored = objects.put(self.server, first)
        objects.delete(self.server, first)
        return [
            {
                **stored,
                "metadata": {**stored["metadata"], "name": pod.name, "uid": str(uuid.uuid4())},
                "status": {**stored["status"], **pod_manifest(pod)["status"]},
            }
            for pod in pods
        ]

    def delete_pod(self, name: str) -> None:
        objects.delete(self.server, {"kind": "Pod", "metadata": {"name": name, "namespace": "default"}})

    def namespace(self, labels: dict[str, str]) -> None:
        self.sh(" ".join(["kubectl label --overwrite namespace default", *(f"{k}={v}" for k, v in labels.items())]))

    def sh(self, line: str) -> str:
        """Run a line of shell as the operator; give what it prints."""
        done = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            cwd=ROOT / "scripts",
        )
        assert done.returncode == 0, f"{line}: status {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def info(self, node: str) -> dict[str, Any] | None:
        try:
            return self.server.request("GET", Collection("KmeshNodeInfo", "kmesh-system").item(node))
        except RefusedError as error:
            if error.code != 404:
                raise
            return None

    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.request("GET", Collection("Event", "default").path)["items"]
        return found

    def condition(self, node: str, name: str) -> dict[str, Any]:
        info = self.info(node) or {}
        return next((one for one in info.get("status", {}).get("conditions", ()) if one["type"] == name), {})

    def spi(self, node: str) -> int:
        info = self.info(node)
        return info["spec"]["spi"] if info else 0

    def kmeshctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kmeshctl", *arguments], capture_output=True, text=True, check=False, env=self.environment
        )

    def close(self) -> None:
        self.server.stop()
        self._network.detach_host(DEVICE)


class KubeDaemon(Daemon):
    """The daemon of one node, in the node's network and a mount namespace of its own, with exactly ``line``."""

    def __init__(self, node: str, cluster: KubeCluster, logs: Path, line: str) -> None:
        super().__init__(node, cluster, logs)  # type: ignore[arg-type] # of a cluster it wants a folder only to start
        self._kube, self._line = cluster, line
        # The node's bpffs outlives its daemon.
        self._bpffs = logs / f"bpffs-{node}"
        self._bpffs.mkdir()
        run(f"mount -t bpf bpf {self._bpffs}")
        self.pin_root = self._bpffs / "kmesh-ipsec"
        self.state = logs / f"state-{node}"
        self.state.mkdir()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = self._in_a_pod(self._line, stdout=log, stderr=log)

    def uninstall(self) -> subprocess.CompletedProcess[str]:
        process = self._in_a_pod(
            "./start_kmesh.sh uninstall", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        """Unmount the node's bpffs: with the pins, what they hold goes too."""
        run(f"umount {self._bpffs}")

    def _in_a_pod(self, line: str, **streams: Any) -> subprocess.Popen[Any]:
        environment = {
            "PATH": os.environ["PATH"],
            "NODE_NAME": self.node,
            "KUBERNETES_SERVICE_HOST": ADDRESS,
            "KUBERNETES_SERVICE_PORT": str(self._kube.server.port),
            "ACCOUNT": str(self._kube.account(self.node)),
            "SCRIPTS": str(ROOT / "scripts"),
            "BPFFS": str(self._bpffs),
            "STATE": str(self.state),
        }
        command = ["nsenter", f"--net=/run/netns/{self.node}", "unshare", "--mount", "bash", "-ec"]
        confinement = shlex.join(confined(Spec.of_daemonset().capabilities))
        script = IN_A_POD.format(confined=confinement, command=line)
        return subprocess.Popen([*command, script], stdin=subprocess.DEVNULL, env=environment, **streams)

"""The daemon's container as the DaemonSet describes it, without a container engine: namespaces, mounts, capabilities.

Everything is read from ``deploy/base/kmesh.yaml``: what is not understood there is an error, so that nothing stands in
it untested.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("null", "zero", "full", "random", "urandom")

# What a container engine does before it starts a program; $1 is the new root.
PREPARE = """
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind{read_only} "$1"
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t tmpfs tmpfs "$1/dev"
for device in {devices}; do touch "$1/dev/$device"; mount --bind "/dev/$device" "$1/dev/$device"; done
ln -s /proc/self/fd "$1/dev/fd"
ln -s fd/0 "$1/dev/stdin"
"""


@dataclass(frozen=True)
class Spec:
    """What the DaemonSet says of its only container; ``mounts``: path in it -> kind of volume."""

    command: list[str]
    folder: str
    capabilities: frozenset[str]
    read_only: bool
    mounts: dict[str, str] = field(hash=False)

    @staticmethod
    def of_daemonset() -> Spec:
        manifests = yaml.safe_load_all((ROOT / "deploy/base/kmesh.yaml").read_text())
        pod = next(one for one in manifests if one["kind"] == "DaemonSet")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security["runAsUser"] == 0
        volumes = {one["name"]: one for one in pod["volumes"]}
        return Spec(
            command=[*container["command"], *container["args"]],
            folder=container["workingDir"],
            capabilities=frozenset(security["capabilities"]["add"]),
            read_only=security["readOnlyRootFilesystem"],
            mounts={one["mountPath"]: _kind(volumes[one["name"]]) for one in container["volumeMounts"]},
        )


def _kind(volume: dict[str, Any]) -> str:
    if volume.get("hostPath"):
        assert volume["hostPath"]["path"] == "/sys/fs/bpf"
        return "bpffs"
    (kind,) = volume.keys() - {"name"}
    return kind


@dataclass(frozen=True)
class Node:
    """What the container finds on its node: a network namespace, a bpffs, a folder that is the cluster."""

    network: str
    bpffs: Path
    cluster: Path
    name: str = "n1"


class Container:
    """One container: ``start`` it, or ``run`` it to its end. ``capabilities`` may be others than the spec's."""

    def __init__(self, root: Path, spec: Spec, node: Node, capabilities: frozenset[str] | None = None) -> None:
        self.root, self.spec, self.node = root, spec, node
        self.capabilities = spec.capabilities if capabilities is None else capabilities
        self.log = node.cluster.parent / "container.log"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120
        )

    def start(self, *flags: str) -> None:
        """Start the daemon as the DaemonSet does, with more flags."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command([*self.spec.command, *flags]), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait_for(self, text: str, seconds: float = 60.0) -> float:
        """Wait until the daemon has said something; give how long it took."""
        assert self.process is not None
        start = time.monotonic()
        while text not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() - start > seconds:
                raise TimeoutError(f"{text!r} was not said; status {self.process.poll()}:\n{self.log.read_text()}")
            time.sleep(0.05)
        return time.monotonic() - start

    def stop(self) -> int:
        """End it as a kubelet does; give its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def status(self, name: str) -> str:
        """Give a field of the daemon's ``/proc/PID/status``."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
        assert found
        return found[1]

    def _command(self, command: list[str] | tuple[str, ...]) -> list[str]:
        # Each step replaces the one before it: the process that was started becomes the daemon.
        script = [PREPARE.format(read_only=",ro" if self.spec.read_only else "", devices=" ".join(DEVICES))]
        script += [self._mount(kind, path) for path, kind in self.spec.mounts.items()]
        # The folder that is the cluster takes the place of an API server.
        script.append(
            f'mount -t tmpfs tmpfs "$1/mnt"; mkdir "$1/mnt/cluster"; mount --bind {self.node.cluster} "$1/mnt/cluster"'
        )
        script.append('root=$1; shift; exec chroot "$root" "$@"')
        bounding = ",".join(["-all", *(f"+{name.lower()}" for name in sorted(self.capabilities))])
        inside = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]
        inside += ["env", "-i", f"--chdir={self.spec.folder}", f"PATH={PATH}", f"NODE_NAME={self.node.name}", *command]
        enter = ["nsenter", f"--net=/run/netns/{self.node.network}", "unshare", "--mount"]
        return [*enter, "bash", "-c", "\n".join(script), "container", str(self.root), *inside]

    def _mount(self, kind: str, path: str) -> str:
        match kind:
            case "bpffs":
                return f'mount --bind {self.node.bpffs} "$1{path}"'
            case "emptyDir":
                return f'mount -t tmpfs tmpfs "$1{path}"'
        raise ValueError(f"the test knows no volume of kind {kind}")

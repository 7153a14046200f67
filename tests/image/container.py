# SPDX-License-Identifier: Apache-2.0
"""The daemon's container as the DaemonSet describes it, without a container engine: namespaces, mounts, capabilities.

Everything is read from ``deploy/base/kmesh.yaml``. What is neither applied here nor named in ``ELSEWHERE`` is an error,
so that nothing comes into it unseen.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("null", "zero", "full", "random", "urandom")

APPLIED = {
    "pod": {"containers", "hostNetwork", "terminationGracePeriodSeconds", "volumes"},
    "container": {"args", "command", "env", "securityContext", "volumeMounts", "workingDir"},
    "securityContext": {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem", "runAsUser"},
    "capabilities": {"add", "drop"},
    "volumeMount": {"mountPath", "name"},
}
ELSEWHERE = {
    # tests/deploy: the account's rights, and what a scheduler and a kubelet make of the rest. Nobody: dnsPolicy.
    "pod": {"affinity", "dnsPolicy", "nodeSelector", "priorityClassName", "serviceAccountName", "tolerations"},
    # tests/deploy. Nobody: the names of image and container.
    "container": {"image", "livenessProbe", "name", "ports", "readinessProbe", "resources", "startupProbe"},
    # Nobody: it takes an engine, and a kernel with these modules.
    "securityContext": {"appArmorProfile", "seLinuxOptions", "seccompProfile"},
    # tests/deploy.
    "volumeMount": {"mountPropagation"},
}

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
    """What a pod says of its only container; ``mounts``: path in it -> kind of volume, ``grace``: seconds to end in."""

    command: list[str]
    folder: str
    capabilities: frozenset[str]
    read_only: bool
    grace: float
    mounts: dict[str, str] = field(hash=False)

    @staticmethod
    def of_daemonset() -> Spec:
        """Read the DaemonSet's pod."""
        manifests = yaml.safe_load_all((ROOT / "deploy/base/kmesh.yaml").read_text())
        return Spec.of_pod(next(one for one in manifests if one["kind"] == "DaemonSet")["spec"]["template"]["spec"])

    @staticmethod
    def of_pod(pod: dict[str, Any]) -> Spec:
        """Read a pod.

        Raises:
            ValueError: something in it is neither applied here nor known to be looked at elsewhere.

        """
        _understood("pod", pod)
        (container,) = pod["containers"]
        _understood("container", container)
        security = container["securityContext"]
        _understood("securityContext", security)
        _understood("capabilities", security["capabilities"])
        # What is always done in one way here must be asked for in this way.
        for name, value, done in (
            ("hostNetwork", pod["hostNetwork"], True),
            ("env", [one["name"] for one in container["env"]], ["NODE_NAME"]),
            ("runAsUser", security["runAsUser"], 0),
            ("allowPrivilegeEscalation", security["allowPrivilegeEscalation"], False),
            ("drop", security["capabilities"]["drop"], ["ALL"]),
        ):
            if value != done:
                raise ValueError(f"the test knows {name} as {done} only, not {value}")
        volumes = {one["name"]: _kind(one) for one in pod["volumes"]}
        for mount in container["volumeMounts"]:
            _understood("volumeMount", mount)
        return Spec(
            command=[*container["command"], *container["args"]],
            folder=container["workingDir"],
            capabilities=frozenset(security["capabilities"]["add"]),
            read_only=security["readOnlyRootFilesystem"],
            grace=pod["terminationGracePeriodSeconds"],
            mounts={one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]},
        )


def confined(capabilities: Iterable[str]) -> list[str]:
    """Give what to put before a command so that it has these capabilities, and no way to others."""
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in sorted(capabilities))])
    return ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]


def _understood(what: str, found: dict[str, Any]) -> None:
    strange = found.keys() - APPLIED[what] - ELSEWHERE.get(what, set())
    if strange:
        raise ValueError(f"{what}: the test knows nothing of {', '.join(sorted(strange))}")


def _kind(volume: dict[str, Any]) -> str:
    match volume:
        case {"hostPath": {"path": "/sys/fs/bpf"}}:
            return "bpffs"
        case {"hostPath": {"path": "/var/lib/kmesh-ipsec", "type": "DirectoryOrCreate"}}:
            return "state"
        case {"emptyDir": settings} if not settings:
            return "emptyDir"
    raise ValueError(f"the test knows no volume like {volume}")


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
        """End it as a kubelet does, which does not wait for ever; give its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(self.spec.grace)

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
        inside = [*confined(self.capabilities), "env", "-i", f"--chdir={self.spec.folder}", f"PATH={PATH}"]
        inside += [f"NODE_NAME={self.node.name}", *command]
        enter = ["nsenter", f"--net=/run/netns/{self.node.network}", "unshare", "--mount"]
        return [*enter, "bash", "-c", "\n".join(script), "container", str(self.root), *inside]

    def _mount(self, kind: str, path: str) -> str:
        return f'mount --bind {self.node.bpffs} "$1{path}"' if kind == "bpffs" else f'mount -t tmpfs tmpfs "$1{path}"'

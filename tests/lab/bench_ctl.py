# SPDX-License-Identifier: Apache-2.0
"""What it costs to start kmeshctl, beside kubectl doing the like: alternating, in one run, against one API server."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.lab import objects
from tests.lab.apiserver import ROOT, ApiServer
from tests.unit.cluster import kube

KMESHCTL = str(ROOT / ".venv/bin/kmeshctl")
NODES = 3
GOAL = 2.0
"""Times kubectl's: a person takes either for at once."""


def taken(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; give milliseconds of processor time, and by the clock."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 1), done.stderr
    return ((after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)) * 1e3, wall * 1e3


def starts(rounds: int) -> None:
    """Print medians of both, and their ratios."""
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder), ApiServer.available()) as server:
        server.kubectl("apply", "-f", str(ROOT / "deploy/base/crd.yaml"))
        server.kubectl("wait", "--for=condition=Established", "crd/kmeshnodeinfos.kmesh.net")
        for one in (kube.namespace("kmesh-system"), kube.namespace("default"), kube.secret(kube.entry(1))):
            objects.put(server, one)
        for index in range(1, NODES + 1):
            objects.put(server, kube.node(index))
            objects.put(server, kube.node_info(index))
        kubectl = str(server.binaries / "kubectl")
        environment = {"PATH": os.environ["PATH"], "HOME": folder}
        environment["KUBECONFIG"] = str(server.kubeconfig("admin", server.token))
        pairs = {
            "version": ([KMESHCTL, "version"], [kubectl, "version", "--client"]),
            "status, and kubectl get nodes": ([KMESHCTL, "status"], [kubectl, "get", "nodes"]),
        }
        for what, commands in pairs.items():
            found: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
            for number in range(rounds + 1):
                for which, command in enumerate(commands):
                    measured = taken(command, environment)
                    if number:  # the first reads files and makes caches
                        found[which].append(measured)
            for unit, name in enumerate(("processor time", "by the clock")):
                ours, theirs = (median(one[unit] for one in side) for side in found)
                missed = f", goal {GOAL:g}{' missed' if ours > GOAL * theirs else ''}" if not unit else ""
                print(
                    f"{what:<32} {name:<15} {ours:7.0f} ms {theirs:7.0f} ms  {ours / theirs:5.2f} x{missed}", flush=True
                )

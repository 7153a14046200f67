# SPDX-License-Identifier: Apache-2.0
"""What is read beside the packets: counters of the kernel and of our programs, and what nodes say of themselves."""

from __future__ import annotations

import io
import json
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tests.faults.flows import Span, span
from tests.faults.rows import ALL, Machine
from tests.lab.cluster import ROOT
from tests.lab.lab import Lab
from tests.lab.network import inside, socket_in

HEALTH_PORT = 15020
LOOK = 0.7
"""Seconds between two questions to a node's /readyz."""
SENTENCE = 240


class TrafficProcess:
    """The constant traffic; see :mod:`tests.faults.traffic`."""

    def __init__(self, lab: Lab) -> None:
        pods = [
            {"name": pod.name, "node": pod.node, "addresses": [str(one) for one in pod.addresses], "device": pod.device}
            for pod in lab.network.pods.values()
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.traffic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._ask(pods)

    def span(self, start: float, end: float) -> Span:
        return span(self._ask([start, end]))

    def _ask(self, what: object) -> Mapping[str, object]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the traffic has ended: see its traceback above")
        answer: Mapping[str, object] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()


def xfrm_errors() -> dict[str, int]:
    """Give /proc/net/xfrm_stat of each node, by node and counter."""
    found = {}
    for node in ALL:
        with suppress(OSError), inside(node):
            for line in Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines():
                name, value = line.split()
                found[f"{node} {name}"] = int(value)
    return found


def program_drops(lab: Lab) -> dict[str, int]:
    """Give what our programs dropped, by node and counter; a node whose maps are not there has dropped nothing."""
    from kmesh_bpf import KmeshBpfError  # noqa: PLC0415 # in the VM, each import at the head costs seconds

    found = {}
    for node in ALL:
        with suppress(KmeshBpfError):
            found |= {f"{node} {name}": n for name, n in lab.counters(node).items() if name.startswith("dropped")}
    return found


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Give what is another number than before, with both."""
    return {name: (before.get(name, 0), value) for name, value in after.items() if value != before.get(name, 0)}


class Voices:
    """What the nodes say while the block runs: /readyz again and again, and each line that a log warns with."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stop = threading.Event()
        self._found: dict[str, None] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._read = {node: len(_logs(lab, node)) for node in ALL}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def said(self) -> tuple[str, ...]:
        return tuple(self._found)

    def status(self) -> None:
        """Ask `kmeshctl status`, and keep what it finds wrong."""
        from kmesh.kmeshctl.cli import main  # noqa: PLC0415 # as above

        out = io.StringIO()
        main(["status", "--manifests", str(self._lab.cluster.folder), "-o", "json"], sys.stdin, out, out, {})
        with suppress(ValueError):
            found = json.loads(out.getvalue())["findings"]
            for one in found:
                text = one if isinstance(one, str) else f"{one['node']}: {one['sentence']}"
                self._keep("status", text)

    def _listen(self) -> None:
        while not self._stop.wait(LOOK):
            for node in ALL:
                for sentence in readiness(node):
                    self._keep(f"{node} /readyz", sentence)
        for node in ALL:
            for line in _logs(self._lab, node)[self._read[node] :].splitlines():
                if found := re.search(r"\b(?:WARNING|ERROR)\b:? *(.*)", line):
                    self._keep(f"{node} log", found[1])

    def _keep(self, who: str, text: str) -> None:
        # Of sentences that differ in numbers only, the first.
        known = {re.sub(r"\d+", "0", one) for one in self._found}
        text = f"{who}: {text[:SENTENCE]}"
        if re.sub(r"\d+", "0", text) not in known:
            self._found[text] = None


def _logs(lab: Lab, node: str) -> str:
    """Give all that a node's daemons have logged; the lab puts a log aside when its daemon ends."""
    log = lab.daemons[node].log
    aside = sorted(log.parent.glob(f"{node}.*.log"))
    return "".join(one.read_text() for one in [*aside, log] if one.exists())


def readiness(node: str) -> tuple[str, ...]:
    """Ask a node's daemon why it is not ready; one that does not answer is not running."""
    try:
        with socket_in(node, socket.AF_INET, socket.SOCK_STREAM) as asked:
            asked.settimeout(2)
            asked.connect(("127.0.0.1", HEALTH_PORT))
            asked.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            answer = b""
            while data := asked.recv(65536):
                answer += data
        return tuple(json.loads(answer.partition(b"\r\n\r\n")[2])["reasons"])
    except (OSError, ValueError):
        return ("the daemon does not answer",)


def loop_seconds(clock: Callable[[], float] = time.perf_counter) -> float:
    """Give how long a fixed loop takes here, the best of five: what emulation costs is the relation of two of these.

    Of the host by its processor's time: what others do there slows down the emulation, and is no part of what the loop costs.
    """
    best = 10.0
    for _ in range(5):
        began = clock()
        sum(number * number % 7 for number in range(100_000))
        best = min(best, clock() - began)
    return best


def emulated() -> bool:
    """Tell whether this processor is QEMU's."""
    return "QEMU TCG" in Path("/proc/cpuinfo").read_text()


def machine(commit: str, slowness: float) -> Machine:
    """Tell what this is; see :class:`Machine`."""
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    return Machine(commit, platform.release(), when, emulated(), slowness)

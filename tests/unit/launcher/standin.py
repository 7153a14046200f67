# SPDX-License-Identifier: Apache-2.0
"""A daemon over a folder of manifests and a kernel in memory, and records made from views by real passes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import yaml
from kmesh.cluster import secret
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.status import STATUS_ANNOTATION
from kmesh.launcher.announcer import Announcer
from kmesh.launcher.config import parse
from kmesh.launcher.daemon import Daemon
from kmesh.telling.peers import Peers
from kmesh.telling.readiness import judged
from kmesh.telling.record import Bounds, KeyRecord, Pass, Record, after_pass, in_series, surveyed
from kmesh.telling.recorder import Recorder

from kmesh_bpf import FakeKernel, Key, Options, reconcile
from tests.unit.cluster import kube
from tests.unit.core import mesh

BOUNDS = Bounds(silence=90.0, view_age=60.0)
COUNTERS, XFRM_ERRORS = {"marked": 7}, {"XfrmInNoStates": 3}


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Node:
    """Node n1, ``others`` that have published a KmeshNodeInfo, and a managed pod on each."""

    def __init__(self, folder: Path, others: int = 2) -> None:
        self.folder = folder
        self.clock = Clock()
        self.memory = FakeKernel(mesh.LINKS, self.clock)
        self.memory.errors = {"XfrmInNoStates": 3}
        label = {"istio.io/dataplane-mode": "Kmesh"}
        self.put(kube.namespace("default", **label))
        self.put(kube.node(1))
        for index in range(1, others + 2):
            self.put(kube.pod(f"web{index}", index))
        for index in range(2, others + 2):
            self.put(kube.node_info(index))
        self.source = FolderCluster(folder, self.clock)
        self.told, self.reported, self.written = [], [], []
        outbox = SimpleNamespace(tell=self.told.append, report=self.reported.append, conditions=self.written.append)
        self.recorder = Recorder("n1", self.source.age, outbox, BOUNDS, self.clock)
        self.restart()

    def restart(self, *flags: str) -> None:
        self.announcer = Announcer(self.source, self.clock)
        self.daemon = Daemon(parse(flags, "n1", "host"), self.source, self.memory, self.recorder, self.announcer)

    def put(self, manifest) -> None:
        name = f"{manifest['kind']}-{manifest['metadata']['name']}".lower()
        (self.folder / f".{name}").write_text(yaml.safe_dump(manifest))
        (self.folder / f".{name}").rename(self.folder / f"{name}.yaml")

    def key(self, number: int) -> None:
        def change(before, objects):
            held = secret.parse_keys(before) if before is not None else None
            announced = {info.name: info.spi for info in objects.node_infos if info.name == "n1"}
            return secret.render(secret.next_keys(held, announced, Key(kube.material(number))))

        FolderCluster(self.folder).change_secret(change)

    def steps(self, number: int = 3) -> None:
        for _ in range(number):
            self.clock.now += 1
            self.step()

    def step(self) -> float:
        """Do a pass, and what threads and the wait after it do; give that wait."""
        wait = self.daemon.step()
        self.announcer.write()
        if self.recorder.due() <= 0:
            self.recorder.tell()
        return wait

    def report(self, number: int = -1) -> dict:
        """Give what a Lease said."""
        return json.loads(self.reported[number]["metadata"]["annotations"][STATUS_ANNOTATION])

    def condition(self, kind: str) -> str:
        """Give what was written of a condition."""
        return next(one["status"] for one in self.written[-1]["status"]["conditions"] if one["type"] == kind)

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.told]

    def ready(self) -> tuple[int, list[str]]:
        page = self.recorder.answer("/readyz")
        return page.status, json.loads(page.body)["reasons"]

    def metric(self, name: str) -> float:
        lines = self.recorder.answer("/metrics").body.splitlines()
        return float(next(line for line in lines if line.startswith(f"kmesh_ipsec_{name} ")).split()[-1])


@dataclass
class Passes:
    """Passes over views, and the record that they make."""

    clock: Clock = field(default_factory=Clock)
    options: Options = field(default_factory=Options)
    kernel: FakeKernel = field(init=False)
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = FakeKernel(mesh.LINKS, self.clock)
        self.restart()

    def restart(self) -> None:
        """Forget all that was told before."""
        self.record = Record("n1", self.clock.now, bounds=BOUNDS)
        self.peers = Peers()

    def run(
        self, view, key: KeyRecord | None = None, seconds: float = 0.02, counters=COUNTERS, xfrm_errors=XFRM_ERRORS
    ) -> Record:
        report = reconcile(self.kernel, view, self.options, self.clock, lambda: "fresh".ljust(36, "0"))
        key = key or KeyRecord(max(view.keys, default=0), view.announced)
        before, now = self.record, self.clock.now
        record = after_pass(before, Pass(view, report, key, (), now, seconds))
        self.peers.note(report)
        peers, sums = self.peers.take(view, report)
        record = judged(surveyed(record, peers, sums, counters, xfrm_errors), now, 0.0)
        self.record = in_series(before, record)
        return self.record

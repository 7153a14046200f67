"""A daemon over a folder of manifests and a kernel in memory, and records made from views by real passes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import yaml
from kmesh.cluster import secret
from kmesh.cluster.manifests import FolderCluster
from kmesh.launcher.config import parse
from kmesh.launcher.daemon import Daemon
from kmesh.launcher.readiness import Bounds
from kmesh.launcher.record import KeyRecord, Record, after_pass
from kmesh.launcher.recorder import Recorder

from kmesh_bpf import FakeKernel, Key, Options, reconcile
from tests.unit.cluster import kube
from tests.unit.core import mesh

BOUNDS = Bounds(silence=90.0, view_age=60.0)


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
        self.daemon = Daemon(parse([], "n1", "host"), self.source, self.memory, self.recorder)

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
            self.daemon.step()

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
    kernel: FakeKernel = field(init=False)
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = FakeKernel(mesh.LINKS, self.clock)
        self.record = Record("n1", self.clock.now)

    def run(self, view, key: KeyRecord | None = None, seconds: float = 0.02, **facts) -> Record:
        report = reconcile(self.kernel, view, Options(), self.clock, lambda: "fresh".ljust(36, "0"))
        spi = max(view.keys, default=0)
        facts = {"cluster_problems": (), "counters": {"marked": 7}, "xfrm_errors": {"XfrmInNoStates": 3}} | facts
        self.record = after_pass(
            self.record,
            view,
            report,
            key or KeyRecord(spi, view.announced),
            now=self.clock.now,
            seconds=seconds,
            **facts,
        )
        return self.record

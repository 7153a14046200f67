# SPDX-License-Identifier: Apache-2.0
"""What watching a large cluster costs: memory and CPU of the source, with objects of a real server and fed ones."""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.decoding import decode_event, decode_list
from kmesh.cluster.kubernetes.resources import Collection
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.kubernetes.store import Shelf, Store
from kmesh.launcher.cli import GC_THRESHOLDS

from tests.lab import objects
from tests.lab.apiserver import ROOT, ApiServer
from tests.lab.bench_ctl import starts
from tests.unit.cluster import kube

ENROLLED = {"istio.io/dataplane-mode": "Kmesh"}
PAGE = 500
EVENTS = 20_000


def resident() -> float:
    """Give this process's resident memory in MB."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6


class Meter:
    """Prints what went by since it was made: seconds, CPU seconds, MB more."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.memory = time.monotonic(), time.process_time(), resident()

    def tell(self, what: str, count: int = 1) -> None:
        wall, cpu = time.monotonic() - self.wall, time.process_time() - self.cpu
        more = resident() - self.memory
        each = f"  ({cpu / count * 1e6:.0f} µs of CPU, {more / count * 1e6:.0f} bytes each)" if count > 1 else ""
        print(f"{what:<58}{wall:8.2f} s {cpu:8.2f} s CPU {more:+8.1f} MB{each}", flush=True)


def pod(number: int) -> dict[str, Any]:
    """Give a pod of a Deployment, with what a usual one has besides what is read."""
    name = f"shop-{number // 50}-7d4b9c6f5d-{number:06x}"
    labels = {"app": f"shop-{number // 50}", "pod-template-hash": "7d4b9c6f5d"}
    address = f"10.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    made = kube.pod(
        name, number % 5000, 0, labels=labels, addresses=[address, f"fd00:244::{number >> 16:x}:{number & 0xFFFF:x}"]
    )
    settings = [{"name": f"SETTING_{index}", "value": f"value {index}"} for index in range(20)]
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10}
    made["spec"]["containers"][0] |= {"env": settings, "livenessProbe": probe, "readinessProbe": probe}
    return made


def on_a_server(count: int) -> dict[str, Any]:
    """Measure with pods on a server; give one as the server writes it."""
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder), ApiServer.available()) as server:
        server.kubectl("apply", "-f", str(ROOT / "deploy/base/crd.yaml"))
        server.kubectl("wait", "--for=condition=Established", "crd/kmeshnodeinfos.kmesh.net")
        objects.put(server, kube.namespace("kmesh-system"))
        objects.put(server, kube.namespace("default", **ENROLLED))
        meter = Meter()
        with ThreadPoolExecutor(8) as several:
            list(several.map(lambda number: objects.put(server, pod(number)), range(count)))
        meter.tell(f"{count} pods made on the server")
        meter = Meter()
        source = KubernetesCluster(connect(str(server.kubeconfig("admin", server.token)), None, {}))
        while len(source.read().pods) < count:
            time.sleep(0.05)
        meter.tell(f"{count} pods listed", count)
        meter = Meter()
        time.sleep(10)
        meter.tell("10 seconds in which nothing happens")
        meter = Meter()
        server.request("DELETE", "/api/v1/namespaces/default/pods", objects.NOW)
        while source.read().pods:
            time.sleep(0.05)
        meter.tell(f"{count} pods deleted at once (client's part too)", count)
        source.close()
        return objects.put(server, pod(0))


def fed(sample: dict[str, Any], pods: int, nodes: int) -> None:
    """Measure with the JSON of a server's pod, a number of times."""
    text = json.dumps(sample)
    print(f"a pod is {len(text)} bytes of JSON")
    store = Store()
    shelf = Shelf(store, Collection("Pod", "default"), time.monotonic, lambda: None)
    infos = Shelf(store, Collection("KmeshNodeInfo", "kmesh-system"), time.monotonic, lambda: None)
    meter = Meter()
    for number in range(1, nodes + 1):
        manifest = kube.node_info(number)
        third, fourth = number >> 8, number & 255
        cidrs = [f"10.{32 + third}.{fourth}.0/24", f"fd00:244:{number:x}::/64"]
        manifest["spec"] |= {"addresses": [f"10.8.{third}.{fourth}", f"fd00:10::{number:x}"], "podCIDRS": cidrs}
        infos.put(manifest)
    meter.tell(f"{len(infos.objects)} KmeshNodeInfos", nodes)
    meter = Meter()
    draft = shelf.draft()
    for first in range(0, pods, PAGE):
        started = time.process_time()
        items = [sample | kept(sample, pod(number)) for number in range(first, first + PAGE)]
        page = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": items}).encode()
        del items
        meter.cpu += time.process_time() - started
        for manifest in decode_list("Pod", page)[0]:
            draft.add(manifest)
    shelf.replace(draft)
    meter.tell(f"{len(shelf.objects)} pods fed (CPU without that of making them)", pods)
    lines = [json.dumps({"type": "MODIFIED", "object": sample | kept(sample, pod(n))}).encode() for n in range(EVENTS)]
    meter = Meter()
    for line in lines:
        shelf.put(decode_event("Pod", line)[1])
    meter.tell(f"{EVENTS} events that change nothing", EVENTS)
    for what, decode in (
        ("as json does, whole", json.loads),
        ("the fields used", lambda line: decode_event("Pod", line)),
    ):
        meter = Meter()
        for line in lines:
            decode(line)
        meter.tell(f"of that, decoding, {what}", EVENTS)
    del lines, draft
    print(f"resident at last {resident():.0f} MB")
    store.close()


def kept(sample: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """Give what a pod has of its own, upon what the server added to the sample."""
    return {part: {**sample[part], **one[part]} for part in ("metadata", "spec", "status")}


def main() -> None:
    flags = argparse.ArgumentParser(prog="bench_cluster")
    for name, default in (("pods", 5000), ("fed", 100_000), ("nodes", 5000)):
        flags.add_argument(f"--{name}", type=int, default=default)
    flags.add_argument("--starts", type=int, default=0, metavar="N")
    wanted = flags.parse_args()
    if wanted.starts:
        starts(wanted.starts)
        return
    gc.set_threshold(*GC_THRESHOLDS)  # as the daemon does
    print(f"resident at first {resident():.0f} MB")
    fed(on_a_server(wanted.pods), wanted.fed, wanted.nodes)


main()

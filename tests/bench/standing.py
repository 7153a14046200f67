# SPDX-License-Identifier: Apache-2.0
"""What a daemon costs that has nothing to do: an idle hour, its memory, and a scrape of its metrics."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from kmesh.launcher.daemon import PERIOD
from kmesh.launcher.looks import AUDIT, DEAREST, LOOK, SLOWLY
from kmesh.telling.peers import Peers
from kmesh.telling.readiness import answer, judged
from kmesh.telling.record import KeyRecord, Pass, Record, after_pass, surveyed

from kmesh_bpf import Options, Reconciler
from tests.bench.audits import least, steps
from tests.bench.chain import Chain, as_the_daemon
from tests.bench.clusters import Cluster, view_of
from tests.bench.kernels import Clock, Memory, real
from tests.bench.results import Result
from tests.bench.sizes import SIZES, Size

HOUR = 3600.0
MOST_MB, MOST_KB = 110.0, 100.0
NOTHING = "pass"
IMPORTS = (
    "from kmesh.launcher import cli, daemon; from kmesh.cluster.kubernetes import connection, source; "
    "import kmesh_bpf; kmesh_bpf.LinuxKernel"
)
RESIDENT = "; print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))"


def idle(size: Size) -> Iterator[Result]:
    """Measure what an hour costs in which nothing happens: passes over what is little, looks, and audits, all in steps."""
    clock = Clock()
    cluster = Cluster(size.peers[-1], size.wide)
    with as_the_daemon(), real(clock) as kernel:
        try:
            chain = Chain(cluster, kernel, clock, Options(max_exact=size.max_exact))
            passes = chain.reconciler

            def one_pass() -> None:
                clock.now += PERIOD
                passes.doubt_rest()
                report = passes.run(cluster.view())
                assert report.converged and not report.applied

            a_pass = least(one_pass, size.passes) / 1e3
            (_, look, _), (_, audit, _) = (steps(begin, size.passes) for begin in (passes.look, passes.audit))
        finally:
            cluster.close()
    look, audit = look / 1e3, audit / 1e3
    hour = HOUR * (a_pass / PERIOD + look / max(LOOK, DEAREST * look) + audit / (AUDIT + SLOWLY * audit))
    how = f"{size.peers[-1]:,} peers, {size.wide:,} pods"
    yield Result(f"an idle hour, {how}", hour, "an hundredth of a core", HOUR / 100, "s", 1.0)
    yield Result(f"an audit, {how}", audit * 1e3, "a look", look * 1e3, "ms")


def memory(size: Size) -> Iterator[Result]:
    """Measure resident memory, each in a process of its own."""
    name = next(name for name, one in SIZES.items() if one == size)
    alone = _resident(NOTHING)
    imports = _resident(IMPORTS)
    held = _resident(f"from tests.bench import standing; kept = standing.hold({name!r})")
    how = f"{size.peers[-1]:,} peers, {size.wide:,} pods"
    yield Result("memory: imports of the daemon", imports, "the interpreter alone", alone, "MB")
    yield Result(f"memory: the daemon, {how}", held, "its imports alone", imports, "MB")
    yield Result(f"memory: the daemon, {how}", held, "110 MB", MOST_MB, "MB", 1.0)


def _resident(code: str) -> float:
    found = subprocess.run([sys.executable, "-c", code + RESIDENT], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1]) / 1000


def hold(name: str) -> object:
    """Hold what a daemon holds of a cluster: the source's objects, views, plan and mirror.

    What the kernel in memory holds is let go: the mirror holds it too.
    """
    size, clock = SIZES[name], Clock()
    cluster = Cluster(size.peers[-1], size.wide)
    kernel = Memory(clock)
    with as_the_daemon():
        reconciler = Reconciler(kernel, Options(max_exact=size.max_exact), clock, lambda: "here".ljust(36, "0"))
        for _ in range(4):
            clock.now += 1
            reconciler.run(cluster.view())
    for objects in (kernel.sas, kernel.usage, kernel.policies, kernel.pods, kernel.peers, kernel.sources):
        objects.clear()
    return cluster, reconciler


def scrape(size: Size) -> Iterator[Result]:
    """Measure how large the metrics are at that number of peers, all of them as they should be."""
    clock = Clock()
    view = view_of(size.peers[-1], size.exact)
    kernel = Memory(clock)
    reconciler = Reconciler(kernel, Options(max_exact=size.max_exact), clock, lambda: "here".ljust(36, "0"))
    for _ in range(3):
        report = reconciler.run(view)
        clock.now += 1
    peers = Peers()
    peers.note(report)
    record = after_pass(Record("n0", clock.now), Pass(view, report, KeyRecord(1, 1), (), clock.now, 0.01))
    record = judged(surveyed(record, *peers.take(view, report), {}, {}), clock.now, 0.0)
    began = time.process_time()
    page = answer("/metrics", record)
    taken = (time.process_time() - began) * 1e3
    how = f"a scrape, {size.peers[-1]:,} peers"
    yield Result(how, len(page.body) / 1e3, "100 kB", MOST_KB, "kB", 1.0)
    yield Result(f"{how}, its making", taken, "a second between two", 1e3, "ms")

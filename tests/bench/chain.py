# SPDX-License-Identifier: Apache-2.0
"""One event, all the way: from the source's shelf to the operation that the kernel is handed, and to the end of its pass.

Processor time, the kernel's on behalf of this process included: whatever else runs on the machine would be all of a p99.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from kmesh.cluster.snapshot import build_view
from kmesh.launcher.cli import GC_THRESHOLDS

from kmesh_bpf import Key, Options, Reconciler
from tests.bench.clusters import KMESH, NONE, Cluster
from tests.bench.kernels import Clock, Memory, Real, real
from tests.bench.results import Result, p99
from tests.bench.sizes import Size

GOAL = 1.5
Manifest = dict[str, Any]
LIMIT = 10.0
"""Milliseconds."""


@dataclass
class Cost:
    """Milliseconds of each event: to the view, to the kernel, to the end of the pass; of that within the kernel."""

    view: list[float]
    handed: list[float]
    whole: list[float]
    inside: list[float]


class Chain:
    """A node's daemon without its loop: source, views, reconciler, and a kernel that holds what it was given."""

    def __init__(self, cluster: Cluster, kernel: Memory | Real, clock: Clock, options: Options) -> None:
        self.cluster, self.kernel, self.clock = cluster, kernel, clock
        self.reconciler = Reconciler(kernel, options, clock, lambda: "here".ljust(36, "0"))  # type: ignore[arg-type]
        self.settle()

    def settle(self) -> None:
        """Make passes until nothing is left to do."""
        for _ in range(10):
            self.clock.now += 1
            if self.reconciler.run(self.cluster.view()).converged:
                return
        raise AssertionError("the passes come to no end")

    def replace_key(self) -> None:
        """Bring the cluster into the middle of a replacement: we and every other peer have announced it."""
        self.cluster.keys = {**self.cluster.keys, 2: Key(bytes(35) + b"2")}
        self.settle()
        self.cluster.announced, self.cluster.announced_at = 2, self.clock.now
        for number in range(1, self.cluster.nodes, 2):
            self.cluster.put(self.cluster.info(number, 2))
        self.settle()

    def measure(self, events: Iterator[Manifest], times: int) -> Cost:
        """Let so many events come, one after the other."""
        cost = Cost([], [], [], [])
        for manifest in islice(events, times):
            self.clock.now += 0.01
            self.kernel.handed.begin()
            began = time.process_time()
            self.cluster.put(manifest)
            view = self.cluster.view()
            cost.view.append((time.process_time() - began) * 1e3)
            report = self.reconciler.run(view)
            cost.whole.append((time.process_time() - began) * 1e3)
            cost.inside.append(self.kernel.handed.spent * 1e3)
            assert report.applied, "an event that changes nothing measures nothing"
            assert self.kernel.handed.at is not None
            cost.handed.append((self.kernel.handed.at - began) * 1e3)
        return cost


def pods_that_move(cluster: Cluster, turn: int = 0) -> Iterator[Manifest]:
    return (cluster.pod(number, more=100 + 40 * turn) for number in cluster.managed())


def labels(cluster: Cluster, turn: int = 0) -> Iterator[Manifest]:
    """Pods that are taken out by their own label, or in again; others than those that move."""
    numbers = list(cluster.managed())
    return (cluster.pod(number, labels={} if turn % 2 else NONE) for number in reversed(numbers))


def peers_that_reboot(cluster: Cluster, turn: int = 0) -> Iterator[Manifest]:
    spi = max(cluster.keys)
    return (cluster.info(1 + n % (cluster.nodes - 1), spi, f"again-{turn}-{n}") for n in count())


EVENTS: tuple[tuple[str, Callable[[Cluster, int], Iterator[Manifest]]], ...] = (
    ("a pod's event", pods_that_move),
    ("a label's event", labels),
    ("a peer's event", peers_that_reboot),
)
"""Each gives other events in each turn."""


@contextmanager
def as_the_daemon() -> Iterator[None]:
    """Collect garbage as rarely as the daemon does."""
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def shapes(size: Size) -> Iterator[tuple[int, str]]:
    yield size.exact, "exact"
    yield size.wide, "by CIDR"


def event(size: Size) -> Iterator[Result]:
    """Measure to the operation handed over: at each number of peers, in steady state and during a replacement."""
    with as_the_daemon():
        for managed, how in shapes(size):
            small: dict[str, float] = {}
            for peers in size.peers:
                # As many pods a node at each size: what differs is the cluster.
                cluster, clock = Cluster(peers, managed * peers // size.peers[-1]), Clock()
                options = Options(max_exact=size.max_exact if peers == size.peers[-1] or how == "exact" else 0)
                chain = Chain(cluster, Memory(clock), clock, options)
                try:
                    yield from _phases(chain, small, size, f"{peers:,} peers, {how}")
                finally:
                    cluster.close()


def _phases(chain: Chain, small: dict[str, float], size: Size, where: str) -> Iterator[Result]:
    first = f"{size.peers[0]} peers"
    for turn, phase in enumerate(("steady", "replacing")):
        if phase == "replacing":
            chain.replace_key()
        for what, events in EVENTS:
            found = chain.measure(events(chain.cluster, turn), size.events)
            cost, name = p99(found.handed), f"{what}, to the operation, p99, {phase}"
            baseline = small.setdefault(name, cost)
            large = baseline is not cost
            yield Result(f"{name}, {where}", cost, first, baseline, "ms", GOAL if large else None)
            if large:
                yield Result(f"{name}, {where}", cost, "10 ms", LIMIT, "ms", 1.0)


def scratch(size: Size) -> Iterator[Result]:
    """Compare an event's cost up to the view with making the view from scratch."""
    with as_the_daemon():
        cluster = Cluster(size.peers[-1], size.wide)
        try:
            began = time.process_time()
            build_view(cluster.read(), "n0", keys=cluster.keys, services=(), announced=1, announced_at=0.0, boot_id="")
            whole = (time.process_time() - began) * 1e3
            taken = []
            for manifest in islice(pods_that_move(cluster), size.events):
                began = time.process_time()
                cluster.put(manifest)
                cluster.view()
                taken.append((time.process_time() - began) * 1e3)
            how = f"{size.peers[-1]:,} peers, {size.wide:,} pods"
            yield Result(f"a pod's event, to the view, p99, {how}", p99(taken), "from scratch", whole, "ms")
        finally:
            cluster.close()


def kernel(size: Size) -> Iterator[Result]:
    """Measure whole passes with the real kernel behind them, beside the operations alone."""
    peers = size.peers[-1]
    with as_the_daemon():
        for managed, how in shapes(size):
            clock = Clock()
            cluster = Cluster(peers, managed, size.labelled if how == "by CIDR" else 0)
            with real(clock) as behind:
                chain = Chain(cluster, behind, clock, Options(max_exact=size.max_exact))
                try:
                    for what, events in EVENTS:
                        found = chain.measure(events(cluster, 0), size.events)
                        whole, inside = sum(found.whole) / len(found.whole), sum(found.inside) / len(found.inside)
                        where = f"{peers:,} peers, {how}"
                        yield Result(f"{what}, one pass, {where}", whole, "its operations alone", inside, "ms", 2.0)
                    if how == "by CIDR":
                        yield from _labelled(chain, size)
                finally:
                    cluster.close()


def _labelled(chain: Chain, size: Size) -> Iterator[Result]:
    """Label a namespace, beside one batched update of the same entries of the pod map."""
    taken, batches = [], []
    for manifest_labels in (KMESH, {}, KMESH, {}, KMESH):
        before = set(chain.kernel.observe().state.pods)
        began = time.process_time()
        chain.cluster.put(chain.cluster.namespace("large", manifest_labels))
        report = chain.reconciler.run(chain.cluster.view())
        if manifest_labels:
            taken.append((time.process_time() - began) * 1e3)
            new = {one: flags for one, flags in report.plan.state.pods.items() if one not in before}
            began = time.process_time()
            chain.kernel.kernel._need_maps().set_pods(new)
            batches.append((time.process_time() - began) * 1e3)
    what = f"a namespace of {size.labelled:,} pods labelled at once, one pass"
    yield Result(what, min(taken), "one batched map update", min(batches), "ms", 3.0)

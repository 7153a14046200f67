# SPDX-License-Identifier: Apache-2.0
"""What one event may have to wait for because the daemon looks whether all is as it was: the longest step of each kind.

On the real kernel; where it has no ESP, its SAs are a dictionary's. Beside it what is done in steps, done at once. All of
it in processor time, the kernel's for this process with it: whatever else runs on the machine would be all of a longest
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from kmesh_bpf import Options
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.state import PodFlags
from tests.bench.chain import Chain, as_the_daemon
from tests.bench.clusters import Cluster
from tests.bench.kernels import Clock, real
from tests.bench.results import Result
from tests.bench.sizes import Size

LONGEST = 5.0
"""Milliseconds that an event may be held up."""


def steps(begin: Callable[[], Iterable[bool]], rounds: int) -> tuple[float, float, bool]:
    """Give the milliseconds of the longest step and of all, the least of some rounds, and whether any found anything."""
    longest, whole, found = [], [], False
    for _ in range(rounds):
        taken, began = [], time.process_time()
        for one in begin():
            now = time.process_time()
            taken.append((now - began) * 1e3)
            began, found = now, found or one
        longest.append(max(taken))
        whole.append(sum(taken))
    return min(longest), min(whole), found


def least(action: Callable[[], object], rounds: int) -> float:
    """Give the milliseconds that an action takes, the least of some rounds."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        action()
        found.append((time.process_time() - began) * 1e3)
    return min(found)


def audits(size: Size) -> Iterator[Result]:
    """Measure, for pods that are each selected by its address and for more of them, selected by pod CIDR."""
    for pods in (size.exact, size.wide):
        clock = Clock()
        cluster = Cluster(size.peers[-1], pods)
        with as_the_daemon(), real(clock) as kernel:
            try:
                chain = Chain(cluster, kernel, clock, Options(max_exact=size.max_exact))
                yield from _of(chain, f"{size.peers[-1]:,} peers, {pods:,} pods", size.passes)
            finally:
                cluster.close()


def _of(chain: Chain, how: str, rounds: int) -> Iterator[Result]:
    passes, kernel = chain.reconciler, chain.kernel
    (address, flags), *_ = passes.observe().state.pods.items()

    def everything() -> None:
        passes.forget()
        passes.observe()

    def little() -> None:
        passes.doubt_rest()
        passes.observe()

    def one_pod() -> None:
        kernel.apply([ops.SetPod(address, PodFlags(flags))])
        kernel.find(Keys.named("pods", (address,)))

    whole = least(everything, rounds)
    for what, begin in (("a look", passes.look), ("an audit", passes.audit)):
        longest, together, found = steps(begin, rounds)
        assert not found, "nobody else was at it"
        yield Result(f"the longest step of {what}, {how}", longest, "what an event may wait", LONGEST, "ms", 1.0)
        yield Result(f"the longest step of {what}, {how}", longest, "all its steps", together, "ms")
    for what, action in (("a pod written and read back", one_pod), ("what is little read anew", little)):
        yield Result(f"{what}, {how}", least(action, rounds), "everything observed", whole, "ms")

"""How long one event may have to wait because the daemon looks whether all is as it was: the longest step of each kind.

On the real kernel, in a network namespace of its own; without SAs, for a kernel without ESP takes none. Beside it what is
done in steps done at once. Processor time, the kernel's for this process with it, for whatever else runs on the machine
would be all of a longest step. ``python -m tests.bench.audits`` prints it alone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kmesh.launcher.cli import GC_THRESHOLDS

from kmesh_bpf import LinuxKernel, Options, Pod, Reconciler, Settings, View, make_plan
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.state import KernelState, Observation, PodFlags
from tests.bench.results import Result

PIN_ROOT = Path("/sys/fs/bpf/kmesh-bench-audits")
SIZES = ((100, 2_000), (5_000, 20_000), (5_000, 100_000))
"""Peers and managed pods: of 20,000 each is selected exactly, 100,000 by pod CIDR."""
ROUNDS = 5
CLONE_NEWNET = 0x40000000


class Node:
    """A kernel that holds what a plan for a view calls for, but for SAs, and a reconciler that knows it."""

    def __init__(self, view: View) -> None:
        self.kernel = LinuxKernel(PIN_ROOT, Settings())
        observed = self.kernel.observe()
        state = make_plan(view, Observation(KernelState(), links=observed.links), Options(), 0.0).state
        operations = [one for one in diff(state, observed.state) if not isinstance(one, ops.AddSa)]
        self.refused = self.kernel.apply(operations)
        self.policies = len(state.policies)
        self.pod: Pod = view.pods[-1]
        self.passes = Reconciler(self.kernel, Options(), time.time, lambda: "fresh".ljust(36))
        self.passes.observe()

    def close(self) -> None:
        self.kernel.remove_everything()
        self.kernel.close()

    def observe(self) -> None:
        self.passes.forget()
        self.passes.observe()

    def write_one(self) -> None:
        """Write one pod, as a pass does, and read it back."""
        (address,) = self.pod.addresses
        self.kernel.apply([ops.SetPod(address, PodFlags.REMOTE)])
        self.kernel.find(Keys.named("pods", (address,)))

    def rest(self) -> None:
        """Read anew what is little, as twice a minute."""
        self.passes.doubt_rest()
        self.passes.observe()


def steps(begin: Callable[[], Iterable[bool]]) -> tuple[float, float]:
    """Give the milliseconds of the longest step and of all, the least of some rounds."""
    longest, whole = [], []
    for _ in range(ROUNDS):
        taken, began = [], time.process_time()
        for _ in begin():
            now = time.process_time()
            taken.append((now - began) * 1e3)
            began = now
        longest.append(max(taken))
        whole.append(sum(taken))
    return min(longest), min(whole)


def least(action: Callable[[], object]) -> float:
    """Give the milliseconds that an action takes, the least of some rounds."""
    return min(_once(action) for _ in range(ROUNDS))


def _once(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return (time.process_time() - began) * 1e3


@contextmanager
def elsewhere() -> Iterator[None]:
    """Live in a new network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "a new network namespace")
        try:
            yield
        finally:
            if libc.setns(home.fileno(), CLONE_NEWNET):
                os.abort()


def audits(cluster: Callable[[int, int], View]) -> Iterator[Result]:
    """Measure; ``cluster`` gives the view of the first of so many nodes."""
    gc.set_threshold(*GC_THRESHOLDS)  # as the daemon does
    for peers, pods in SIZES:
        shutil.rmtree(PIN_ROOT, ignore_errors=True)
        with elsewhere(), closing(Node(cluster(peers, pods))) as node:
            size = f"{peers:,} peers, {pods:,} pods, {node.policies:,} policies"
            whole = least(node.observe)
            for what, begin in (("a look", node.passes.look), ("an audit", node.passes.audit)):
                longest, together = steps(begin)
                yield Result(f"the longest step of {what}, {size}", longest, "all its steps", together, "ms")
            for what, action in (
                ("one pod written and read back", node.write_one),
                ("what is little read anew", node.rest),
            ):
                yield Result(f"{what}, {size}", least(action), "all observed", whole, "ms")


def main() -> None:
    """Measure and print."""
    from tests.bench.bench import cluster  # noqa: PLC0415 # it imports this module

    for one in audits(cluster):
        print(
            f"{one.what:<80} {one.cost:9.2f} {one.unit}{one.ratio:8.3f} x {one.baseline} "
            f"({one.baseline_cost:.1f} {one.unit})",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What one event costs the plan and the difference to the kernel: small and large clusters, side by side.

Processor time, as in :mod:`tests.bench.events`. The kernel is not in it: what is planned counts as done.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from kmesh_bpf import Observation, Options, Pod, Pods, View
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.mirror import Mirror, restricted
from kmesh_bpf.core.planner import Planner, make_plan
from kmesh_bpf.core.state import KernelState, SaUsage
from tests.bench.results import Result

EVENTS = 100
SIZES = ((100, 2_000), (1_000, 20_000), (5_000, 20_000), (5_000, 100_000))
"""Peers and managed pods; of 20,000 each is selected exactly, 100,000 by pod CIDR."""


class Planned:
    """A node's plan for a cluster, and a kernel that holds what it calls for."""

    def __init__(self, view: View) -> None:
        self.view, self.now, self.options = replace(view, pods=Pods(view.pods)), 1000.0, Options()
        began = time.process_time()
        state = make_plan(view, Observation(KernelState()), self.options, self.now).state
        self.scratch = (time.process_time() - began) * 1e3
        usage = {identity: SaUsage(900, 999, 1, 1) for identity in state.sas}
        self.mirror = Mirror(Observation(state, usage, (), view.node.boot_id))
        self.planner = Planner(self.options)
        for _ in range(3):
            self.event()  # until nothing is left to do

    def event(self) -> None:
        """Plan, compare, and take what was planned for done."""
        plan = self.planner.plan(self.view, self.mirror, self.now)
        keys = self.planner.take_changed()
        wanted = restricted(plan.state, keys)
        diff(wanted, restricted(self.mirror.state, keys))
        keys.rest = False
        self.mirror.take(keys, Observation(wanted, {identity: SaUsage(999, 999, 0, 0) for identity in keys.sas}))

    def p99(self, happen: Callable[[int], None]) -> float:
        """Give the milliseconds that all but a hundredth of the events take."""
        taken = []
        for number in range(EVENTS):
            happen(number)
            start = time.process_time()
            self.event()
            taken.append((time.process_time() - start) * 1e3)
        return statistics.quantiles(taken, n=100)[-1]

    def pod_comes(self, number: int) -> None:
        """Let one more pod run on some node, at an address of its node's pod CIDR."""
        node = self.view.peers[number % len(self.view.peers)].node
        pod = Pod(f"new{number}", node.name, (node.pod_cidrs[0][250 - number // len(self.view.peers)],))
        here = (*self.view.pods.on(node.name), pod)
        self.view = replace(self.view, pods=self.view.pods.changed({node.name: here}))

    def peer_announces(self, number: int) -> None:
        """Let a peer announce a newer key."""
        self.change_peer(number, spi=2 + number)

    def peer_reboots(self, number: int) -> None:
        """Let a peer announce that it is another one."""
        peer = self.view.peers[number % len(self.view.peers)]
        self.change_peer(number, node=replace(peer.node, boot_id=f"again {number}"))

    def change_peer(self, number: int, **changes: object) -> None:
        """Let a peer announce something else."""
        peers, index = list(self.view.peers), number % len(self.view.peers)
        peers[index] = replace(peers[index], **changes)  # type: ignore[arg-type]
        self.view = replace(self.view, peers=tuple(peers))


def plans(cluster: Callable[[int, int], View]) -> Iterator[Result]:
    """Measure; ``cluster`` gives the view of the first of so many nodes."""
    small: dict[str, float] = {}
    for peers, pods in SIZES:
        one = Planned(cluster(peers, pods))
        for what, happen in (
            ("a pod that comes", one.pod_comes),
            ("a peer that announces a key", one.peer_announces),
            ("a peer that reboots", one.peer_reboots),
        ):
            cost = one.p99(happen)
            small.setdefault(what, cost)
            how = f"{what}, planned and compared, p99, {peers:,} peers, {pods:,} pods"
            yield Result(how, cost, f"{SIZES[0][0]} peers, {SIZES[0][1]:,} pods", small[what], "ms")
            yield Result(how, cost, "the plan from scratch", one.scratch, "ms")

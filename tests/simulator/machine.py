# SPDX-License-Identifier: Apache-2.0
"""One node of the simulated cluster: a machine with its kernel, its pods, and the real daemon, or none at the moment."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from random import Random
from typing import Any

from kmesh.launcher.announcer import Announcer
from kmesh.launcher.config import Config
from kmesh.launcher.config import parse as flags
from kmesh.launcher.daemon import FIRST_RETRY, LAST_RETRY, TRANSITION_PERIOD, Daemon
from kmesh.launcher.looks import Looks
from kmesh.telling.record import Bounds, Pass
from kmesh.telling.recorder import Recorder

from kmesh_bpf import Address, KernelError, KmeshBpfError, Operation, Report, Settings, remote_pods
from kmesh_bpf.core.state import Link
from tests.simulator.go_node import FLAGS, GoDaemon, NoReports
from tests.simulator.kernel import NodeKernel
from tests.simulator.server import Manifest
from tests.simulator.source import Feed, Outbox, SimulatedCluster

UPLINK = 2
REFUSED = 0.4
"""How likely an operation is refused by a kernel that refuses some."""
BOUNDS = Bounds(silence=90.0, view_age=60.0)


class KilledError(BaseException):
    """The daemon is killed, here and now: nothing in it takes that for an error."""


@dataclass(eq=False)
class LivePod:
    """A pod that runs: what the node knows, whatever the API server says of it. ``since``: its device is there since."""

    name: str
    namespace: str
    addresses: tuple[Address, ...]
    machine: Machine
    ifindex: int
    since: float
    labels: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.name}"

    def manifest(self, **status: Any) -> Manifest:
        """Give its object as kubelet keeps it; ``status``: phase, deleting, addresses."""
        addresses = status.get("addresses", self.addresses)
        metadata: Manifest = {"name": self.name, "namespace": self.namespace, "labels": dict(self.labels)}
        metadata["creationTimestamp"] = self.created
        if status.get("deleting"):
            metadata["deletionTimestamp"] = self.created
        told: Manifest = {"phase": status.get("phase", "Running")}
        if addresses:
            told |= {"podIP": str(addresses[0]), "podIPs": [{"ip": str(one)} for one in addresses]}
        spec = {"nodeName": self.machine.name, "containers": [{"name": "app"}]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": told}


@lru_cache
def config(arguments: tuple[str, ...], node: str) -> Config:
    """Give what flags come to."""
    return flags(list(arguments), node, "host")


@lru_cache
def _addresses(index: int, place: int, families: tuple[int, ...]) -> tuple[Address, ...]:
    texts = {4: f"10.10.{place}.{index}", 6: f"fd00:10:{place}::{index}"}
    return tuple(ip_address(texts[family]) for family in families)


class Machine:
    """A node. ``families``: the IP versions that it has addresses of; ``is_go``: of another make."""

    def __init__(self, world: Any, index: int, families: tuple[int, ...], *, is_go: bool = False) -> None:
        self.world, self.index, self.name, self.families = world, index, f"n{index}", families
        self.place = 0
        self.is_go = is_go
        self._itself: LivePod | None = None
        self.uid = f"uid-{self.name}"
        self.boots = 0
        self.next_ifindex = 10
        self.pods: list[LivePod] = []
        self.powered = self.connected = True
        self.guarded: frozenset[Address] = frozenset()
        self.kept: frozenset[Address] = frozenset()
        self.arguments: tuple[str, ...] = ()
        self.lies = False
        self.daemon: Daemon | None = None
        self.audit: Iterator[bool] = iter(())
        self.source: SimulatedCluster | None = None
        self.outbox: Outbox | NoReports | None = None
        self.wake_at = 0.0
        self.retry = FIRST_RETRY
        self.failing = False
        self.kill_in: int | None = None
        self.refusals = 0
        self.lag = 0.0
        self.old_view: int | None = None
        self.kernel = NodeKernel(self.links(), world.clock, Settings(strict=not is_go))
        self.kernel.refuse, self.kernel.between = self._between, self._halfway
        self._remember, self.kernel.remember = self.kernel.remember, self._renew

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its addresses, those of the first family first."""
        return _addresses(self.index, self.place, self.families)

    def itself(self) -> LivePod:
        """Give the machine as an end of packets: what runs in no pod, or in one with hostNetwork."""
        if self._itself is None or self._itself.addresses != self.addresses:
            self._itself = LivePod("itself", "", self.addresses, self, UPLINK, 0.0)
        return self._itself

    def links(self) -> tuple[Link, ...]:
        """Give its devices as they are."""
        own = [Link(1, "lo", "", False, ())]
        if self.connected:
            own.append(Link(UPLINK, "eth0", "veth", True, self.addresses, leads_out=True))
        pods = (
            Link(pod.ifindex, f"pod{pod.ifindex}", "veth", True, (), far_addresses=pod.addresses) for pod in self.pods
        )
        return (*own, *pods)

    def device(self) -> int:
        """Give the ifindex of a device that comes."""
        self.next_ifindex += 1
        return self.next_ifindex

    def node(self) -> Manifest:
        """Give its Node object."""
        addresses = [{"type": "InternalIP", "address": str(one)} for one in self.addresses]
        info = {"bootID": self.boot_id}
        cidrs = [{4: f"10.244.{self.index}.0/24", 6: f"fd00:244:{self.index}::/64"}[one] for one in self.families]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "uid": self.uid},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": addresses, "nodeInfo": info},
        }

    @property
    def running(self) -> bool:
        return self.daemon is not None

    def start(self) -> None:
        """Start the daemon, in place of one that runs."""
        self.stop()
        random: Random = self.world.random
        feed = Feed(self.world.server, lambda _: self.lag * random.random())
        feed.first_view, feed.before_write = self.old_view, self._may_die
        feed.before_announcement = lambda manifest: self.world.judge.announces(self, manifest)
        self.source = SimulatedCluster(feed)
        self.outbox = NoReports() if self.is_go else Outbox(self.source)
        recorder = Recorder(self.name, self.source.age, self.outbox, BOUNDS, self.world.clock, lambda: 0.0)
        recorder.passed = self._passing(recorder.passed)
        make, arguments = (GoDaemon, FLAGS) if self.is_go else (Daemon, self.arguments)
        self.daemon = make(
            config(arguments, self.name),
            self.source,
            self.kernel,
            recorder,
            Announcer(self.source, self.world.clock),
            self,
            fresh=self._fresh,
        )
        self.daemon.looks = Looks(self.daemon.passes, lambda: 0.0)  # never due: looks and audits are turns' business
        self.audit = self.daemon.passes.audit()
        self.wake_at, self.retry = self.world.now, FIRST_RETRY
        self.kernel.changed()

    def stop(self) -> None:
        """Stop it, in whatever it does."""
        if self.source is not None:
            self.source.close()
        self.daemon = self.source = self.outbox = None
        self.kill_in = None

    def turn(self) -> bool:
        """Let the daemon see what has come, and do a pass if there is a reason; tell whether it did."""
        if self.daemon is None or self.source is None:
            return False
        self.source.feed.turn()
        try:
            if self.outbox:
                self.outbox.turn()
            self.daemon.announcer.write()
            news = self.source.changed() or self.daemon.announcer.news
            changed = [self.daemon.kernel_changed(), *self.daemon.passes.look(), self._audits(self.daemon)]
            if not (any(changed) or news or self.world.now >= self.wake_at):
                self._tell(self.daemon)
                return False
            self._step(self.daemon, self.source)
            self._tell(self.daemon)
        except KilledError:
            self.world.story.tell(f"{self.name}'s daemon is killed between two operations, and started again")
            self.start()
        return True

    def _audits(self, daemon: Daemon) -> bool:
        """Do a step of an audit; tell whether it found anything."""
        found = next(self.audit, None)
        if found is None:
            self.audit = daemon.passes.audit()
        return bool(found)

    def _step(self, daemon: Daemon, source: SimulatedCluster) -> None:
        judge = self.world.judge
        try:
            judge.begins(self, source.read())
            wait = daemon.step()
            self.failing = wait == TRANSITION_PERIOD
        except KmeshBpfError as error:
            daemon.recorder.failed(str(error))
            self.wake_at = self.world.now + self.retry
            self.retry = min(self.retry * 2, LAST_RETRY)
        else:
            self.wake_at, self.retry = self.world.now + wait, FIRST_RETRY

    def _tell(self, daemon: Daemon) -> None:
        if daemon.recorder.due() <= 0:
            daemon.recorder.tell()

    def _passing(self, passed: Any) -> Any:
        def watched(done: Pass) -> None:
            passed(done)
            self.world.judge.done(self, done.view, done.report)

        return watched

    def _between(self, operation: Operation) -> KernelError | None:
        """Before each operation: the daemon may be killed here, the kernel may refuse, and packets are on their way."""
        judge = self.world.judge
        self._may_die()
        if self.refusals and self.world.random.random() < REFUSED:
            self.refusals -= 1
            judge.refused(self)
            return KernelError("do", self.kernel.render(operation), errno.ENOMEM)
        judge.overwrites(self, operation)
        self.world.between_operations(self, operation)
        return None

    def _halfway(self) -> None:
        """Between the two writes of one operation the daemon may be killed too."""
        try:
            self._may_die()
        except KilledError:
            self.world.judge.blame(self, "its daemon was killed between telling of an SA and making it")
            raise

    def _renew(self, incarnation: str) -> None:
        self.world.judge.renews(self)
        self._remember(incarnation)
        self._may_die()

    def _may_die(self) -> None:
        """Be killed, where that was to happen after so many operations and writes to the API server."""
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise KilledError

    @property
    def boot_id(self) -> str:
        """The kernel's own name of this boot, which a node of ours never goes by."""
        return f"boot-{self.index}-{self.boots}".ljust(36, "-")

    def _fresh(self) -> str:
        if self.is_go:
            return self.boot_id
        return str(uuid.UUID(int=self.world.random.getrandbits(128), version=4))

    # What guards its next boot (kmesh.launcher.boot.BootGuard), without files.
    def passed(self, report: Report) -> None:
        self.kept = remote_pods(report.plan.state)
        if report.converged:
            self.guarded = frozenset()

    def catch_up(self) -> None:
        """The file is always up to date."""

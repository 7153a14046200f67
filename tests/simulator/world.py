# SPDX-License-Identifier: Apache-2.0
"""The cluster, whole: machines, the API server, the wire between them, the clock that all go by, and the judge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from random import Random
from typing import Any

from kmesh.cluster import secret
from kmesh.cluster.objects import NAMESPACE, SECRET_NAME, ClusterObjects, Object, collect, parse
from kmesh.launcher.daemon import SETTLE, TRANSITION_PERIOD

from kmesh_bpf import Address, ConfigError, Key
from tests.simulator.judge import Judge
from tests.simulator.kernel import NodeKernel
from tests.simulator.knowledge import LABEL, Knowledge, know
from tests.simulator.machine import LivePod, Machine
from tests.simulator.packets import Fate, Frame, Inner
from tests.simulator.server import Manifest, Server
from tests.simulator.story import Story
from tests.simulator.ways import CLUSTER_IPS, SERVICES, Trip, Way

START = 1_760_000_000.0
BETWEEN = 0.3
"""How likely a packet is under way while a daemon carries out one operation."""
RECORDED = 400
"""Frames that the recorder on the wire keeps at most."""
WEIGHTS = (12, 2, 3, 2, 1, 1)
"""How often packets go by each way."""
RETRIES = 12
"""Times that whoever was refused something is waited for until it tries again, instead of leaping over that."""
SWEEPS = 10
"""Turns that all daemons have, one after the other, before time leaps: each one's acts are the others' reasons."""


@dataclass(frozen=True)
class Recorded:
    """A frame that was on the wire, and who put it there."""

    trip: Trip
    frame: Frame
    sender: Machine


class World:
    """``size`` machines with ``pods`` pods each. ``seed`` decides all that chance decides.

    ``go``: some nodes are of another make, the first one and now and then one that joins.
    """

    def __init__(
        self, seed: str, size: int, pods: int, families: tuple[int, ...], story: Story, *, go: bool = False
    ) -> None:
        self.story, self.families, self.go = story, families, go
        self.now = START
        self.random = Random(seed)
        self.server = Server(self.clock, Random(f"{seed}/uids"))
        self.judge = Judge(self)
        self.machines: list[Machine] = []
        self.born = 0
        self.idents = 0
        self.keys_made = 0
        self.recorded: list[Recorded] = []
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.ways: Counter[Way] = Counter()
        self.packets = self.passes = self.arrivals = 0
        self.quiet = False
        self._parsed: dict[int, tuple[Manifest, Object | None]] = {}
        self._known: tuple[tuple[int, int], Knowledge] | None = None
        story.clock = self.clock
        self.namespace("default", {LABEL: "Kmesh"})
        self.namespace("other", {})
        cidrs = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}}
        self.server.put({**cidrs, "spec": {"cidrs": [str(SERVICES[family]) for family in families]}})
        self.founded = self.server.revision
        self.new_key()
        for _ in range(size):
            machine = self.join()
            for _ in range(pods):
                self.add_pod(machine)

    def clock(self) -> float:
        return self.now

    # Objects.
    def namespace(self, name: str, labels: dict[str, str]) -> None:
        self.server.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def material(self) -> Key:
        """Give a key that was never used."""
        self.keys_made += 1
        return Key(Random(f"key {self.keys_made}").randbytes(36))

    def keyring(self) -> secret.Keyring | None:
        """Give what the Secret holds, if it can be read."""
        held = self.server.get("Secret", NAMESPACE, SECRET_NAME)
        try:
            return secret.parse_keys(held) if held is not None and secret.holds_key(held) else None
        except ConfigError:
            return None

    def new_key(self) -> int:
        """Replace the key as kmeshctl does; give its SPI."""
        before = self.server.get("Secret", NAMESPACE, SECRET_NAME)
        announced = {info["metadata"]["name"]: info["spec"]["spi"] for info in self.server.of("KmeshNodeInfo")}
        keyring = secret.next_keys(self.keyring(), announced, self.material(), secret.history(before))
        self.server.put(secret.render(keyring))
        return keyring.current

    def objects(self) -> ClusterObjects:
        """Give all objects as they are on the server now."""
        return collect(found for one in self.server.objects.values() if (found := self._parse(one)) is not None)

    def knowledge(self) -> Knowledge:
        """Give what the newest objects say, kept until there are newer ones."""
        version = (self.server.epoch, self.server.revision)
        if self._known is None or self._known[0] != version:
            self._known = version, know(self.objects())
        return self._known[1]

    def _parse(self, manifest: Manifest) -> Object | None:
        if manifest["kind"] == "Lease":
            return None
        kept = self._parsed.get(id(manifest))
        if kept is None or kept[0] is not manifest:
            try:
                kept = manifest, parse(manifest)
            except ConfigError:
                kept = manifest, None
            self._parsed[id(manifest)] = kept
        return kept[1]

    # Machines and pods.
    def join(self) -> Machine:
        """Let a new machine join, and its daemon start."""
        self.born += 1
        is_go = self.go and (self.born == 1 or self.born % 5 == 0)
        machine = Machine(self, self.born, self.families, is_go=is_go)
        machine.kernel.masquerades = self.random.random() < 0.5
        self.machines.append(machine)
        self.judge.boots(machine)
        self.server.put(machine.node())
        machine.start()
        return machine

    def machine_at(self, address: Address) -> Machine | None:
        """Give the machine that an address is on."""
        return next((one for one in self.machines if address in one.addresses), None)

    def pods(self) -> list[LivePod]:
        """Give all pods that run."""
        return [pod for machine in self.machines if machine.powered for pod in machine.pods]

    def add_pod(
        self,
        machine: Machine,
        *,
        name: str = "",
        namespace: str = "default",
        labels: dict[str, str] | None = None,
        addresses: tuple[Address, ...] = (),
        told: bool = True,
    ) -> LivePod:
        """Start a pod. ``told``: the API server knows its address at once."""
        device = machine.device()
        number = device * 8 + machine.index
        texts = {4: f"10.244.{machine.index}.{device % 250}", 6: f"fd00:244:{machine.index}::{device:x}"}
        pod = LivePod(
            name or f"p{number}",
            namespace,
            addresses or tuple(ip_address(texts[family]) for family in self.families),
            machine,
            device,
            self.now,
            labels or {},
            self.stamp(),
        )
        machine.pods.append(pod)
        self.relink(machine)
        self.server.put(pod.manifest() if told else pod.manifest(addresses=(), phase="Pending"))
        return pod

    def end_pod(self, pod: LivePod) -> None:
        """Stop a pod; its object is the caller's business."""
        pod.machine.pods.remove(pod)
        self.relink(pod.machine)

    def relink(self, machine: Machine) -> None:
        """Let a machine's kernel have the devices that it has; what was attached to others is gone with them."""
        links = machine.links()
        for ifindex in {link.ifindex for link in machine.kernel.links} - {link.ifindex for link in links}:
            machine.kernel.detach(ifindex)
        machine.kernel.links = links

    def stamp(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    # Time.
    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something done in so many seconds, while time passes."""
        self.later.append((self.now + seconds, len(self.later), action))

    def advance(self, seconds: float, rounds: int) -> None:
        """Let time pass, in so many leaps; after each, daemons act on what has come, until there is no more of it."""
        for _ in range(rounds):
            self.now += seconds / rounds
            for entry in sorted(one for one in self.later if one[0] <= self.now):
                self.later.remove(entry)
                entry[2]()
            self._settle()
            for _ in range(RETRIES):
                again = min((one.wake_at for one in self.machines if one.running and one.failing), default=math.inf)
                if again > self.now + TRANSITION_PERIOD:
                    break
                self.now = max(self.now, again)
                self._settle()
        self.traffic(len(self.machines))
        self.replay()

    def _settle(self) -> None:
        for _ in range(SWEEPS):
            if not self._sweep():
                break
            self.now += SETTLE

    def _sweep(self) -> bool:
        """Let each daemon have a turn, in any order; tell whether one had a reason to do a pass."""
        busy = False
        for machine in self.random.sample(self.machines, len(self.machines)):
            if machine.turn():
                busy = True
                self.passes += 1
                machine.kernel.log.clear()
                self.traffic(1)
        return busy

    def between_operations(self, machine: Machine, _operation: Any) -> None:
        """A daemon is at work: a packet from or to its node meets whatever there is."""
        if not self.quiet and self.random.random() < BETWEEN and machine.pods:
            here = self.random.choice(machine.pods)
            there = self._elsewhere(machine)
            if there is not None:
                self.send_somehow(*((here, there) if self.random.random() < 0.5 else (there, here)))

    # Packets.
    def send_somehow(self, here: LivePod, there: LivePod) -> None:
        """Send a packet between two pods, or their nodes, in any way."""
        way = self.random.choices(list(Way), WEIGHTS)[0]
        if way is Way.NODE_PORT:
            others = [one for one in self.machines if one is not here.machine and one.powered]
            self.send(here, there, way, self.random.choice(others) if others else there.machine)
        else:
            self.send(*self.ends(here, there, way), way)

    @staticmethod
    def ends(here: LivePod, there: LivePod, way: Way) -> tuple[LivePod, LivePod]:
        """Give the ends of a packet between two pods, or their nodes."""
        source = here.machine.itself() if way in (Way.OWN, Way.OWN_SERVICE) else here
        return source, there.machine.itself() if way is Way.TO_NODE else there

    def traffic(self, number: int) -> None:
        """Send packets between pods of different nodes."""
        if self.quiet:
            return
        pods = self.pods()
        for _ in range(number if pods else 0):
            here = self.random.choice(pods)
            there = self._elsewhere(here.machine)
            if there is not None:
                self.send_somehow(here, there)

    def every_pair(self) -> Iterator[tuple[LivePod, LivePod]]:
        """Give all pairs of pods of different nodes, each way."""
        pods = self.pods()
        return ((one, other) for one in pods for other in pods if one.machine is not other.machine)

    def send(self, source: LivePod, target: LivePod, way: Way = Way.STRAIGHT, via: Machine | None = None) -> bool:
        """Send one packet; tell whether it arrived. ``via``: whose address a NodePort is asked at."""
        family = self.random.choice(self.families)
        src, dst = (next(one for one in pod.addresses if one.version == family) for pod in (source, target))
        self.idents += 1
        self.packets += 1
        self.ways[way] += 1
        trip = Trip(self.idents, source, target, src, dst, way, via)
        fate = self._leave(trip, source.machine.kernel, family)
        if fate.frame is None:
            return self._lost(trip, fate, None)
        return self.carry(trip, fate.frame, source.machine)

    def _leave(self, trip: Trip, kernel: NodeKernel, family: int) -> Fate:
        """Let a packet leave the node that it is sent on."""
        inner, service = Inner(trip.src, trip.dst, trip.ident), Inner(trip.src, CLUSTER_IPS[family], trip.ident)
        if trip.via is not None:
            there = next(one for one in trip.via.addresses if one.version == family)
            return kernel.send(Inner(trip.src, there, trip.ident))
        match trip.way:
            case Way.OWN:
                return kernel.send_own(inner)
            case Way.OWN_SERVICE:
                return kernel.send_own(service, dnat=trip.dst)
            case Way.SERVICE:
                return kernel.send(service, dnat=trip.dst)
        return kernel.send(inner)

    def carry(self, trip: Trip, frame: Frame, sender: Machine, *, forged: bool = False) -> bool:
        """Put a frame on the wire; tell whether its packet arrived."""
        self.judge.on_wire(trip, sender, frame, forged)
        if not forged:
            self.recorded.append(Recorded(trip, frame, sender))
        if not sender.connected:
            return False if forged else self._lost(trip, None, frame)
        fate = self._receive(trip, frame, sender)
        if fate is not None and fate.delivered is not None:
            self.arrivals += 1
            return True
        if fate is not None and fate.frame is not None and trip.via not in (None, sender) and not forged:
            self.judge.passed_on(trip, trip.first, frame, fate.frame)
            return self.carry(trip, fate.frame, trip.first)
        return False if forged else self._lost(trip, fate, frame)

    def replay(self) -> None:
        """Send a few recorded frames again, which nobody may take."""
        if len(self.recorded) > RECORDED:
            del self.recorded[: len(self.recorded) - RECORDED]
        for one in self.random.sample(self.recorded, min(3, len(self.recorded))):
            if one.frame.spi is not None:
                self._receive(one.trip, one.frame, one.sender)

    def _receive(self, trip: Trip, frame: Frame, sender: Machine) -> Fate | None:
        """Hand a frame to whoever has its destination; None: nobody is there."""
        machine = self.machine_at(frame.dst)
        if machine is None and frame.spi is None and trip.target in trip.target.machine.pods:
            machine = trip.target.machine
        if machine is None or not (machine.powered and machine.connected):
            return None
        fate = self._taken(trip, frame, machine)
        if fate.delivered is not None:
            self.judge.arrived(trip, machine, frame, sender)
        return fate

    def _taken(self, trip: Trip, frame: Frame, machine: Machine) -> Fate:
        """Let a node take a frame; one at whose address a NodePort is gives the packet to a pod, here or elsewhere."""
        if machine is not trip.via or frame.inner.dst not in machine.addresses:
            return machine.kernel.receive(frame)
        own = next(one for one in machine.addresses if one.version == trip.dst.version)
        return machine.kernel.receive(frame, dnat=trip.dst, masquerade=None if trip.target in machine.pods else own)

    def _lost(self, trip: Trip, fate: Fate | None, frame: Frame | None) -> bool:
        if all(end in end.machine.pods or end is end.machine.itself() for end in (trip.source, trip.target)):
            why = (fate.why or fate.counter or fate.xfrm_error) if fate else "nobody is there"
            self.judge.lost(trip, why, frame)
        return False

    def _elsewhere(self, machine: Machine) -> LivePod | None:
        others = [pod for pod in self.pods() if pod.machine is not machine]
        return self.random.choice(others) if others else None

    def close(self) -> None:
        """End what is open."""
        for machine in self.machines:
            machine.stop()

# SPDX-License-Identifier: Apache-2.0
"""Two daemons and a node of another make over the simulator's kernels, and every SA that they hold in use.

A recorder on the wire keeps every packet and sends it again, later, to whoever has its destination.
"""

import uuid
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace

from kmesh.cluster import secret
from kmesh.cluster.objects import ClusterObjects, collect, parse
from kmesh.errors import ClusterError
from kmesh.launcher.announcer import Announcer
from kmesh.launcher.config import parse as flags
from kmesh.launcher.daemon import Daemon

from kmesh_bpf import Key, KmeshBpfError
from kmesh_bpf.core.keys import derive
from tests.simulator.kernel import NodeKernel
from tests.simulator.packets import Frame, Inner
from tests.unit.cluster import kube
from tests.unit.core import mesh

WINDOW = {"kmesh.net/ipsec-replay-window": "4096"}
LABEL = {"istio.io/dataplane-mode": "Kmesh"}
OURS, OTHER = (1, 2), 3


def material(number: int) -> Key:
    """Give a key of the cluster; no bytes are equal, as a daemon refuses those."""
    return Key(kube.material(number))


class KilledError(Exception):
    """The daemon is killed."""


class Kernel(NodeKernel):
    """One whose daemon may be killed between two operations, and all of whose SAs can be used."""

    def __init__(self, clock):
        super().__init__(mesh.LINKS, clock)
        self.left = None
        self.between = self._may_die

    def _apply(self, operation):
        self._may_die()
        super()._apply(operation)

    def _may_die(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise KilledError

    def send_all(self):
        """Send a packet over every SA that sends, whether a policy would or not."""
        return [self.encapsulate(sa, Inner(sa.src, sa.dst, 0)) for sa in self.sas.values() if sa.mark is None]

    def take(self, frame) -> bool:
        """Receive by every SA that has the key; whether its ends agree about ESN is not at stake here."""
        taken = False
        for sa in self.sas.values():
            if sa.mark is not None and (sa.dst, sa.spi, sa.key) == (frame.dst, frame.spi, frame.key):
                error = self.decapsulate(sa, replace(frame, esn=sa.replay_window > 0))
                taken = taken or (not error and sa.replay_window > 0)  # without a window nothing is promised
        return taken


class Host:
    """A node with a daemon of ours."""

    def __init__(self, world, index):
        self.world, self.index, self.name = world, index, f"n{index}"
        self.kernel = Kernel(world.clock)
        self.arguments = []
        self.start()

    def start(self):
        recorder = SimpleNamespace(
            clock=self.world.clock,
            passed=lambda _: None,
            count=lambda *_: None,
        )
        announcer = Announcer(self.world, self.world.clock)
        self.daemon = Daemon(flags(self.arguments, self.name, "host"), self.world, self.kernel, recorder, announcer)

    def uninstall(self):
        self.kernel.flush_sas()
        self.kernel.policies.clear()
        self.kernel.lose_pins()
        self.world.withdraw(self.name)
        self.start()


class World:
    """The cluster (a ClusterSource for all), the nodes and the wire."""

    def __init__(self):
        self.now = 10_000.0
        self.addresses = dict.fromkeys((*OURS, OTHER), 0)
        self.infos = {}
        self.refusing = 0
        self.keyring = secret.Keyring(1, {1: material(1)})
        self.made = 1
        self.boots = Counter()
        self.other = self._other(0, 1)
        self.infos["n3"] = self.other
        self.hosts = [Host(self, index) for index in OURS]
        self.numbers = Counter()
        self.sent = {index: set() for index in OURS}
        self.seen = []
        self.accepted = Counter()

    def clock(self):
        return self.now

    # The cluster.
    def address(self, index):
        return f"10.10.{self.addresses[index]}.{index}"

    def read(self) -> ClusterObjects:
        nodes = []
        for index in (*OURS, OTHER):
            node = kube.node(index)
            node["status"]["addresses"] = [{"address": self.address(index), "type": "InternalIP"}]
            nodes.append(node)
        pods = [kube.pod(f"web{index}", index) for index in (*OURS, OTHER)]
        manifests = [kube.namespace("default", **LABEL), *nodes, *pods, *self.infos.values(), self.secret()]
        return collect([parse(one) for one in manifests])

    def secret(self):
        return secret.render(self.keyring)

    def publish(self, manifest):
        self.refusing -= self.refusing > 0
        if self.refusing:
            raise ClusterError("not now")
        name = manifest["metadata"]["name"]
        uid = self.infos[name]["metadata"]["uid"] if name in self.infos else str(uuid.uuid4())
        self.infos[name] = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}

    def withdraw(self, node, *, status=True):
        self.infos.pop(node, None)

    def _other(self, boot, spi):
        info = kube.node_info(OTHER, spi, **WINDOW)
        info["spec"] |= {"addresses": [self.address(OTHER)], "bootID": f"other-{boot}".ljust(36, "x")}
        return info

    # The node of another make: it never forgets a number, and keeps its boot id.
    def change_other(self, **spec):
        self.other = {**self.other, "spec": {**self.other["spec"], **spec}}
        if "n3" in self.infos:
            self.infos["n3"] = self.other

    def _from_other(self):
        spec = self.other["spec"]
        src = ip_address(spec["addresses"][0])
        for host in self.hosts:
            info = self.infos.get(host.name)
            if info is None or "n3" not in self.infos:
                continue
            version = min(spec["spi"], info["spec"]["spi"])
            if version in self.keyring.keys:
                dst = ip_address(info["spec"]["addresses"][0])
                key = derive(self.keyring.keys[version], src, dst, spec["bootID"], info["spec"]["bootID"])
                self.numbers[key] += 1
                yield Frame(src, dst, Inner(src, dst, 0), version, key, self.numbers[key])

    # The wire.
    def traffic(self, again: bool = False):
        """Let everybody send, and the recorder what it has; raises where that must not be possible."""
        new = list(self._from_other())
        for host in self.hosts:
            for packet in host.kernel.send_all():
                assert (packet.key, packet.sequence) not in self.sent[host.index], "a number twice under one key"
                self.sent[host.index].add((packet.key, packet.sequence))
                new.append(packet)
        for packet in (*new, *(self.seen if again else ())):
            for host in self.hosts:
                self.accepted[host.index, packet] += host.kernel.take(packet)
        self.seen.extend(new)
        twice = [packet for packet, times in self.accepted.items() if times > 1]
        assert not twice, "a recorded packet was accepted again"

    def passes(self, seconds: float, number: int = 3):
        self.traffic(again=True)
        for _ in range(number):
            self.now += seconds / number
            for host in self.hosts:
                try:
                    host.daemon.step()
                    host.daemon.announcer.write()
                except KmeshBpfError:
                    continue
                except KilledError:
                    host.start()
                finally:
                    self.traffic()
        self.traffic(again=True)

    def replace_key(self, key: Key):
        """Store a key by hand, history and all: nothing is refused but by the daemons."""
        version = self.keyring.current + 1
        older = {one: self.keyring.keys[one] for one in sorted(self.keyring.keys)[-4:]}
        self.keyring = secret.Keyring(version, {version: key, **older}, secret.after(self.keyring))
        self.change_other(spi=version)

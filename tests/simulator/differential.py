# SPDX-License-Identifier: Apache-2.0
"""The simulated kernel against the real one: the same random operations and packets, and what both make of them.

Three nodes, each with a managed pod and another one, and a wire that is cut: packet for packet, and node for node, is
compared what is emitted, what is delivered and to whom, and which counter of the programs or of XFRM has moved; at the
end of a story all objects, and each SA's use. A story begins with what a plan calls for, and then things go wrong.

By hand, in namespaces of its own: ``python -m tests.simulator.differential SEED...``; without ESP in the kernel at hand
the nodes have policies and no SAs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

from kmesh_bpf import Address, Options, View, reconcile
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.state import Direction, KernelState, Policy, SaUsage
from kmesh_bpf.kernel.interface import Failure
from tests.lab.network import run
from tests.simulator.kernel import NodeKernel
from tests.simulator.packets import Fate, Frame, Inner
from tests.simulator.real_nodes import RealNodes, Seen, forged
from tests.simulator.variants import NODES, OTHER_KEY, OUTSIDE, PODS, SERVICES, SETTINGS, rivals, variant
from tests.simulator.xfrm import LOW
from tests.unit.core import mesh

STEPS = 150
BURST = 40
PATIENCE_SECONDS = 3.0
BPFFS = Path("/sys/fs/bpf")


class DifferenceError(Exception):
    """The real kernel and the simulated one differ; the text is the story."""


Flying = tuple[Frame, bytes, frozenset[int]]
"""A frame that was seen, simulated and real, and the nodes that it has left: their connection tracking knows it."""


@contextmanager
def real_nodes() -> Iterator[RealNodes]:
    """Have three nodes for the length of a block."""
    if not os.path.ismount(BPFFS):
        run(f"mount -t bpf bpf {BPFFS}")
    made = RealNodes(BPFFS, SETTINGS, SERVICES)
    try:
        yield made
    finally:
        made.close()


def live(real: RealNodes, seed: int, *, esp: bool = True) -> Story:
    """Live a story on both.

    Raises:
        DifferenceError: they differ.

    """
    story = Story(real, seed, esp=esp)
    try:
        for _ in range(STEPS):
            if story.random.random() < 0.3:
                story.something_happens()
            else:
                story.a_packet()
        story.ends()
    finally:
        story.clear()
    return story


class Story:
    """One history, decided by a seed. ``told`` is what was done; ``packets`` how many were looked at."""

    def __init__(self, real: RealNodes, seed: int, *, esp: bool) -> None:
        self.random = Random(seed)
        self.real, self.ident, self.told = real, seed * 1000, [f"seed {seed}"]
        self.esp, self.packets = esp, 0
        self.flying: list[Flying] = []
        self.traffic = self.random.random() < 0.5
        self.wanted: dict[int, KernelState] = {}
        self.models: dict[int, NodeKernel] = {}
        self.before = {index: real.counted(index) for index in NODES}
        for index in NODES:
            self._begin(index)

    def _begin(self, index: int) -> None:
        links = self.real.observe(index).links
        view, options = self._view(index), self._options(index)
        planned = NodeKernel(links, time.time, SETTINGS[index])
        for _ in range(3):
            reconcile(planned, view, options, time.time, lambda: mesh.node(index).boot_id)
        self.wanted[index] = planned.observe().state
        if not self.esp:
            self.wanted[index] = replace(self.wanted[index], sas={})
        self.models[index] = NodeKernel(links, time.time, SETTINGS[index])
        if self.random.random() < 0.5:
            self.wanted[index] = replace(self.wanted[index], nat_exemption=False)
        self.apply(index, *diff(self.wanted[index], KernelState()))
        if self.random.random() < 0.4:
            self.masquerade(index)

    def _view(self, index: int) -> View:
        services = (IPv4Network("10.96.0.0/24"),)
        return mesh.view(index, spi=2, traffic=self.traffic, services=services)

    def _options(self, index: int) -> Options:
        settings = SETTINGS[index]
        return Options(
            node_mark_mask=settings.node_mark_mask,
            mark_mask=settings.mark_mask,
            strict=settings.strict,
            replay_window=self.random.choice((4096, 32)),
        )

    # What is done to both.

    def apply(self, index: int, *operations: ops.Operation) -> None:
        model = self.models[index]
        if len(operations) < 5:
            self.told += [f"n{index}: {model.render(one)}" for one in operations]
        else:
            self.told.append(f"n{index}: {len(operations)} operations")
        real = self.real.apply(index, operations)
        simulated = model.apply(operations)
        self.same("refused", _failures(real), _failures(simulated))
        if any(isinstance(one, ops.AddSa | ops.ReplaceSa) for one in operations):
            # Which second it was is no rule; which SA is the newest by seconds is one.
            for identity, added in self.real.added(index).items():
                if identity in model.usage:
                    model.usage[identity] = replace(model.usage[identity], added=added)

    def masquerade(self, index: int) -> None:
        """Turn masquerading on or off; connections that are known keep what they have, so none is gone on with."""
        model = self.models[index]
        model.masquerades = not model.masquerades
        self.told.append(f"n{index}: masquerade {'on' if model.masquerades else 'off'}")
        self.real.masquerade(index, on=model.masquerades)
        self.flying.clear()

    def something_happens(self) -> None:
        index = self.random.choice(NODES)
        model, wanted = self.models[index], self.wanted[index]
        match self.random.randrange(20):
            case 0:
                self.told.append(f"n{index}: ip xfrm state flush")
                self.real.apply(index, [ops.DeleteSa(sa) for sa in model.sas.values()])
                model.flush_sas()
            case 1:
                self.told.append(f"n{index}: ip xfrm policy flush")
                self.real.apply(index, [ops.DeletePolicy(policy) for policy in model.policies.values()])
                model.flush_policies()
            case 2 | 3 | 4:
                self.apply(index, *diff(wanted, model.observe().state))
            case 5 | 6:
                missing = diff(wanted, model.observe().state)
                self.apply(index, *self.random.sample(missing, min(2, len(missing))))
            case 7 | 8:
                there = diff(KernelState(), model.observe().state)
                self.apply(index, *self.random.sample(there, min(2, len(there))))
            case 9 | 10 if (pair := rivals(self.random, index, model)) is not None:
                self._rivals(index, *pair)
            case _:
                self.apply(index, variant(self.random, index, model, wanted, esp=self.esp))

    def _rivals(self, index: int, policy: Policy, other: Policy) -> None:
        """Have two policies for one packet; then write the first one again, which is the younger one from then on."""
        for one in (other, policy):
            self.apply(index, ops.SetPolicy(one, replace=True))
            if policy.direction is Direction.OUT:
                theirs = policy.dst.network_address
                src = next(own for own in PODS[f"p{index}a"] if own.version == theirs.version)
                self._sends(index, f"p{index}a", self._inner(src, theirs))

    # What is sent through both.

    def a_packet(self) -> None:
        index = self.random.choice(NODES)
        match self.random.randrange(10):
            case 0:
                self._from_node(index)
            case 1 | 9:
                self._from_the_wire(index)
            case 2 | 3 if self.flying:
                self._again(self.random.choice(self.flying))
            case 4 if self.random.random() < 0.2:
                self._burst(index)
            case _:
                self._from_pod(index)

    def _ends(self, index: int) -> tuple[list[Address], list[Address]]:
        at = self.random.choice((0, 0, 1))
        pods = [addresses[at] for addresses in PODS.values()]
        nodes = [mesh.node(one).addresses[at] for one in NODES]
        managed = [addresses[at] for name, addresses in PODS.items() if name.endswith("a")]
        services = [one for one in SERVICES if one.version == pods[0].version]
        own = nodes.pop(index - 1)
        return [own, *pods], [*pods, *managed * 4, *services, *nodes, own, OUTSIDE[at]]

    def _inner(self, src: Address, dst: Address) -> Inner:
        self.ident += 1
        return Inner(src, dst, self.ident)

    def _from_pod(self, index: int) -> None:
        choose = self.random.choice
        pod = f"p{index}{choose('aaaab')}"
        sources, targets = self._ends(index)
        true = next(one for one in PODS[pod] if one.version == targets[0].version)
        src = true if self.random.random() < 0.85 else choose(sources)
        self._sends(index, pod, self._inner(src, choose(targets)))

    def _sends(self, index: int, pod: str, inner: Inner) -> None:
        model = self.models[index]
        device = next(link.ifindex for link in model.links if link.name == f"v{pod}")
        self.told.append(f"{pod} sends {inner.src} -> {inner.dst} ({inner.ident})")
        fate = model.send(inner, dnat=SERVICES.get(inner.dst), device=device)
        self.real.send(pod, inner)
        self.compare(index, fate)

    def _burst(self, index: int) -> None:
        """Have more packets on their way than a small window is wide."""
        other = self.random.choice([one for one in NODES if one != index])
        src, dst = PODS[f"p{index}a"][0], PODS[f"p{other}a"][0]
        fates = []
        self.told.append(f"p{index}a sends {BURST} packets {src} -> {dst} ({self.ident + 1} and on)")
        device = next(link.ifindex for link in self.models[index].links if link.name == f"vp{index}a")
        for _ in range(BURST):
            inner = self._inner(src, dst)
            fates.append(self.models[index].send(inner, device=device))
            self.real.send(f"p{index}a", inner)
        self.compare(index, *fates)
        for flying in self.random.sample(self.flying[-BURST:], min(5, len(self.flying))):
            self.arrives(flying)

    def _from_node(self, index: int) -> None:
        (own, *_), targets = self._ends(index)
        inner = self._inner(own, self.random.choice([one for one in targets if one != own]))
        self.told.append(f"n{index} itself sends {inner.src} -> {inner.dst} ({inner.ident})")
        fate = self.models[index].send_own(inner, dnat=SERVICES.get(inner.dst))
        self.real.send_own(index, inner)
        self.compare(index, fate)

    def _from_the_wire(self, index: int) -> None:
        """Somebody on the wire speaks, in anybody's name."""
        sources, targets = self._ends(index)
        here = [one for one, pod in SERVICES.items() if pod in PODS[f"p{index}a"] and one.version == targets[0].version]
        inner = self._inner(self.random.choice((*sources, *targets)), self.random.choice((*targets, *here * 8)))
        self.told.append(f"on the wire of n{index}: {inner.src} -> {inner.dst} ({inner.ident})")
        fate = self.models[index].receive(Frame(inner.src, inner.dst, inner), dnat=SERVICES.get(inner.dst))
        self.real.inject(index, self.real.frame(inner))
        self.compare(index, fate)

    def _again(self, flying: Flying) -> None:
        frame, raw, left = flying
        what = ""
        if frame.spi is not None:
            match self.random.randrange(4):
                case 0:
                    raw = raw[:-1] + bytes([raw[-1] ^ 1])
                    frame, what = replace(frame, key=OTHER_KEY), ", a bit flipped"
                case 1:
                    src = self.random.choice([mesh.node(one).addresses[frame.src.version == 6] for one in NODES])
                    frame, raw, what = replace(frame, src=src), forged(raw, src), f", from {src}"
        self.told.append(f"again{what}:")
        self.arrives((frame, raw, left), astray=self.random.random() < 0.1)

    def arrives(self, flying: Flying, *, astray: bool = False) -> None:
        """Have a frame arrive at the node that it is for, or at any other."""
        frame, raw, left = flying
        meant = [one for one in NODES if frame.dst in (*mesh.node(one).addresses, *PODS[f"p{one}a"], *PODS[f"p{one}b"])]
        nodes = [one for one in (meant if meant and not astray else NODES) if one not in left]
        if not nodes:
            return
        index = self.random.choice(nodes)
        self.told.append(f"at n{index} arrives {_shown(frame)}")
        inner = frame.inner
        fate = self.models[index].receive(frame, dnat=SERVICES.get(inner.dst))
        self.real.inject(index, raw)
        self.compare(index, fate, left=left)

    # What is compared.

    def compare(self, index: int, *fates: Fate, left: frozenset[int] = frozenset()) -> None:
        model = self.models[index]
        self.packets += len(fates)
        emitted = [_seen(fate.frame) for fate in fates if fate.frame]
        delivered = [
            (_where(index, fate.delivered.dst), fate.delivered.src, fate.delivered.ident)
            for fate in fates
            if fate.delivered
        ]
        counted = {name: value for name, value in (model.numbers | model.errors).items() if value}
        frames: list[tuple[Seen, bytes]] = []
        arrived: list[tuple[str, Address, int]] = []
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            frames += self.real.emitted(index)
            arrived += self.real.delivered(index)
            now = {name: value - self.before[index].get(name, 0) for name, value in self.real.counted(index).items()}
            now = {name: value for name, value in now.items() if value}
            simulated, real = (emitted, delivered, counted), ([seen for seen, _ in frames], arrived, now)
            if simulated == real or time.monotonic() > until:
                break
        self.told.append(f"    {fates[-1].why or 'delivered'}")
        self.same(f"n{index}: emitted, delivered, counted", real, simulated)
        on_the_wire = [fate.frame for fate in fates if fate.frame]
        for frame, (_, raw) in zip(on_the_wire, frames, strict=True):
            self.flying.append((frame, raw, left | {index}))
        if on_the_wire and len(fates) == 1 and not left and self.random.random() < 0.85:
            self.arrives(self.flying[-1])

    def same(self, what: str, real: object, simulated: object) -> None:
        if real != simulated:
            story = "\n".join(self.told)
            raise DifferenceError(f"{story}\n{what}\n  real      {real}\n  simulated {simulated}")

    def ends(self) -> None:
        """Compare all that is there."""
        for index, model in self.models.items():
            self.told.append(f"n{index}: what is there in the end")
            found = self.real.observe(index)
            for name in KernelState.__slots__:
                self.same(name, getattr(found.state, name), getattr(model.observe().state, name))
            for identity, usage in model.usage.items():
                self.same(f"use of {identity}", _used(found.usage[identity]), _used(usage))
            self.same("emitted late", self.real.emitted(index), [])

    def clear(self) -> None:
        """Leave the real nodes as they were."""
        for index, model in self.models.items():
            self.real.apply(index, diff(KernelState(), self.real.observe(index).state))
            if model.masquerades:
                self.real.masquerade(index, on=False)


def _where(index: int, address: Address) -> str:
    return next((name for name, addresses in PODS.items() if address in addresses), f"n{index}")


def _seen(frame: Frame) -> Seen:
    if frame.spi is None:
        return Seen(frame.src, frame.dst, ident=frame.inner.ident)
    return Seen(frame.src, frame.dst, spi=frame.spi, number=frame.sequence & LOW)


def _shown(frame: Frame) -> str:
    how = "in clear" if frame.spi is None else f"as ESP, SPI {frame.spi}, number {frame.sequence}"
    return f"{frame.inner.src} -> {frame.inner.dst} ({frame.inner.ident}) {how} from {frame.src}"


def _failures(failures: Sequence[Failure]) -> list[tuple[ops.Operation, type]]:
    return [(failure.operation, type(failure.error)) for failure in failures]


def _used(usage: SaUsage) -> tuple[int, ...]:
    return usage.added, usage.packets, usage.sequence, usage.replays, usage.integrity_failures


def main(seeds: Sequence[str]) -> int:
    """Live the stories of these seeds; give the exit status: 1, differences were found and told."""
    status = 0
    with real_nodes() as real:
        esp = real.can_encrypt()
        for seed in seeds:
            try:
                story = live(real, int(seed), esp=esp)
            except DifferenceError as error:
                print(error, flush=True)
                status = 1
            else:
                without = "" if esp else "; this kernel has no ESP"
                print(f"seed {seed}: {story.packets} packets, no difference{without}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

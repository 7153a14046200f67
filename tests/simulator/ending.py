# SPDX-License-Identifier: Apache-2.0
"""Check 5, the end: faults stop, time passes, and then all is as it should be and nothing is done any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmesh.cluster.objects import NAMESPACE
from kmesh.cluster.status import lease_name
from kmesh.kmeshctl import health

from tests.simulator.events import connect
from tests.simulator.judge import ViolationError
from tests.simulator.machine import LivePod
from tests.simulator.telling import Telling
from tests.simulator.troubles import reconcile_objects, tell_the_truth
from tests.simulator.ways import Way

if TYPE_CHECKING:
    from tests.simulator.world import World

REST = ((2.0, 2), (12.0, 2), (12.0, 2), (35.0, 1), (620.0, 1), (13.0, 1), (30.0, 2))
"""Seconds that pass, and in how many rounds: past grace, idleness, lingering and the rest between two renewals."""


def come_to_rest(world: World, telling: Telling) -> None:
    """Let all faults end, and see what is left."""
    world.story.tell("from here on nothing goes wrong any more")
    _mend(world)
    for seconds, rounds in REST:
        world.advance(seconds, rounds)
    _converged(world)
    _pairs(world, telling)
    _idle(world)
    _content(world, telling)


def _mend(world: World) -> None:
    for entry in sorted(world.later):
        entry[2]()  # what was to happen later happens now
    world.later.clear()
    world.server.away_until, world.server.refusals = 0.0, 0
    for machine in world.machines:
        machine.lag, machine.arguments, machine.kill_in, machine.refusals = 0.0, (), None, 0
        connect(world, machine)
        tell_the_truth(world, machine)
    reconcile_objects(world)
    names = {lease_name(machine.name) for machine in world.machines}
    for _, _, name in [who for who in world.server.objects if who[0] == "Lease" and who[2] not in names]:
        world.server.delete("Lease", NAMESPACE, name)
    if world.keyring() is None:
        world.new_key()
    for machine in world.machines:
        if machine.source is not None:
            for line in machine.source.feed.lines:
                line.delay = line.due = 0.0
        if not machine.running:
            machine.start()


def _converged(world: World) -> None:
    """All that is held is of nodes that are there, and of the newest key."""
    held = world.keyring()
    newest = held.current if held else 0
    addresses = {address for machine in world.machines for address in machine.addresses}
    for machine in world.machines:
        seen = world.judge.of(machine)
        report = seen.report
        if report is None or not report.converged or report.plan.due is not None:
            raise ViolationError(5, f"{machine.name} does not come to rest: {report.drift if report else 'no pass'}")
        if machine.is_go:
            continue  # of two Go nodes none can change its incarnation, so they may have no key left that is new to both
        for sa in machine.kernel.sas.values():
            if sa.spi != newest:
                raise ViolationError(5, f"{machine.name} still has an SA of SPI {sa.spi}, {newest} is the newest")
            if not {sa.src, sa.dst} <= addresses:
                raise ViolationError(5, f"{machine.name} still has an SA {sa.src} -> {sa.dst} of a node that is gone")
        strangers = machine.kernel.peers.keys() - addresses
        if strangers:
            raise ViolationError(5, f"{machine.name} still has peers that are gone: {sorted(map(str, strangers))}")


def _pairs(world: World, telling: Telling) -> None:
    """Every pair talks, by whatever way; encrypted, where both are managed, and `explain` says so."""
    known = world.knowledge()
    for source, target in world.every_pair():
        go = source.machine.is_go or target.machine.is_go
        for way in Way if not go else (Way.STRAIGHT, Way.SERVICE):
            _talk(world, *world.ends(source, target, way), way)
        managed = all(known.says(address) for pod in (source, target) for address in pod.addresses)
        if managed:
            answer = telling.explain(source, target)
            if not answer.encrypted:
                reasons = [way.trace.reason for way in answer.ways]
                raise ViolationError(5, f"explain {source.label} {target.label} says not encrypted: {reasons}")


def _talk(world: World, source: LivePod, target: LivePod, way: Way) -> None:
    """One packet arrives, and is encrypted if it must be: between managed pods, and between a node and a managed pod."""
    before, known = len(world.recorded), world.knowledge()
    via = target.machine if way is Way.NODE_PORT else None
    if not world.send(source, target, way, via):
        raise ViolationError(5, f"in the end no packet arrives from {source.label} to {target.label} {way.value}")
    ends = [end for end in (source, target) if end is not end.machine.itself()]
    if way is Way.NODE_PORT:
        ends = [source]
    managed = all(known.says(address) for end in ends for address in end.addresses)
    if managed and world.recorded[before].frame.spi is None:
        raise ViolationError(5, f"in the end {source.label} speaks to {target.label} in clear {way.value}")


def _idle(world: World) -> None:
    """Another pass does nothing at all."""
    world.quiet = True
    revision = world.server.revision
    for machine in world.machines:
        machine.kernel.log.clear()
        machine.wake_at = world.now
        machine.turn()
        if machine.kernel.log:
            raise ViolationError(5, f"{machine.name} is not idle: {machine.kernel.log[:3]}")
    told = [change.who for change in world.server.changes[revision:] if change.who[0] != "Lease"]
    if told:
        raise ViolationError(5, f"nodes still write to the API server: {told}")


def _content(world: World, telling: Telling) -> None:
    findings = health.examine(telling.cluster().objects, telling.leases(), world.now).findings
    if findings:
        raise ViolationError(5, f"status is not content in the end: {'; '.join(map(str, findings))}")

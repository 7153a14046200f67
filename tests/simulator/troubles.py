# SPDX-License-Identifier: Apache-2.0
"""What may happen to keys, to the API server and what is on it; and nodes that lie."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from kmesh.cluster import secret
from kmesh.cluster.objects import NAMESPACE, SECRET_NAME

from tests.simulator.events import any_machine, event, with_daemon
from tests.simulator.machine import Machine
from tests.simulator.packets import Frame, Inner
from tests.simulator.server import Manifest
from tests.simulator.ways import Trip
from tests.simulator.world import World


# Keys.
@event("keys", 10)
def key_is_replaced(world: World, draw: Random) -> str | None:
    return f"the key is replaced: SPI {world.new_key()}"


@event("keys", 3)
def key_is_replaced_twice(world: World, draw: Random) -> str | None:
    world.new_key()
    return f"the key is replaced twice in a row: SPI {world.new_key()}"


@event("keys", 3)
def key_is_replaced_as_upstream_does(world: World, draw: Random) -> str | None:
    held = world.keyring()
    if held is None:
        return None
    spi = held.current + 1
    world.server.put(secret.render(secret.Keyring(spi, {spi: world.material()})))
    return f"upstream's kmeshctl replaces the key, and keeps no older one: SPI {spi}"


@event("keys", 2)
def key_is_replaced_by_a_former_one(world: World, draw: Random) -> str | None:
    held = world.keyring()
    if held is None or len(held.keys) < 2:
        return None
    spi, old = held.current + 1, draw.choice([key for version, key in sorted(held.keys.items())][:-1])
    kept = {**held.keys, spi: old}
    if draw.random() < 0.5:
        kept = {spi: old}
        world.judge.erased.add(old)
        for machine in world.machines:  # no daemon that starts now can know
            world.judge.blame(machine, "somebody has stored a key twice, and erased that it was used")
    world.server.put(secret.render(secret.Keyring(spi, kept)))
    world.at(draw.choice((1.0, 30.0)), lambda: world.new_key() and None)
    return f"a key that was used before is stored under SPI {spi}; a new one follows"


@event("keys", 2)
def key_is_deleted(world: World, draw: Random) -> str | None:
    held = world.server.get("Secret", NAMESPACE, SECRET_NAME)
    if held is None:
        return None
    left = secret.render_deleted(secret.after(world.keyring(), secret.history(held))) if draw.random() < 0.5 else None
    if left is None:
        world.server.delete("Secret", NAMESPACE, SECRET_NAME)
    else:
        world.server.put(left)
    world.at(draw.choice((1.0, 30.0, 300.0)), lambda: None if world.keyring() else world.new_key() and None)
    return f"the key is deleted{', Secret and all' if left is None else ''}; a new one follows"


@event("keys", 1)
def secret_is_broken(world: World, draw: Random) -> str | None:
    held = world.server.get("Secret", NAMESPACE, SECRET_NAME)
    if held is None:
        return None
    broken = {"ipSec": draw.choice(("e30=", "%%%", "W10="))}
    world.server.put({**held, "data": broken})
    world.at(draw.choice((1.0, 100.0)), lambda: mend_secret(world, broken, held))
    return "the Secret cannot be read for a while"


def mend_secret(world: World, broken: Manifest, good: Manifest) -> None:
    """Store a Secret again, unless another one has taken the place of the broken one."""
    now = world.server.get("Secret", NAMESPACE, SECRET_NAME)
    if now is not None and now["data"] == broken:
        world.server.put(good)


# The API server, and what is on it.
@event("server", 8)
def watches_fall_behind(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None:
        return None
    machine.lag = draw.choice((0.0, 0.3, 1.5, 8.0, 40.0))
    if machine.source is not None:
        for line in machine.source.feed.lines:
            line.delay = machine.lag * draw.random()
    return f"{machine.name}'s watches are up to {machine.lag} s late from now on, each one on its own"


@event("server", 3)
def watches_are_cut(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None or machine.source is None:
        return None
    seconds = draw.choice((0.5, 5.0, 60.0))
    compacted = draw.random() < 0.5
    for line in machine.source.feed.lines:
        if draw.random() < 0.7:
            line.cut(world.now + seconds * draw.random())
    if compacted:
        world.at(seconds / 2, world.server.compact)
    return f"{machine.name}'s watches break off for up to {seconds} s{', and the server compacts' if compacted else ''}"


@event("server", 2)
def server_is_away(world: World, draw: Random) -> str | None:
    seconds = draw.choice((2.0, 30.0, 400.0, 4000.0))
    world.server.away_until = world.now + seconds
    return f"the API server is away for {seconds:.0f} s"


@event("server", 1)
def server_goes_back(world: World, draw: Random) -> str | None:
    seconds = draw.choice((1.0, 5.0, 60.0))
    revision = max(world.founded, world.server.revision_at(world.now - seconds))
    held = world.server.get("Secret", NAMESPACE, SECRET_NAME)
    world.server.restore(revision)
    if held is not None:
        world.server.put(held)  # else kmeshctl would count from 1 again
    for machine in world.machines:
        world.judge.blame(machine, "the API server was restored from a backup")
    world.at(draw.choice((0.5, 5.0)), lambda: reconcile_objects(world))
    return f"the API server is restored from a backup {seconds:.0f} s old, but for the key"


def reconcile_objects(world: World) -> None:
    """Let kubelets and controllers mend what the API server holds of nodes and pods."""
    for machine in world.machines:
        if machine.powered:
            world.server.put(machine.node())
            for pod in machine.pods:
                world.server.put(pod.manifest())
    living = {("Pod", pod.namespace, pod.name) for pod in world.pods()}
    for who in [one for one in world.server.objects if one[0] == "Pod" and one not in living]:
        world.server.delete(*who)
    names = {machine.name for machine in world.machines}
    for kind, namespace, name in [one for one in world.server.objects if one[0] in ("Node", "KmeshNodeInfo")]:
        if name not in names:
            world.server.delete(kind, namespace, name)


@event("server", 2)
def restarted_daemon_is_shown_an_old_view(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None:
        return None
    seconds = draw.choice((0.5, 3.0, 20.0))
    machine.old_view = world.server.revision_at(world.now - seconds) or None
    machine.start()
    machine.old_view = None
    world.judge.blame(machine, "it was shown an old view of the cluster")
    return f"{machine.name}'s daemon is restarted, and shown the cluster of {seconds} s ago at first"


@event("server", 3)
def writes_are_refused(world: World, draw: Random) -> str | None:
    world.server.refusals = draw.choice((1, 3, 8))
    return f"the API server refuses the next {world.server.refusals} writes of daemons"


@event("server", 2)
def announcement_is_deleted(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None or world.server.get("KmeshNodeInfo", NAMESPACE, machine.name) is None:
        return None
    world.judge.blame(machine, "somebody has deleted its KmeshNodeInfo")
    world.server.delete("KmeshNodeInfo", NAMESPACE, machine.name)
    return f"somebody deletes {machine.name}'s KmeshNodeInfo"


@event("server", 1)
def announcement_is_forged(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    held = world.server.get("KmeshNodeInfo", NAMESPACE, machine.name) if machine else None
    if machine is None or held is None:
        return None
    world.judge.blame(machine, "somebody has changed its KmeshNodeInfo")
    change = draw.choice(({"bootID": "forged".ljust(36, "x")}, {"spi": 1}, {"addresses": ["10.99.0.1"]}))
    world.server.put({**held, "spec": {**held["spec"], **change}})
    return f"somebody writes {change} into {machine.name}'s KmeshNodeInfo"


# Nodes that lie.
def _lie(world: World, machine: Machine, draw: Random) -> tuple[str, dict[str, object]]:
    others = [one for one in world.machines if one is not machine]
    victim = draw.choice(others)
    pods = [pod for pod in world.pods() if pod.machine is not machine]
    lies: list[tuple[str, dict[str, object]]] = [
        (f"the addresses of {victim.name}", {"addresses": [str(one) for one in victim.addresses]}),
        ("SPI 4000000000", {"spi": 4_000_000_000}),
        ("SPI 0", {"spi": 0}),
    ]
    if pods:
        addresses = [str(one) for one in machine.addresses]
        pod = draw.choice(pods)
        lies.append((f"the address of pod {pod.label}", {"addresses": [*addresses, str(pod.addresses[0])]}))
    return draw.choice(lies)


@event("liars", 2)
def node_lies(world: World, draw: Random) -> str | None:
    """Root there has stopped the daemon, and announces what it likes; until the daemon is started again."""
    machine = with_daemon(world, draw)
    held = world.server.get("KmeshNodeInfo", NAMESPACE, machine.name) if machine else None
    if machine is None or held is None or len(world.machines) < 2:
        return None
    what, change = _lie(world, machine, draw)
    machine.stop()
    machine.lies = True
    world.judge.blame(machine, "it lies")
    world.server.put({**held, "spec": {**held["spec"], **change}})
    world.at(draw.choice((5.0, 60.0, 600.0)), lambda: tell_the_truth(world, machine))
    return f"{machine.name} announces {what} as its own"


def tell_the_truth(world: World, machine: Machine) -> None:
    """Let a node lie no more."""
    if machine.lies and machine.powered:
        world.judge.blame(machine, "it has lied")
        machine.lies = False
        machine.start()


@event("liars", 3)
def node_announces_anothers_incarnation(world: World, draw: Random) -> str | None:
    """Root there has stopped the daemon, and speaks as another node, with its own addresses."""
    machine = with_daemon(world, draw)
    held = world.server.get("KmeshNodeInfo", NAMESPACE, machine.name) if machine else None
    others = [one for one in world.server.of("KmeshNodeInfo") if machine and one["metadata"]["name"] != machine.name]
    if machine is None or held is None or not others:
        return None
    victim = draw.choice(others)
    machine.stop()
    machine.lies = True
    world.judge.blame(machine, "it lies")
    world.server.put({**held, "spec": {**held["spec"], "bootID": victim["spec"]["bootID"]}})
    world.at(5.0, lambda: tell_the_truth(world, machine))
    return f"{machine.name} announces the incarnation of {victim['metadata']['name']} as its own"


@event("liars", 3)
def node_speaks_for_anothers_pod(world: World, draw: Random) -> str | None:
    """Encrypted as it should be, by a node that has the key: root there may send whatever it likes."""
    pods = world.pods()
    machine = any_machine(world, draw)
    if machine is None:
        return None
    victims = [pod for pod in pods if pod.machine is not machine]
    if len({pod.machine for pod in victims}) < 2:
        return None
    source = draw.choice(victims)
    target = draw.choice([pod for pod in victims if pod.machine is not source.machine])
    ends = [sa for sa in machine.kernel.sas.values() if sa.mark is None and sa.dst in target.machine.addresses]
    if not ends:
        return None
    sa = max(ends, key=lambda one: one.spi)
    world.idents += 1
    src, dst = source.addresses[0], target.addresses[0]
    trip = Trip(world.idents, source, target, src, dst)
    usage = machine.kernel.usage[sa.id]
    machine.kernel.usage[sa.id] = replace(usage, sequence=usage.sequence + 1, packets=usage.packets + 1)
    inner, number = Inner(src, dst, world.idents), usage.sequence + 1
    frame = Frame(sa.src, sa.dst, inner, sa.spi, sa.key, number, sa.replay_window > 0)
    world.carry(trip, frame, machine, forged=True)
    return (
        f"{machine.name} sends to pod {target.label} in the name of {source.label} on {source.machine.name}, encrypted"
    )

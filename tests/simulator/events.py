# SPDX-License-Identifier: Apache-2.0
"""What may happen to nodes, daemons, pods and labels. Each event draws what it needs, and tells what it did.

An event that cannot happen now gives None. What a node's daemon must bear without a packet lost (keys, restarts, kills,
upgrades, delays of the API server) blames nobody; what nobody could bear is an excuse (:mod:`tests.simulator.judge`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from kmesh_bpf.core import marks
from tests.simulator.knowledge import LABEL
from tests.simulator.machine import LivePod, Machine
from tests.simulator.world import World

Happening = Callable[[World, Random], str | None]
MOST_MACHINES, MOST_PODS = 8, 4


@dataclass(frozen=True)
class Event:
    """A kind of event: its name, its group, how often it is drawn, and what it does."""

    name: str
    group: str
    weight: int
    happen: Happening


EVENTS: dict[str, Event] = {}


def event(group: str, weight: int = 2) -> Callable[[Happening], Happening]:
    """Register a kind of event."""

    def register(happen: Happening) -> Happening:
        name = happen.__name__
        EVENTS[name] = Event(name, group, weight, happen)
        return happen

    return register


def any_machine(world: World, draw: Random, *, running: bool = False, go: bool = True) -> Machine | None:
    """Draw one that is there; ``running``: with a daemon; not ``go``: with one of ours, as what happens is of ours."""
    found = [one for one in world.machines if one.powered and (one.running or not running) and (go or not one.is_go)]
    return draw.choice(found) if found else None


def with_daemon(world: World, draw: Random, *, go: bool = False) -> Machine | None:
    """Draw one whose daemon runs."""
    return any_machine(world, draw, running=True, go=go)


def any_pod(world: World, draw: Random) -> LivePod | None:
    pods = world.pods()
    return draw.choice(pods) if pods else None


def write(world: World, pod: LivePod) -> None:
    """Have the API server hold a pod's object as it is."""
    world.server.put(pod.manifest())


# Pods and labels.
@event("pods", 4)
def pod_comes(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None or len(machine.pods) >= MOST_PODS:
        return None
    namespace = draw.choice(("default", "default", "other"))
    labels = {LABEL: "Kmesh"} if namespace == "other" and draw.random() < 0.5 else {}
    late = draw.choice((0.0, 0.0, 0.4, 2.0))
    pod = world.add_pod(machine, namespace=namespace, labels=labels, told=not late)
    if late:
        world.at(late, lambda: write(world, pod) if pod in machine.pods else None)
    return f"pod {pod.label} comes to {machine.name} with {pod.addresses[0]}{f', told {late} s later' if late else ''}"


def _leave(world: World, draw: Random, pod: LivePod) -> str:
    """Let a pod end, and give what becomes of its object."""
    who = ("Pod", pod.namespace, pod.name)
    world.end_pod(pod)
    how = draw.choice(("at once", "at once", "late", "Failed", "terminating"))
    if how == "late":
        created = pod.created
        world.at(draw.choice((0.5, 3.0, 20.0)), lambda: _delete_pod(world, pod, created))
    elif how == "Failed":
        world.server.put(pod.manifest(phase=draw.choice(("Failed", "Succeeded"))))
    elif how == "terminating":
        world.server.put(pod.manifest(deleting=True))
        world.at(draw.choice((1.0, 30.0)), lambda: _delete_pod(world, pod, pod.created))
    else:
        world.server.delete(*who)
    return {"at once": "its object with it", "late": "its object later", "Failed": "its object stays behind"}.get(
        how, "its object is being deleted"
    )


def _delete_pod(world: World, pod: LivePod, created: str) -> None:
    """Delete a pod's object, unless it is another one's by now."""
    held = world.server.get("Pod", pod.namespace, pod.name)
    if held is not None and held["metadata"]["creationTimestamp"] == created:
        world.server.delete("Pod", pod.namespace, pod.name)


@event("pods", 3)
def pod_goes(world: World, draw: Random) -> str | None:
    pod = any_pod(world, draw)
    if pod is None or len(world.pods()) < 4:
        return None
    return f"pod {pod.label} on {pod.machine.name} ends, {_leave(world, draw, pod)}"


@event("pods", 4)
def pod_moves(world: World, draw: Random) -> str | None:
    pod, machine = any_pod(world, draw), any_machine(world, draw)
    if pod is None or machine is None or machine is pod.machine or len(machine.pods) >= MOST_PODS:
        return None
    before, fate = pod.machine.name, _leave(world, draw, pod)
    world.now += 1.0  # so that which is the newer one can be told
    name = f"{draw.choice('az')}{world.born}{world.idents}"
    new = world.add_pod(machine, name=name, namespace=pod.namespace, labels=pod.labels, addresses=pod.addresses)
    return (
        f"pod {pod.label} of {before} ends, {fate}; {new.label} on {machine.name} gets its address {new.addresses[0]}"
    )


@event("pods", 2)
def pods_device_is_replaced(world: World, draw: Random) -> str | None:
    pod = any_pod(world, draw)
    if pod is None:
        return None
    pod.ifindex, pod.since = pod.machine.device(), world.now
    world.relink(pod.machine)
    return f"pod {pod.label} on {pod.machine.name} gets another device"


@event("labels", 4)
def pod_is_labelled(world: World, draw: Random) -> str | None:
    pod = any_pod(world, draw)
    if pod is None or world.server.get("Pod", pod.namespace, pod.name) is None:
        return None
    value = draw.choice(("Kmesh", "kmesh", "none", ""))
    pod.labels = {LABEL: value} if value else {}
    write(world, pod)
    return f"pod {pod.label} on {pod.machine.name} is labelled {value!r}"


@event("labels", 3)
def namespace_is_labelled(world: World, draw: Random) -> str | None:
    name, value = draw.choice(("default", "other")), draw.choice(("Kmesh", "Kmesh", "", "ambient"))
    world.namespace(name, {LABEL: value} if value else {})
    return f"namespace {name} is labelled {value!r}"


# Daemons.
@event("daemons", 8)
def daemon_is_killed_in_its_work(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw, go=True)
    if machine is None:
        return None
    machine.kill_in = draw.choice((0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30))
    return f"{machine.name}'s daemon will be killed after {machine.kill_in} operations more"


@event("daemons", 4)
def daemon_is_restarted(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw, go=True)
    if machine is None:
        return None
    machine.start()
    return f"{machine.name}'s daemon is restarted"


@event("daemons", 3)
def daemon_is_stopped(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw, go=True)
    if machine is None:
        return None
    machine.stop()
    seconds = draw.choice((1.0, 20.0, 100.0, 1000.0, 8000.0))
    boots = machine.boots
    world.at(seconds, lambda: come_back(machine, boots))
    return f"{machine.name}'s daemon is stopped, for {seconds:.0f} s"


def come_back(machine: Machine, boots: int) -> None:
    """Start a daemon, if its machine is still as it was."""
    if not machine.running and machine.powered and machine.boots == boots and not machine.lies:
        machine.start()


@event("daemons", 3)
def daemon_is_started(world: World, draw: Random) -> str | None:
    found = [machine for machine in world.machines if machine.powered and not (machine.running or machine.lies)]
    if not found:
        return None
    machine = draw.choice(found)
    machine.start()
    return f"{machine.name}'s daemon is started"


@event("daemons", 3)
def daemon_is_upgraded(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None:
        return None
    kernel = machine.kernel
    kernel.attachments = {replace(one, current=False) for one in kernel.attachments}
    machine.start()
    return f"{machine.name}'s daemon is of another build now"


@event("daemons", 2)
def daemon_comes_from_contract_version_1(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None:
        return None
    kernel = machine.kernel
    kernel.attachments = {replace(one, current=False) for one in kernel.attachments}
    kernel.peers = {one: replace(entry, pair=marks.UNKNOWN_PAIR, retired=0) for one, entry in kernel.peers.items()}
    kernel.sources, kernel.pod_devices, kernel.formers = {}, set(), {}
    machine.start()
    return f"{machine.name} was downgraded to contract version 1, and is upgraded again"


@event("daemons", 1)
def replay_window_is_changed(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None:
        return None
    machine.arguments = () if machine.arguments else (draw.choice(("--replay-window=64", "--replay-window=0")),)
    world.judge.blame(machine, "its replay window is another one")
    machine.start()
    return f"{machine.name}'s daemon is restarted with {' '.join(machine.arguments) or 'no flags'}"


# Nodes.
@event("nodes", 3)
def node_joins(world: World, draw: Random) -> str | None:
    if len(world.machines) >= MOST_MACHINES:
        return None
    machine = world.join()
    for _ in range(draw.choice((0, 1, 2))):
        world.add_pod(machine)
    return f"{machine.name} joins, with {len(machine.pods)} pods"


@event("nodes", 2)
def node_leaves(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None or len(world.machines) <= 3:
        return None
    world.judge.blame(machine, "it has left")
    machine.stop()
    machine.powered = False
    pods, machine.pods = machine.pods, []
    behind = draw.choice(("nothing", "its pods", "its Node and pods"))
    for pod in pods:
        if behind == "nothing":
            world.server.delete("Pod", pod.namespace, pod.name)
        else:
            world.at(draw.choice((20.0, 300.0)), lambda pod=pod: _delete_pod(world, pod, pod.created))
    if behind == "its Node and pods":
        name, uid = machine.name, machine.uid
        world.at(draw.choice((50.0, 400.0)), lambda: _delete_node(world, name, uid))
    else:
        world.server.delete("Node", "", machine.name)
    world.machines.remove(machine)
    return f"{machine.name} leaves for good; {behind} stay(s) behind for a while"


def _delete_node(world: World, name: str, uid: str) -> None:
    held = world.server.get("Node", "", name)
    if held is not None and held["metadata"]["uid"] == uid:
        world.server.delete("Node", "", name)


@event("nodes", 4)
def node_reboots(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None:
        return None
    machine.stop()
    machine.lies = False
    machine.boots += 1
    machine.guarded = machine.kept
    for pod in machine.pods:
        pod.ifindex, pod.since = machine.device(), world.now
    machine.kernel.reboot()
    world.relink(machine)
    world.judge.boots(machine)
    world.server.put(machine.node())
    seconds = draw.choice((0.0, 1.0, 30.0))
    boots = machine.boots
    world.at(seconds, lambda: come_back(machine, boots))
    return f"{machine.name} reboots; its daemon starts after {seconds:.0f} s"


@event("nodes", 1)
def node_is_readdressed(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None:
        return None
    world.judge.blame(machine, "its address is another one")
    machine.place ^= 1
    world.relink(machine)
    late = draw.choice((0.0, 0.0, 3.0))

    def tell() -> None:
        if machine in world.machines:
            world.judge.blame(machine, "its address is another one")
            world.server.put(machine.node())

    world.at(late, tell)
    return f"{machine.name}'s address is {machine.addresses[0]} now; the API server hears of it after {late:.0f} s"


@event("nodes", 1)
def node_is_renamed(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None:
        return None
    world.judge.blame(machine, "its name is another one")
    machine.stop()
    old, uid = machine.name, machine.uid
    machine.name = f"m{machine.index}" if machine.name.startswith("n") else f"n{machine.index}"
    machine.uid = f"uid-{machine.name}-{world.idents}"
    if draw.random() < 0.5:
        world.server.delete("Node", "", old)
    else:
        world.at(draw.choice((1.0, 60.0)), lambda: _delete_node(world, old, uid))
    world.server.put(machine.node())
    for pod in machine.pods:
        write(world, pod)
    machine.start()
    return f"{old} is called {machine.name} from now on"


@event("nodes", 2)
def uplink_goes_and_comes(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw)
    if machine is None or not machine.connected:
        return None
    world.judge.tampered(machine, "its uplink was down")
    machine.connected = False
    world.relink(machine)
    seconds = draw.choice((0.5, 5.0, 50.0))
    world.at(seconds, lambda: connect(world, machine))
    return f"{machine.name}'s uplink goes, for {seconds} s"


def connect(world: World, machine: Machine) -> None:
    """Let a machine's uplink be there again."""
    if not machine.connected:
        machine.connected = True
        world.judge.tampered(machine, "its uplink has just come")
        world.relink(machine)

# SPDX-License-Identifier: Apache-2.0
"""What may happen to kernel objects, in others' hands."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

from kmesh_bpf.core import marks
from tests.simulator.events import any_machine, event, with_daemon
from tests.simulator.packets import Frame, Inner
from tests.simulator.ways import Trip
from tests.simulator.world import World


@event("kernel", 3)
def states_are_flushed(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None:
        return None
    world.judge.blame(machine, "its SAs were flushed")
    machine.kernel.flush_sas()
    return f"somebody flushes the SAs of {machine.name}"


@event("kernel", 3)
def policies_are_flushed(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None:
        return None
    world.judge.blame(machine, "its policies were flushed")
    machine.kernel.flush_policies()
    return f"somebody flushes the policies of {machine.name}"


@event("kernel", 4)
def state_is_deleted(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None or not machine.kernel.sas:
        return None
    identity = draw.choice(list(machine.kernel.sas))
    world.judge.blame(machine, "one of its SAs was deleted")
    machine.kernel.delete_sa(identity)
    way = "out" if identity.mark is None else "in"
    return f"somebody deletes the SA {identity.src} -> {identity.dst} SPI {identity.spi} ({way}) of {machine.name}"


@event("kernel", 2)
def policy_is_deleted(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None or not machine.kernel.policies:
        return None
    identity = draw.choice(list(machine.kernel.policies))
    world.judge.blame(machine, "one of its policies was deleted")
    del machine.kernel.policies[identity]
    return f"somebody deletes a policy of {machine.name}: {identity.direction.value} {identity.src} -> {identity.dst}"


@event("kernel", 2)
def entry_is_deleted(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None:
        return None
    kernel = machine.kernel
    name = draw.choice(("peers", "pods", "sources"))
    held = getattr(kernel, name)
    if not held:
        return None
    one = draw.choice(list(held))
    world.judge.tampered(machine, f"an entry of its map of {name} was deleted")
    del held[one]
    return f"somebody deletes {one} from the map of {name} of {machine.name}"


@event("kernel", 3)
def pins_are_lost(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None:
        return None
    world.judge.tampered(machine, "its pins were lost")
    machine.kernel.lose_pins()
    also = draw.random() < 0.3
    if also:
        machine.kernel.flush_sas()
    machine.start()
    return f"{machine.name} loses its pins{' and SAs' if also else ''}, and its daemon is restarted"


@event("kernel", 2)
def programs_are_detached(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None or not machine.kernel.attachments:
        return None
    ifindex = draw.choice(sorted({one.ifindex for one in machine.kernel.attachments}))
    world.judge.tampered(machine, "programs were taken off a device")
    machine.kernel.detach(ifindex)
    return f"somebody takes all programs off device {ifindex} of {machine.name}"


@event("kernel", 1)
def nft_is_flushed(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None:
        return None
    world.judge.blame(machine, "its nft tables were flushed")
    machine.kernel.nat_exemption = False
    return f"somebody flushes the nft ruleset of {machine.name}"


@event("kernel", 2)
def masquerade_rule_comes_or_goes(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None:
        return None
    machine.kernel.masquerades = not machine.kernel.masquerades
    what = "has" if machine.kernel.masquerades else "has no more"
    return f"{machine.name} {what} a rule that masquerades what leaves by the uplink"


@event("kernel", 4)
def kernel_refuses_operations(world: World, draw: Random) -> str | None:
    machine = with_daemon(world, draw)
    if machine is None:
        return None
    machine.refusals = draw.choice((1, 1, 3, 10, 40))
    return f"the kernel of {machine.name} will refuse {machine.refusals} of the next operations of its daemon"


@event("kernel", 2)
def policy_of_somebody_else_stands_in_the_way(world: World, draw: Random) -> str | None:
    machine = any_machine(world, draw, go=False)
    if machine is None or not machine.kernel.policies:
        return None
    kernel = machine.kernel
    identity = draw.choice(list(kernel.policies))
    world.judge.blame(machine, "somebody's policy stands in the place of one of its own")
    theirs = [ip_address("192.0.2.1" if identity.src.version == 4 else "2001:db8::1")] * 2
    kernel.strangers[identity] = replace(kernel.policies.pop(identity), tunnel_src=theirs[0], tunnel_dst=theirs[1])
    world.at(draw.choice((1.0, 20.0, 200.0)), lambda: kernel.strangers.pop(identity, None))
    return f"somebody puts a policy of theirs in the place of {machine.name}'s {identity.src} -> {identity.dst}"


@event("kernel", 3)
def somebody_elses_sa_decrypts(world: World, draw: Random) -> str | None:
    """A tunnel of others, whose policies let pass what it brings: to our programs that is as good as in clear."""
    found = [pod for pod in world.pods() if pod.machine.kernel.links and not pod.machine.is_go]
    target = draw.choice(found) if found else None
    others = [pod for pod in world.pods() if target and pod.machine is not target.machine]
    if target is None or not others:
        return None
    source = draw.choice(others)
    our_reqid = draw.random() < 0.5
    mark = 0 if our_reqid else marks.decrypted_mark(target.machine.kernel.settings.mark_mask)
    world.idents += 1
    inner = Inner(source.addresses[0], target.addresses[0], world.idents)
    fate = target.machine.kernel.take_from_stranger(inner, mark, our_reqid=our_reqid)
    if fate.delivered is not None:
        trip = Trip(world.idents, source, target, inner.src, inner.dst)
        world.judge.arrived(trip, target.machine, Frame(inner.src, inner.dst, inner), source.machine)
    how = "by our reqid" if our_reqid else "by our mark"
    return f"an SA of somebody else, {how}, brings {target.label} on {target.machine.name} a packet of {source.label}"

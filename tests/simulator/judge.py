# SPDX-License-Identifier: Apache-2.0
"""What must hold at every step, whatever happens. Numbers are those of the issue that asked for it.

1. *No packet between two managed pods of different nodes on any wire in clear, from the moment that the sender's daemon
   could have known.* That moment is the end of its first pass that began while its cluster source held, for both
   addresses, one living pod that is managed (:mod:`tests.simulator.knowledge`); or the first packet of the two that was
   encrypted, whichever comes first. It lasts until a pass begins while the source says otherwise. A daemon that
   is stopped or killed knows on; so does one whose source shows nothing new. A node that boots knows what its boot guard
   drops, and nothing more. It does not hold while the node's programs or maps are as *somebody else* has left them, up
   to the daemon's next pass that converges.
2. *Nothing wrong is accepted*: in clear from a pod that the receiver's daemon knows, in the same sense, as managed
   elsewhere; in the name of a pod of a node other than the one that sent it; what was recorded, a second time.
3. *No (key, sequence) twice.*
4. *Each loss is explained* by one of: the network (a node without power or uplink); an *excuse*, which is something that
   others did to one of the two nodes (:meth:`Judge.blame`) and that has not been made good yet; a view (the last pass of
   one of the two daemons went by objects that do not say of the two pods what is so: the API server's delay). What a
   daemon does of its own accord, being killed, stopped, started or upgraded, and keys that are replaced, excuse nothing.
   A new incarnation is a violation by itself, for it costs packets, unless something was done to that very node since
   its last pass that converged, or there is an excuse for a pair that it is of. One is excused by what a daemon
   does: it was killed between the two writes that make an SA (:func:`kmesh_bpf.core.reach.in_order`).
   An excuse is made good once both daemons have, in passes begun since that converged, seen each other's incarnation
   as it is now, and say that they can send to each other; and the Secret holds no key (any more) that it held before,
   with somebody having erased that it did: whoever starts under such a one finds SAs of keys that he takes for new.
   Nor does a node announce a version before its programs are where they belong.
5. *Losses are told*: see :mod:`tests.simulator.telling`; and the end, :mod:`tests.simulator.ending`.
6. *What is somebody else's stays*: a policy of others by the selector of one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from kmesh.cluster.objects import NAMESPACE

from kmesh_bpf import Address, Key, Operation, Report, View
from kmesh_bpf.core.operations import SetPolicy
from kmesh_bpf.core.state import Program, Sa
from tests.simulator.knowledge import NOTHING, Knowledge, know
from tests.simulator.machine import LivePod, Machine
from tests.simulator.packets import Frame
from tests.simulator.ways import Trip, Way


class ViolationError(AssertionError):
    """Something that must never happen, by the number of the check."""

    def __init__(self, check: int, sentence: str) -> None:
        super().__init__(f"check {check}: {sentence}")
        self.check, self.sentence = check, sentence


@dataclass
class Seen:
    """What one daemon's passes went by: the one begun last, and the last one that ended; and what that one reported."""

    begun: Knowledge = NOTHING
    began_at: float = -1.0
    done: Knowledge | None = None
    done_at: float = -1.0
    done_began_at: float = -1.0
    converged_began_at: float = -1.0
    report: Report | None = None
    tampered: str = ""
    once: set[Trip] = field(default_factory=set)

    def knows(self, address: Address, pod: LivePod) -> bool:
        """Tell whether the daemon could have known that a pod with that address is managed."""
        told = (pod.machine.name, pod.label)
        return all(known.says(address) == told for known in (self.done or NOTHING, self.begun))


@dataclass(frozen=True)
class Excuse:
    """Why packets between two nodes may be lost, and since when."""

    why: str
    since: float


JUST_BOOTED, NEW_INCARNATION = "it has just booted", "a new incarnation"
GO_BEGINS_ANEW = "a Go node begins anew under its boot id"
"""Its keys come back, so its peers must change (:mod:`kmesh_bpf.core.incarnation`)."""
GO_IS_LATE = "one of the two, of which one is a Go node, was late with a new key"
"""A Go node does not tell what it sends with and heeds nobody who does: between the two an old SA goes when it is idle
(:class:`kmesh_bpf.core.keys.Retirement`)."""
Pair = frozenset[Machine]


class Judge:
    """Looks on; raises ViolationError."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.seen: dict[Machine, Seen] = {}
        self.excuses: dict[Pair, Excuse] = {}
        self.caused: dict[Machine, float] = {}
        """When something was last done to a machine that it may have to become another one for."""
        self.numbers: set[tuple[Key, int]] = set()
        self.accepted: set[int] = set()
        self.losing: dict[tuple[LivePod, LivePod], float] = {}
        self.erased: set[Key] = set()
        """Keys that were stored a second time, and that they were used was erased from the Secret."""
        self.reasons: dict[str, int] = {}
        self._known: dict[int, tuple[object, Knowledge]] = {}

    # What daemons do.
    def begins(self, machine: Machine, objects: Any) -> None:
        """Take in that a pass begins by these objects."""
        seen = self.of(machine)
        known = seen.begun
        kept = self._known.get(id(machine))
        if kept is None or kept[0] is not objects:
            known = know(objects) if objects.complete else NOTHING
            self._known[id(machine)] = (objects, known)
            if seen.once:
                seen.once = {trip for trip in seen.once if self._both_managed(known, trip)}
        if objects.complete:
            seen.begun, seen.began_at = known, self.world.now

    def done(self, machine: Machine, _view: View, report: Report) -> None:
        """Take in that a pass ended."""
        seen = self.of(machine)
        seen.report = report
        if report.failures:
            return
        seen.done, seen.done_at, seen.done_began_at = seen.begun, self.world.now, seen.began_at
        if report.converged:
            seen.tampered, seen.converged_began_at = "", seen.began_at
            for pair in [one for one in self.excuses if machine in one]:
                self._settle(pair)

    def renews(self, machine: Machine) -> None:
        """Take in that a daemon becomes another one, before it makes anything for that."""
        seen = self.of(machine)
        own = seen.report is None or self.caused.get(machine, -1.0) >= seen.converged_began_at
        if not (machine.is_go or own or any(machine in pair for pair in self.excuses)):
            raise ViolationError(4, f"{machine.name} changes its incarnation without a cause")
        self.world.story.tell(f"  {machine.name} is another one from now on")
        self.blame(machine, GO_BEGINS_ANEW if machine.is_go else NEW_INCARNATION)

    def announces(self, machine: Machine, manifest: Mapping[str, Any]) -> None:
        """Take in that a daemon is about to announce itself: whoever announces a version takes it from then on."""
        held = self.world.server.get("KmeshNodeInfo", NAMESPACE, machine.name)
        told, said = manifest["spec"], held["spec"] if held else {}
        new = (told["spi"], told["bootID"]) != (said.get("spi"), said.get("bootID"))
        kernel = machine.kernel
        on = {one.ifindex for one in kernel.attachments if one.program is Program.MARK_DECRYPT}
        bare = [link.name for link in kernel.links if link.leads_out and link.ifindex not in on]
        if new and bare and not machine.is_go:
            raise ViolationError(4, f"{machine.name} announces SPI {told['spi']} without its programs on {bare[0]}")

    def overwrites(self, machine: Machine, operation: Operation) -> None:
        """Take in that a daemon is about to do something."""
        if isinstance(operation, SetPolicy) and operation.replace and operation.policy.id in machine.kernel.strangers:
            raise ViolationError(6, f"{machine.name} overwrites somebody else's policy: {operation.policy.id}")

    def of(self, machine: Machine) -> Seen:
        """Give what a machine's daemon has seen."""
        return self.seen.setdefault(machine, Seen())

    def boots(self, machine: Machine) -> None:
        """Take in that a machine starts anew, with an empty kernel."""
        self.seen[machine] = Seen()
        self.blame(machine, JUST_BOOTED)

    # What others do.
    def blame(self, machine: Machine, why: str, *others: Machine) -> None:
        """Excuse losses between a machine and ``others`` (none: all) from now on, until it is made good."""
        self.caused[machine] = self.world.now
        for other in others or self.world.machines:
            if other is not machine:
                self.excuses[frozenset((machine, other))] = Excuse(f"{machine.name}: {why}", self.world.now)

    def tampered(self, machine: Machine, why: str) -> None:
        """Excuse, besides, what a node sends and takes in clear, until its daemon has had a pass."""
        self.of(machine).tampered = why
        self.blame(machine, why)

    def refused(self, machine: Machine) -> None:
        """Take in that a kernel refuses an operation: it can be tried again, and is no cause to become another one."""
        caused = self.caused.get(machine, -1.0)
        self.tampered(machine, "its kernel has refused an operation")
        self.caused[machine] = caused

    # What packets do.
    def on_wire(self, trip: Trip, machine: Machine, frame: Frame, forged: bool = False) -> None:
        """Take in a frame as it leaves a machine."""
        seen = self.of(machine)
        if frame.key is not None:
            number = (frame.key, frame.sequence)
            if number in self.numbers and not machine.is_go:
                raise ViolationError(3, f"{machine.name} uses number {frame.sequence} of one key twice: {trip}")
            self.numbers.add(number)
            if not forged and machine is trip.source.machine and self._both_managed(seen.begun, trip):
                seen.once.add(trip)
        if frame.spi is None and not forged:
            self._in_clear(trip, machine, seen, masqueraded=frame.src != trip.src)

    def passed_on(self, trip: Trip, machine: Machine, came: Frame, frame: Frame) -> None:
        """Take in a frame that a machine passes on: what came encrypted does not leave in clear."""
        if came.spi is not None and frame.spi is None and not (self.of(machine).tampered or machine.is_go):
            raise ViolationError(1, f"{machine.name} passes on in clear what came encrypted: {trip}")

    def arrived(self, trip: Trip, machine: Machine, frame: Frame, sender: Machine) -> None:
        """Take in that a pod was given a packet that came by the wire; ``sender``: who put the frame there."""
        seen = self.of(machine)
        if frame.spi is None:
            # What comes in the name of a node may be anybody's: masqueraded, or of a node that cannot encrypt it yet.
            named = frame.src == trip.src and trip.source is not sender.itself()
            strict = sender is not machine and not machine.is_go and not seen.tampered
            if named and strict and self._must_be_encrypted(machine, trip, sender):
                raise ViolationError(2, f"{machine.name} accepts in clear: {trip}")
        elif trip.ident in self.accepted and self._counts(frame, machine):
            raise ViolationError(2, f"{machine.name} accepts a second time what was recorded: {trip}")
        elif sender is not trip.source.machine and frame.inner.src == trip.src and seen.knows(trip.src, trip.source):
            raise ViolationError(2, f"{machine.name} accepts from {sender.name} in another node's name: {trip}")
        self.accepted.add(trip.ident)
        self.losing.pop((trip.source, trip.target), None)

    def lost(self, trip: Trip, why: str, frame: Frame | None = None) -> None:
        """Take in that a packet did not arrive; ``frame``: it was on the wire."""
        explanation = self.explain(trip) or (self._of_a_late_go_node(frame) if frame is not None else None)
        if explanation is None:
            raise ViolationError(4, f"lost without a cause: {trip}: {why}")
        if (trip.source, trip.target) not in self.losing:
            self.world.story.tell(f"  lost: {trip}: {why} ({explanation})")
        self.reasons[explanation] = self.reasons.get(explanation, 0) + 1
        self.losing.setdefault((trip.source, trip.target), self.world.now)

    def _of_a_late_go_node(self, frame: Frame) -> str | None:
        sender, receiver = self.world.machine_at(frame.src), self.world.machine_at(frame.dst)
        if frame.spi is None or sender is None or receiver is None or not (sender.is_go or receiver.is_go):
            return None
        newer = any(sa.src == frame.src and sa.mark and sa.spi > frame.spi for sa in receiver.kernel.sas.values())
        return GO_IS_LATE if newer else None

    def explain(self, trip: Trip) -> str | None:
        """Give what explains that a packet is lost; None: nothing does."""
        machines = trip.machines
        for machine in machines:
            if not (machine.powered and machine.connected):
                return "a node is off the network"
        for pair in pairwise(machines):
            excuse = self.excuses.get(frozenset(pair))
            if excuse is not None:
                return excuse.why.split(": ", 1)[1]
        for pod in (trip.source, trip.target):
            if self.of(pod.machine).done_began_at < pod.since:
                return "a pod's device has just come"
        truth = self.world.knowledge()
        for machine in machines:
            seen = self.of(machine)
            for address, pod in ((trip.src, trip.source), (trip.dst, trip.target)):
                views = (seen.begun, seen.done or NOTHING, truth)
                said = {known.says(address) for known in views}
                doubtful = any(address in known.doubtful for known in views)
                if doubtful or len(said) > 1 or said not in ({None}, {(pod.machine.name, pod.label)}):
                    return "a daemon's view of a pod is not the newest"
        if trip.way not in (Way.STRAIGHT, Way.SERVICE):
            for machine in machines:
                for known in (self.of(machine).begun, self.of(machine).done or NOTHING):
                    if any(known.nodes.get(one.name) != truth.nodes.get(one.name) for one in machines):
                        return "a daemon's view of a node is not the newest"
        if trip.via is not None and any(machine.is_go for machine in machines):
            return (
                "by a NodePort, with a Go node on the way, which encrypts nothing to nodes and takes nothing from them"
            )
        if len(machines) > 2 and truth.says(trip.dst) is None:
            return "by a NodePort to a pod of a third node that is not managed (README, Limits)"
        return None

    def _in_clear(self, trip: Trip, machine: Machine, seen: Seen, *, masqueraded: bool) -> None:
        if seen.tampered or machine is not trip.source.machine or machine.is_go:
            return
        by_address = masqueraded or trip.way not in (Way.STRAIGHT, Way.SERVICE)
        if by_address and trip.source.since > seen.done_began_at:
            return  # a known limit: on a device that has just come no program marks, and the guard sees a node's address
        if self._must_be_encrypted(machine, trip, trip.first):
            raise ViolationError(1, f"in clear, though {machine.name}'s daemon knows both: {trip}")
        if trip in seen.once and trip.way in (Way.STRAIGHT, Way.SERVICE):
            raise ViolationError(1, f"in clear, after it was encrypted: {trip}")

    def _must_be_encrypted(self, here: Machine, trip: Trip, there: Machine) -> bool:
        """Tell whether a daemon knows enough to encrypt a packet, or to expect it encrypted.

        What goes to a node's address, or comes from one, is encrypted if the two nodes can, and not because of who the
        pod is (README, Limits): not while anything is wrong between them, and never with a Go node.
        """
        seen = self.of(here)
        if trip.way in (Way.STRAIGHT, Way.SERVICE):
            return self._knows_both(seen, trip)
        if there.is_go or frozenset((here, there)) in self.excuses or seen.report is None or seen.done is None:
            return False
        told, shown = seen.done.infos.get(there.name), tuple(map(str, there.addresses))
        current = told is not None and told == seen.begun.infos.get(there.name) and told[1] == shown
        recorded = (known.nodes.get(there.name, frozenset()) for known in (seen.done, seen.begun))
        current = current and all(addresses.issuperset(there.addresses) for addresses in recorded)
        end = (trip.dst, trip.target) if trip.source is trip.source.machine.itself() else (trip.src, trip.source)
        return current and there.name in seen.report.reachable and seen.knows(*end)

    def _knows_both(self, seen: Seen, trip: Trip) -> bool:
        return seen.knows(trip.src, trip.source) and seen.knows(trip.dst, trip.target)

    @staticmethod
    def _both_managed(known: Knowledge, trip: Trip) -> bool:
        ends = ((trip.src, trip.source), (trip.dst, trip.target))
        return all(known.says(address) == (pod.machine.name, pod.label) for address, pod in ends)

    @staticmethod
    def _counts(frame: Frame, machine: Machine) -> bool:
        """Tell whether an SA that took a frame keeps a window: without one nothing is promised."""
        return all(sa.replay_window for sa in machine.kernel.sas.values() if sa.key == frame.key)

    def _settle(self, pair: Pair) -> None:
        ring = self.world.keyring()
        if ring is not None and not self.erased.isdisjoint(ring.keys.values()):
            return  # a daemon that starts, whenever that is, cannot know
        one, other = pair
        since = self.excuses[pair].since
        if all(self._good(a, b, since) for a, b in ((one, other), (other, one))):
            del self.excuses[pair]

    def _good(self, here: Machine, there: Machine, since: float) -> bool:
        seen = self.of(here)
        if here.lies or here.kernel.strangers or seen.done is None or seen.report is None or seen.done_began_at < since:
            return False
        shown = (there.kernel.incarnation(), tuple(map(str, there.addresses)))
        return (
            seen.report.converged
            and seen.done.infos.get(there.name) == self.world.knowledge().infos.get(there.name) == shown
            and there.name in seen.report.reachable
            and _understood(here, there)
        )


def _understood(here: Machine, there: Machine) -> bool:
    """Tell whether one node can decrypt what the other one sends now."""
    held = {(sa.dst, sa.spi, sa.key) for sa in here.kernel.sas.values() if sa.mark is not None}
    sent: dict[Address, Sa] = {}
    for sa in there.kernel.sas.values():
        if sa.mark is None and sa.dst in here.addresses and (sa.dst not in sent or sent[sa.dst].spi < sa.spi):
            sent[sa.dst] = sa
    return all((sa.dst, sa.spi, sa.key) in held for sa in sent.values())

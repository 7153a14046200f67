# SPDX-License-Identifier: Apache-2.0
"""Observe, plan, diff, apply, read back: one level-triggered pass that knows both sides and decides nothing.

Who makes one pass after the other keeps a :class:`Reconciler`: what it remembers of the pass before, of the plan and of
the kernel, makes the next one cost what has changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from kmesh_bpf.core.audits import Audit
from kmesh_bpf.core.claims import Evidence, evidence
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.incarnation import Announcement, Decision, Memory, Needs, decide, remember
from kmesh_bpf.core.mirror import Held, Keys, Mirror, restricted
from kmesh_bpf.core.operations import DeleteSa, Operation
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import Plan, Planner
from kmesh_bpf.core.reach import in_order
from kmesh_bpf.core.state import Observation, SaId
from kmesh_bpf.core.view import Address, View
from kmesh_bpf.errors import KmeshBpfError
from kmesh_bpf.kernel.interface import Failure, Kernel

ROUNDS = 3
"""A second round reads back, a third writes what the second found out; more would be a fight with somebody."""


Phase = Literal["observe", "plan", "apply", "read back"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did. ``drift``: what still differs from the plan after it; empty when the pass succeeded.

    ``applied`` was carried out, what is in ``failures`` was not. ``decision``: on the incarnation that the objects were
    made for. ``observed``: what the pass left in the kernel, until the next pass of the same reconciler. ``held`` gives
    of that what there is for a peer's address; ``touched``: the addresses for which it gives something else than after
    the pass before, or SAs of which their use was asked since, None: maybe all. ``reachable``:
    names of the peers, of those that we should be able to send to, that we can send to by what was observed. ``memory``
    is for the next pass. ``evidence``: what the kernel shows of who has which address. ``spent``: seconds by phase,
    since the report before. ``sends``: the lowest key version that is sent with to any peer; 0: nothing is sent.
    """

    plan: Plan
    applied: tuple[Operation, ...]
    failures: tuple[Failure, ...]
    drift: tuple[Operation, ...]
    decision: Decision
    observed: Observation
    reachable: frozenset[str]
    memory: Memory
    held: Callable[[Address], Held]
    touched: frozenset[Address] | None
    spent: Mapping[Phase, float]
    evidence: Evidence = field(default_factory=Evidence)
    sends: int = 0

    @property
    def expected(self) -> frozenset[str]:
        """The names of the peers that we should be able to send to."""
        return self.plan.expected

    @property
    def incarnation(self) -> str:
        """The incarnation that the objects were made for."""
        return self.decision.incarnation

    @property
    def renewed(self) -> bool:
        """Whether it took the place of another one in this pass."""
        return self.decision.renewed

    @property
    def converged(self) -> bool:
        """Whether the kernel holds exactly what was planned."""
        return not self.drift and not self.failures


class Reconciler:
    """Makes passes over one kernel.

    ``clock`` gives seconds since the epoch, ``fresh_incarnation`` a text of 36 characters that was never used.
    ``memory`` is that of a reconciler before; without it SAs of peers that have gone stay.
    """

    def __init__(
        self,
        kernel: Kernel,
        options: Options,
        clock: Callable[[], float],
        fresh_incarnation: Callable[[], str],
        memory: Memory | None = None,
    ) -> None:
        self.memory = memory or Memory()
        self._kernel, self._options, self._clock = kernel, options, clock
        self._fresh_incarnation = fresh_incarnation
        self._planner = Planner(options)
        self._mirror: Mirror | None = None
        self._doubtful = Keys()
        """Objects that somebody else may have touched."""
        self._audits: list[Audit] = []
        self._spent: Counter[Phase] = Counter()
        self._fresh: frozenset[SaId] | None = None
        """SAs whose usage was asked for in this pass; None: of all."""
        self._open = Keys()
        """Objects that may differ from the plan."""
        self._reachable: frozenset[str] = frozenset()
        self._replanned: frozenset[str] = frozenset()
        """Nodes of which it is to be found out anew whether they are reached."""

    def forget(self) -> None:
        """Have the next pass observe the whole kernel: somebody else may have changed anything."""
        self._mirror = None

    def doubt(self, keys: Keys) -> bool:
        """Have the next pass read some objects anew, for somebody else may have changed them; give whether any."""
        if not keys:
            return False
        self._doubtful.add(keys)
        return True

    def doubt_rest(self) -> None:
        """Have the next pass read anew what is little, and partly not told of: devices, rules of others, settings."""
        self.doubt(Keys(rest=True))

    def changed(self) -> Keys:
        """Take what the kernel tells of others' changes, for the next pass to look into; give what they are about."""
        touched = self._kernel.changed()
        self.doubt(touched)
        return touched

    def attach_missing(self, node_addresses: Iterable[Address], uplinks: Collection[str]) -> tuple[Operation, ...]:
        """Have devices get what must not wait for a pass; give what was done.

        See :meth:`kmesh_bpf.kernel.interface.Kernel.attach_missing`.

        Raises:
            DecodeError, KernelError: it could not be found out.

        """
        done, _ = self._kernel.attach_missing(node_addresses, uplinks)
        self.doubt(Keys.of(done))
        return done

    def look(self) -> Iterator[bool | None]:
        """Look for changes that nobody tells of, in steps of a few milliseconds; each gives whether there are any.

        None: nor is there anything to do yet, for a thread is at it. They are for the next pass to look into. Between
        two steps there may be passes, and anything else. Before the first pass there is nothing to compare with.

        Raises:
            KmeshBpfError: it could not be found out; the next pass observes the whole kernel.

        """
        mirror = self._mirror
        if mirror is None:
            return  # the next pass observes everything
        with self._whole_after_failure():
            for found in self._kernel.look(mirror.state):
                if mirror is not self._mirror:
                    return
                yield None if found is None else self.doubt(found)

    def audit(self) -> Iterator[bool]:
        """Compare all that is known with the kernel once more, in such steps, as :meth:`look` does.

        Of a mapping it is told once it has been read to the end.
        """
        with self._whole_after_failure():
            yield from self._audit()

    def _audit(self) -> Iterator[bool]:
        mirror = self._mirror
        if mirror is None:
            return  # the next pass observes everything
        audit, differs = Audit(mirror), False
        self._audits.append(audit)
        try:
            for piece in self._kernel.audit():
                if mirror is not self._mirror:
                    return
                differs = self.doubt(audit.take(piece)) or differs
                yield differs and piece.ends
                differs = differs and not piece.ends
        finally:
            self._audits.remove(audit)

    @contextmanager
    def _whole_after_failure(self) -> Iterator[None]:
        try:
            yield
        except KmeshBpfError:
            self.forget()
            raise

    def observe(self) -> Observation:
        """Give what the kernel holds, as the next pass will go by.

        Raises:
            DecodeError, KernelError: the kernel could not be observed.

        """
        return self._observed().observation

    def evidence(self) -> Evidence:
        """Give what the kernel shows of who has which address, as the next pass will go by.

        Raises:
            DecodeError, KernelError: the kernel could not be observed.

        """
        mirror = self._observed()
        return evidence(mirror.observation, mirror.tunnel_ends())

    def preview(self, view: View, *, shown: Announcement | None = None) -> tuple[Operation, ...]:
        """Give the operations that a pass would apply first, without applying any (``--dry-run``): :meth:`run`."""
        mirror = self._observed()
        _, _, plan = self._decided(view, mirror, shown)
        return self._drift(plan, mirror)

    def run(self, view: View, *, shown: Announcement | None = None) -> Report:
        """Bring the kernel to what the view calls for.

        ``view.node.boot_id`` counts for nothing: the incarnation is decided here (:mod:`kmesh_bpf.core.incarnation`).
        ``shown`` is what the cluster shows of this node, None: there is no cluster.

        Raises:
            DecodeError, KernelError: the kernel could not be observed; nothing was changed after that.

        """
        try:
            return self._run(view, shown)
        except BaseException:
            self.forget()  # what was carried out of a pass that broke off is not known
            raise

    def _run(self, view: View, shown: Announcement | None) -> Report:
        mirror = self._observed()
        with self._phase("plan"):
            decision, view, plan = self._decided(view, mirror, shown)
            drift = self._drift(plan, mirror)
        if decision.new:
            self._kernel.remember(decision.incarnation)
            mirror.remember(decision.incarnation)
            self.memory = replace(self.memory, outgoing=mirror.outgoing, ended=mirror.ended)
        applied: list[Operation] = []
        failures: tuple[Failure, ...] = ()
        for done in range(ROUNDS):
            now = in_order(drift, mirror, view.awaited)
            if not now:
                break
            waiting = len(now) < len(drift)
            with self._phase("apply"):
                failures = self._kernel.apply(now)
            refused = {id(failure.operation) for failure in failures}
            applied.extend(operation for operation in now if id(operation) not in refused)
            with self._phase("read back"):
                self._read(Keys.of(now), mirror)
            with self._phase("plan"):
                plan = self._plan(view, mirror, self._clock())
                drift = self._drift(plan, mirror)
            if failures and (done or not waiting):
                break  # not before what has waited, and was not refused, had its turn
        # What was to go and did not, a pass later may be in use again: then it is asked for once more.
        self.doubt(Keys.of(one for one in drift if isinstance(one, DeleteSa)))
        self.memory = replace(remember(self.memory, decision, shown, self._clock()), departed=plan.departing)
        self._note_reached(mirror)
        spent, self._spent = self._spent, Counter()
        return Report(
            plan,
            tuple(applied),
            failures,
            drift,
            decision,
            mirror.observation,
            self._reachable,
            self.memory,
            mirror.held,
            mirror.take_touched(),
            spent,
            evidence(mirror.observation, mirror.tunnel_ends()),
            min((version for version in mirror.sent if version), default=0),
        )

    def _observed(self) -> Mirror:
        """Give the mirror, with what this pass must know anew."""
        if self._mirror is None:
            with self._phase("observe"):
                observed = self._kernel.observe()
            self._planner, self._mirror = Planner(self._options), Mirror(observed)
            self._mirror.outgoing, self._mirror.ended = self.memory.outgoing, self.memory.ended
            self._open, self._doubtful, self._reachable = Keys(), Keys(), frozenset()
            self._fresh = None
        else:
            self._fresh = frozenset()
            if self._doubtful:
                with self._phase("observe"):
                    self._read(self._doubtful, self._mirror)
                self._doubtful = Keys()
        return self._mirror

    def _plan(self, view: View, mirror: Mirror, now: float) -> Plan:
        """Plan; where it asks how SAs have been used, find out and plan again."""
        plan = self._planner.plan(view, mirror, now, self.memory.departed, self._fresh)
        self._replanned |= plan.replanned
        if not plan.asks or self._fresh is None:
            return plan
        keys = Keys(sas=dict.fromkeys(plan.asks))
        mirror.take(keys, self._kernel.find(keys))
        self._fresh |= frozenset(plan.asks)
        plan = self._planner.plan(view, mirror, now, self.memory.departed, self._fresh)
        self._replanned |= plan.replanned
        return plan

    def _decided(self, view: View, mirror: Mirror, shown: Announcement | None) -> tuple[Decision, View, Plan]:
        """Decide on the incarnation by the plan for the one kept; give the view of the outcome, and the plan for it."""
        now, fresh, memory = self._clock(), self._fresh_incarnation(), self.memory
        view = _as(view, mirror.observation.incarnation or fresh)
        plan = self._plan(view, mirror, now)
        needs = Needs(plan.lost, plan.returned, len(plan.state.formers))
        addresses, window = view.node.addresses, self._options.replay_window
        decision = decide(mirror.observation, needs, shown, addresses, view.peers, memory, fresh, now, window)
        if decision.incarnation != view.node.boot_id:
            view = _as(view, decision.incarnation)
            plan = self._plan(view, mirror, now)
        return decision, view, plan

    def _drift(self, plan: Plan, mirror: Mirror) -> tuple[Operation, ...]:
        """Give what differs from the plan; of all objects only those are looked at that may."""
        self._open.add(self._planner.take_changed())
        self._open.rest = True  # of these there are few
        drift = diff(restricted(plan.state, self._open), restricted(mirror.state, self._open))
        self._open = Keys.of(drift)
        return drift

    def _read(self, keys: Keys, mirror: Mirror) -> None:
        """Ask the kernel for some objects, or for more where that is cheaper."""
        keys = keys.cheapest(mirror.state)
        mirror.take(keys, self._kernel.find(keys))
        for audit in self._audits:
            audit.read(keys)

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[phase] += time.perf_counter() - began  # type: ignore[assignment] # typeshed's counts are int

    def _note_reached(self, mirror: Mirror) -> None:
        names, self._replanned = self._replanned, frozenset()
        reached = {name for name in names if self._planner.reaches(name, mirror)}
        if reached != names & self._reachable:
            self._reachable = (self._reachable - names) | reached


def reconcile(
    kernel: Kernel,
    view: View,
    options: Options,
    clock: Callable[[], float],
    fresh_incarnation: Callable[[], str],
    *,
    shown: Announcement | None = None,
    memory: Memory | None = None,
) -> Report:
    """Bring the kernel to what the view calls for, in one pass: :class:`Reconciler`."""
    return Reconciler(kernel, options, clock, fresh_incarnation, memory).run(view, shown=shown)


def preview(
    kernel: Kernel,
    view: View,
    options: Options,
    now: float,
    fresh_incarnation: Callable[[], str],
    *,
    shown: Announcement | None = None,
) -> tuple[Operation, ...]:
    """Give the operations that a pass would apply first (``--dry-run``): :meth:`Reconciler.preview`."""
    return Reconciler(kernel, options, lambda: now, fresh_incarnation).preview(view, shown=shown)


def _as(view: View, incarnation: str) -> View:
    return replace(view, node=replace(view.node, boot_id=incarnation))

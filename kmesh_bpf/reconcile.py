"""Observe, plan, diff, apply, observe again: one level-triggered pass that knows both sides and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.incarnation import Announcement, Decision, Memory, Needs, decide, remember
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import Plan, make_plan
from kmesh_bpf.core.reach import expected_peers, reachable_peers
from kmesh_bpf.core.state import Observation
from kmesh_bpf.core.view import View
from kmesh_bpf.kernel.interface import Failure, Kernel

ROUNDS = 3
"""A second round reads back, a third writes what the second found out; more would be a fight with somebody."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did. ``drift``: what still differs from the plan after it; empty when the pass succeeded.

    ``applied`` was carried out, what is in ``failures`` was not. ``decision``: on the incarnation that the objects were
    made for. ``observed`` is the last observation: what the pass left in the kernel. ``expected`` and ``reachable`` are
    names of peers: those that we should be able to send to, and of these the ones that we can, by what was observed.
    ``memory`` is for the next pass.
    """

    plan: Plan
    applied: tuple[Operation, ...]
    failures: tuple[Failure, ...]
    drift: tuple[Operation, ...]
    decision: Decision
    observed: Observation
    expected: frozenset[str]
    reachable: frozenset[str]
    memory: Memory

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
    """Bring the kernel to what the view calls for.

    ``view.node.boot_id`` counts for nothing: the incarnation is decided here (:mod:`kmesh_bpf.core.incarnation`).
    ``clock`` gives seconds since the epoch, ``fresh_incarnation`` a text of 36 characters that was never used.
    ``shown`` is what the cluster shows of this node, None: there is no cluster. ``memory`` is that of the report
    before; without it SAs of peers that have gone stay.

    Raises:
        DecodeError, KernelError: the kernel could not be observed; nothing was changed after that.

    """
    observed = kernel.observe()
    memory = memory or Memory()
    decision, view, plan = _decided(view, observed, options, clock(), fresh_incarnation(), shown, memory)
    if decision.new:
        kernel.remember(decision.incarnation)
    applied: list[Operation] = []
    failures: tuple[Failure, ...] = ()
    drift = diff(plan.state, observed.state)
    for _ in range(ROUNDS):
        if not drift:
            break
        failures = kernel.apply(drift)
        refused = {id(failure.operation) for failure in failures}
        applied.extend(operation for operation in drift if id(operation) not in refused)
        observed = kernel.observe()
        plan = make_plan(view, observed, options, clock(), memory.departed)
        drift = diff(plan.state, observed.state)
        if failures:
            break
    return Report(
        plan,
        tuple(applied),
        failures,
        drift,
        decision,
        observed,
        expected_peers(view),
        reachable_peers(view, plan, observed.state),
        replace(remember(memory, decision, shown, clock()), departed=plan.departing),
    )


def preview(
    kernel: Kernel,
    view: View,
    options: Options,
    now: float,
    fresh_incarnation: Callable[[], str],
    *,
    shown: Announcement | None = None,
) -> tuple[Operation, ...]:
    """Give the operations that a pass would apply first, without applying any (``--dry-run``): :func:`reconcile`."""
    observed = kernel.observe()
    _, _, plan = _decided(view, observed, options, now, fresh_incarnation(), shown, Memory())
    return diff(plan.state, observed.state)


def _decided(
    view: View,
    observed: Observation,
    options: Options,
    now: float,
    fresh: str,
    shown: Announcement | None,
    memory: Memory,
) -> tuple[Decision, View, Plan]:
    """Decide on the incarnation by the plan for the one kept; give the view of the outcome, and the plan for it."""
    view = _as(view, observed.incarnation or fresh)
    plan = make_plan(view, observed, options, now, memory.departed)
    needs = Needs(plan.lost, plan.returned, len(plan.state.formers))
    decision = decide(observed, needs, shown, view.node.addresses, view.peers, memory, fresh, now)
    if decision.incarnation != view.node.boot_id:
        view = _as(view, decision.incarnation)
        plan = make_plan(view, observed, options, now, memory.departed)
    return decision, view, plan


def _as(view: View, incarnation: str) -> View:
    return replace(view, node=replace(view.node, boot_id=incarnation))

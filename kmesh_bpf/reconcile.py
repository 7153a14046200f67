"""Observe, plan, diff, apply, observe again: one level-triggered pass that knows both sides and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kmesh_bpf.core.diff import diff
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

    ``applied`` was carried out, what is in ``failures`` was not.
    ``incarnation`` is the one the objects were made for; ``renewed`` tells that this pass had to choose it anew,
    because SAs of the former one had vanished, here or at the peers. ``observed`` is the last observation: what the
    pass left in the kernel. ``expected`` and ``reachable`` are names of peers: those that we should be able to send to,
    and of these the ones that we can, by what was observed.
    """

    plan: Plan
    applied: tuple[Operation, ...]
    failures: tuple[Failure, ...]
    drift: tuple[Operation, ...]
    incarnation: str
    renewed: bool
    observed: Observation
    expected: frozenset[str]
    reachable: frozenset[str]

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
    forgotten: bool = False,
) -> Report:
    """Bring the kernel to what the view calls for.

    ``view.node.boot_id`` is this node's incarnation unless the kernel remembers another one.
    ``clock`` gives seconds since the epoch, ``fresh_incarnation`` a new text of 36 characters. ``forgotten``: the peers
    may have removed their SAs for this incarnation, or will; when they make them again, they count from the start.

    Raises:
        DecodeError, KernelError: the kernel could not be observed; nothing was changed after that.

    """
    observed = kernel.observe()
    incarnation = observed.incarnation or view.node.boot_id
    view = _as(view, incarnation)
    plan = make_plan(view, observed, options, clock())
    renewed = bool(plan.lost) or (forgotten and any(entry.spi for entry in observed.state.peers.values()))
    if renewed:
        incarnation = fresh_incarnation()
        view = _as(view, incarnation)
        plan = make_plan(view, observed, options, clock())
    if observed.incarnation != incarnation:
        kernel.remember(incarnation)
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
        plan = make_plan(view, observed, options, clock())
        drift = diff(plan.state, observed.state)
        if failures:
            break
    return Report(
        plan,
        tuple(applied),
        failures,
        drift,
        incarnation,
        renewed,
        observed,
        expected_peers(view),
        reachable_peers(view, plan, observed.state),
    )


def preview(kernel: Kernel, view: View, options: Options, now: float) -> tuple[Operation, ...]:
    """Give the operations that a pass would apply first, without applying any (``--dry-run``)."""
    observed = kernel.observe()
    view = _as(view, observed.incarnation or view.node.boot_id)
    return diff(make_plan(view, observed, options, now).state, observed.state)


def _as(view: View, incarnation: str) -> View:
    return replace(view, node=replace(view.node, boot_id=incarnation))

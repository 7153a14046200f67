# SPDX-License-Identifier: Apache-2.0
"""Check 5, before the end: where packets between two pods do not arrive, `status` or `explain` names a reason.

Not in the same instant: a daemon tells after its pass, and reports are at least two seconds apart. A reason must be
named from when each of the two nodes has either reported since the first packet was lost, or has not reported for so
long that its report does not count any more; or the other one became another one since, and has told so a while ago. Nor of what only the API server's delay hides (a known limit): a daemon
that is told late of the other one's new incarnation cannot say so, and the objects that `explain` reads are newer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmesh.cluster.objects import ClusterObjects
from kmesh.cluster.status import LEASE_SECONDS
from kmesh.kmeshctl import health, traffic
from kmesh.kmeshctl.agreement import PATIENCE as AGREEMENT_PATIENCE

from tests.simulator.judge import ViolationError
from tests.simulator.machine import LivePod, Machine

if TYPE_CHECKING:
    from tests.simulator.world import World

PATIENCE = 5.0
"""Seconds that a loss may last before it is asked after: a pass and a report."""
ASKED = 2
"""Pairs asked after at one time: asking costs as much as a pass."""


class Telling:
    """Asks `kmeshctl`'s pure parts, as an operator would."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked = 0
        self._at: tuple[int, int, float] | None = None
        self._cluster = traffic.Cluster(ClusterObjects(), {}, (), 0.0)

    def check(self) -> None:
        """Ask after pairs that lose packets."""
        world, judge = self.world, self.world.judge
        pods = set(world.pods())
        for pair in [one for one in judge.losing if not pods.issuperset(one)]:
            del judge.losing[pair]
        due = [pair for pair in judge.losing if self._could_be_told(*pair)]
        for source, target in due[:ASKED]:
            self.asked += 1
            if world.send(source, target) or self.named(source, target):
                continue
            raise ViolationError(
                5,
                f"packets from {source.label} to {target.label} do not arrive, and neither status nor explain says why",
            )

    def _could_be_told(self, source: LivePod, target: LivePod) -> bool:
        """Tell whether both nodes had the time to report since the pair began to lose packets, for whatever reason."""
        judge = self.world.judge
        excuse = judge.excuses.get(frozenset((source.machine, target.machine)))
        since = max(judge.losing[source, target], excuse.since if excuse else 0.0, source.since, target.since)
        ways = ((source.machine, target.machine), (target.machine, source.machine))
        if any(self._was_left_behind(here, there) for here, there in ways):
            return True
        told = all(self._could_tell(pod.machine, since) for pod in (source, target))
        current = all(self._sees(here, there) for here, there in ways)
        return self.world.now - since >= PATIENCE and told and current

    def _was_left_behind(self, here: Machine, there: Machine) -> bool:
        """Tell whether a daemon was gone when another node became another one, long enough ago for that to be told."""
        reports, now = self.cluster().reports, self.world.now
        mine, other = reports.get(here.name), reports.get(there.name)
        if here.running or here.is_go or mine is None or other is None or mine.holds is None:
            return False
        shown = self.world.knowledge().infos.get(there.name)
        settled = shown is not None and shown[0] == other.incarnation and there.running
        return settled and mine.reported_at < other.incarnation_since <= now - AGREEMENT_PATIENCE - PATIENCE

    def _sees(self, here: Machine, there: Machine) -> bool:
        """Tell whether a daemon goes by what another node announces now."""
        done = self.world.judge.of(here).done
        return done is None or done.infos.get(there.name) == self.world.knowledge().infos.get(there.name)

    def named(self, source: LivePod, target: LivePod) -> bool:
        """Tell whether status or explain has anything to say."""
        if health.examine(self.cluster().objects, self.leases(), self.world.now).findings:
            return True
        answer = self.explain(source, target)
        return not answer.encrypted or bool(answer.notes)

    def explain(self, source: LivePod, target: LivePod) -> traffic.Explanation:
        """Give what `kmeshctl explain` says of two pods."""
        return traffic.explain(self.cluster(), (source.label, target.label), "default")

    def cluster(self) -> traffic.Cluster:
        """Give what `kmeshctl` reads, the same as long as nothing happens."""
        world = self.world
        at = (world.server.epoch, world.server.revision, world.now)
        if self._at != at:
            reports, _ = health.read_reports(self.leases())
            self._at, self._cluster = at, traffic.Cluster(world.objects(), reports, (), world.now)
        return self._cluster

    def leases(self) -> list[dict[str, Any]]:
        """Give all reports."""
        return list(self.world.server.of("Lease"))

    def _could_tell(self, machine: Machine, since: float) -> bool:
        report = self.cluster().reports.get(machine.name)
        if report is None:
            return True
        reported = report.reported_at
        return reported >= since + PATIENCE / 2 or self.world.now - reported > LEASE_SECONDS

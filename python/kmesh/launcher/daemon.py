# SPDX-License-Identifier: Apache-2.0
"""The daemon's loop: newest view, one pass, wait. Level-triggered: what woke it does not matter.

What it announces, and what it tells of itself, is written by threads of their own (``announcer.py``, ``outbox.py``),
and what is told is made between passes (``recorder.py``): an event waits for nothing but the pass under way.
"""

from __future__ import annotations

import logging
import math
import select
import selectors
import socket
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kmesh import unexpected
from kmesh.cluster.objects import NAMESPACE, ClusterObjects, NodeInfo, parse
from kmesh.cluster.shared import find
from kmesh.cluster.snapshot import kmesh_node_info, local_node
from kmesh.cluster.source import ClusterSource
from kmesh.cluster.views import Views
from kmesh.errors import ClusterError
from kmesh.launcher.announcer import Announced, Announcer, Draft
from kmesh.launcher.boot import BootGuard
from kmesh.launcher.config import Config
from kmesh.launcher.keys import Keys
from kmesh.launcher.looks import Looks
from kmesh.launcher.pass_log import PassLog
from kmesh.telling.record import KeyRecord, Pass
from kmesh.telling.recorder import Recorder
from kmesh_bpf import (
    Address,
    AddSa,
    Announcement,
    Attach,
    DeleteSa,
    Evidence,
    Kernel,
    KmeshBpfError,
    Operation,
    Reconciler,
    Report,
    View,
    own_addresses,
)

log = logging.getLogger("kmesh")

PERIOD = 30.0
"""Seconds between passes when nothing happens: catches what no notification told."""
TRANSITION_PERIOD = 1.0
"""Seconds until the next pass where the kernel has refused something."""
SETTLE, LONGEST_SETTLE = 0.02, 2.0
"""Seconds, at least and at most, to let a burst of notifications end before acting on it: in between until the last
pass is over for as long as it took, so that a cluster where something always changes costs half of a processor, and not
all of it; what happens after a time of quiet is acted on at once."""
FIRST_RETRY, LAST_RETRY = 0.5, 30.0
FIRST_SECONDS = 10.0
"""How long the first pass waits for the cluster to be known as a whole, before it is told that it is not."""


@dataclass(slots=True)
class Memory:
    """What the daemon knows beyond the cluster, the kernel and its keys: what it has announced.

    ``evidence``: what the last pass left in the kernel that claims are measured by. ``addresses``: this node's, of the
    last pass, before the first as the kernel has them of a daemon before.
    """

    announced: int = 0
    announced_at: float = 0.0
    published: bool = False
    generation: int = 0
    evidence: Evidence | None = None
    addresses: Collection[Address] = ()


class Daemon:
    """One node's daemon over one cluster source and one kernel.

    ``recorder`` takes in what each pass did; its clock, seconds since the epoch, is the daemon's. ``announcer`` writes
    what the node announces. ``boot`` guards the node's next boot. ``fresh`` gives incarnations never used (None:
    random ones).
    """

    def __init__(
        self,
        config: Config,
        source: ClusterSource,
        kernel: Kernel,
        recorder: Recorder,
        announcer: Announcer,
        boot: BootGuard | None = None,
        *,
        fresh: Callable[[], str] | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.kernel = kernel
        self.recorder = recorder
        self.announcer = announcer
        self.boot = boot
        self.clock = recorder.clock
        self.memory = Memory()
        self.keys = Keys()
        self.log = PassLog(kernel)
        self.views = Views(config.node)
        self.passes = Reconciler(kernel, config.options, self.clock, fresh or fresh_incarnation)
        self.looks = Looks(self.passes, time.monotonic)
        self.rest_at = -math.inf
        self.stopping = False
        self.took, self.ended = 0.0, -math.inf
        recorder.count(kernel.counters, kernel.xfrm_errors)

    def stop(self) -> None:
        """Ask the loop to end after the pass under way; the kernel objects stay."""
        self.stopping = True

    def run(self, wake: socket.socket) -> None:
        """Loop until :meth:`stop`; whatever becomes readable on ``wake`` ends a sleep."""
        retry = FIRST_RETRY
        with selectors.DefaultSelector() as selector:
            for descriptor in self.kernel.subscribe():
                selector.register(descriptor, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            for wakes in (self.source.wake, self.announcer.wake):
                if wakes is not None:
                    selector.register(wakes, selectors.EVENT_READ)
            self._begin(selector)
            while not self.stopping:
                try:
                    self._sleep(selector, self.step())
                    retry = FIRST_RETRY
                except Exception as error:  # noqa: BLE001 # no fork, no descriptor, no memory: that may pass
                    self._give_up(error, retry)
                    self._rest(selector, wake, retry)
                    retry = min(retry * 2, LAST_RETRY)

    def _begin(self, selector: selectors.BaseSelector) -> None:
        """Wait for the cluster to be known; devices get their programs meanwhile, by what a daemon before has left.

        Pods come and go though the API server is away.
        """
        try:
            self.memory.addresses = own_addresses(self.passes.observe().state)
            self.rest_at = time.monotonic()
            self._attach()
            until = time.monotonic() + FIRST_SECONDS
            while not self.stopping and (left := until - time.monotonic()) > 0:
                objects = self.source.read()
                if objects.complete or objects.problems:
                    return
                self._sleep(selector, left)
        except Exception as error:  # noqa: BLE001 # the first pass meets with it too, and tells
            log.debug("%s", unexpected.origin(error))

    def _give_up(self, error: Exception, retry: float) -> None:
        """Tell, in a line, why there was no whole pass."""
        said = unexpected.sentence(error)
        log.error("%s; trying again in %.1f s", said, retry)
        if not isinstance(error, KmeshBpfError):
            log.debug("%s", unexpected.origin(error))
        with suppress(Exception):  # it meets with what the pass has met with
            self.recorder.failed(said)

    def _rest(self, selector: selectors.BaseSelector, wake: socket.socket, seconds: float) -> None:
        """Wait before the next try; what goes wrong in that as well is told by the try."""
        try:
            self._sleep(selector, seconds, heed=False)
        except Exception as error:  # noqa: BLE001 # as in run
            log.debug("%s", unexpected.origin(error))
            waking = select.poll()  # takes no descriptor
            waking.register(wake, select.POLLIN)
            waking.poll(seconds * 1000)

    def _sleep(self, selector: selectors.BaseSelector, wait: float, *, heed: bool = True) -> None:
        """Return when something happened or ``wait`` seconds are over; what is to be told is told meanwhile.

        The first event after a time of quiet ends it at once; what comes soon after a pass is a burst, and counts as
        one event. ``heed``: what a look finds is something; not after a pass that was given up, for the next one would
        be too.
        """
        until = time.monotonic() + wait  # whoever sets the clock back must not stop the passes
        while not self.stopping and (left := until - time.monotonic()) > 0:
            selector.select(min(self.source.poll_interval, left, self.looks.left(), self.recorder.due()))
            if not (self.kernel_changed() or self.source.changed() or self.announcer.news):
                if self.looks.step() and heed:
                    return
                self._catch_up()
                continue
            self._settle()
            return

    def _settle(self) -> None:
        """Let a burst end, if this is one: something happened soon after a pass."""
        until = self.ended + min(max(SETTLE, self.took), LONGEST_SETTLE)
        if time.monotonic() >= until:
            return
        self._catch_up()  # where something always happens there is no better time
        time.sleep(max(0.0, until - time.monotonic()))
        self.kernel_changed()

    def kernel_changed(self) -> bool:
        """Take in what others have changed, and see to devices that have come; tell whether there is anything."""
        touched = self.passes.changed()
        if touched.rest:
            self._attach()
        return bool(touched)

    def _catch_up(self) -> None:
        """Do what events need not wait for: tell what there is to tell, keep what the next boot needs."""
        if self.recorder.due() <= 0:
            self.recorder.tell()
        if self.boot is not None:
            self.boot.catch_up()

    def _attach(self) -> bool:
        """Attach what devices lack; tell whether anything was."""
        addresses = self.memory.addresses
        if not addresses:
            return False  # no daemon before has left anything to go by
        try:
            done = self.passes.attach_missing(addresses, self.config.options.uplinks)
        except KmeshBpfError as error:
            log.debug("%s; a pass will tell", error)
            return False
        self.log.ahead(done)
        return bool(done)

    def step(self) -> float:
        """Do one pass; give the seconds until the next one is due without any event."""
        started = time.monotonic()
        self._acknowledge()
        objects = self.source.read()
        if started - self.rest_at >= PERIOD:
            self.passes.doubt_rest()
            self.rest_at = started
        self.passes.changed()
        self.looks.catch_up()
        view = self.view(objects)
        report = self.passes.run(view, shown=self._shown(objects))
        self.memory.addresses = view.node.addresses
        self._forget_keys(report)
        self._announce(report, objects)
        claims_changed = self._look(report, view, objects)
        self.ended = time.monotonic()
        self.took = self.ended - started
        self.log.passed(report, self.took)
        self.recorder.passed(Pass(view, report, self._key(), objects.problems, self.clock(), self.took))
        if self.boot is not None:
            self.boot.passed(report)
        if report.converged:
            self.kernel.remove_stale()
        elif not report.failures:
            return SETTLE  # what is left is of a later step: the first pass only brought it about
        if report.failures:
            self.passes.forget()  # somebody else may be at work
            return TRANSITION_PERIOD
        if claims_changed:
            return SETTLE
        due = max(SETTLE, report.plan.due - self.clock()) if report.plan.due is not None else PERIOD
        return min(PERIOD, due)

    def _look(self, report: Report, view: View, objects: ClusterObjects) -> bool:
        """Take in what the kernel shows now; tell whether another claim holds by that than the pass went by."""
        seen = report.evidence
        if seen == self.memory.evidence:
            return False
        self.memory.evidence = seen
        claims = self.views.claims(objects, evidence=seen.carried, known=seen.tunnel_ends)
        return claims != (view.pods, view.problems)

    def _key(self) -> KeyRecord:
        keys, memory = self.keys, self.memory
        return KeyRecord(keys.current, memory.announced, keys.refused, memory.generation, self.announcer.hindrance)

    def preview(self) -> tuple[Operation, ...]:
        """Give what a first pass would do (``--dry-run``); see :meth:`view` for errors."""
        objects = self.source.read()
        return self.passes.preview(self.view(objects), shown=self._shown(objects))

    def view(self, objects: ClusterObjects) -> View:
        """Give what is known now.

        Raises:
            ClusterError: the cluster is not known as a whole yet.
            ConfigError: it has no usable Node of this name.

        """
        if not objects.complete:
            # Half a view would take down what a former daemon of this node has built.
            raise ClusterError(f"the cluster is not known yet: {'; '.join(objects.problems) or 'it is being read'}")
        self.keys.take(objects.secret)
        refused = self.keys.refused
        sentences = (f"the key in the Secret is refused, the old one stays: {refused}",) if refused else ()
        self.log.problems("key", sentences)
        local_node(objects, self.config.node)
        ours = self._ours(objects)
        if not self.memory.published and ours is not None and self.kernel.incarnation() == ours.boot_id:
            # A restart: our inbound SAs for that version have been there all along.
            self.memory.announced = ours.spi
        self.log.problems("cluster", objects.problems)
        # Of now: an address that was given on to another node's pod is not ours any more once its device is gone.
        self.memory.evidence = self.passes.evidence()
        return self.views.view(
            objects,
            keys=self.keys.known,
            services=tuple(dict.fromkeys((*self.config.services, *objects.services))),
            announced=self.memory.announced,
            announced_at=self.memory.announced_at,
            boot_id="",  # the library decides on it
            evidence=self.memory.evidence.carried,
            known=self.memory.evidence.tunnel_ends,
        )

    def _ours(self, objects: ClusterObjects) -> NodeInfo | None:
        return find(objects.node_infos, self.config.node, NAMESPACE)

    def _shown(self, objects: ClusterObjects) -> Announcement:
        ours = self._ours(objects)
        if ours is None:
            return Announcement()
        return Announcement(ours.boot_id, ours.addresses, ours.uid, ours.replay_window or 0)

    def _forget_keys(self, report: Report) -> None:
        """Forget keys of no more use, which can be whenever SAs have come or gone."""
        if self.keys.beyond and any(isinstance(one, AddSa | DeleteSa) for one in report.applied):
            self.keys.forget({identity.spi for identity in report.observed.state.sas})

    def _announce(self, report: Report, objects: ClusterObjects) -> None:
        """Have the newest key announced once every inbound SA for it is in the kernel.

        That is the first step of docs/design.md, "Replacing the key".
        """
        if not self.keys.current:
            return
        missing = [
            operation
            for operation in report.drift
            if isinstance(operation, Attach) or (isinstance(operation, AddSa) and operation.sa.mark is not None)
        ]
        spi = self.memory.announced if missing else self.keys.current
        if not spi:
            self.announcer.put(None)
            return
        ours = self._ours(objects)
        node = local_node(objects, self.config.node)
        sends = min(report.sends or spi, spi)
        wanted = kmesh_node_info(node, spi, self.config.options.replay_window, report.incarnation, sends)
        draft = Draft(wanted, report.decision.recreate)
        if ours is None or ours != parse(wanted):
            self.memory.generation = 0
            self.announcer.put(draft)
            return
        self.memory.generation = ours.generation
        self.announcer.put(None)
        self._announced(Announced(Draft(wanted), self.clock()))

    def _acknowledge(self) -> None:
        """Take in what the cluster has taken of what was to be announced."""
        done = self.announcer.take()
        if done is not None:
            self._announced(done)

    def _announced(self, done: Announced) -> None:
        """Take in that something stands in the cluster; it may have been overtaken by what is wanted now."""
        draft, memory = done.draft, self.memory
        if self.passes.memory.unseen == draft.incarnation:
            self.passes.memory = self.passes.memory.announced(recreated=draft.recreate)
        if memory.announced != draft.spi or not memory.published:
            memory.announced, memory.announced_at, memory.published = draft.spi, done.at, True


def fresh_incarnation() -> str:
    """Give an incarnation that was never used."""
    return str(uuid.uuid4())


def uninstall(kernel: Kernel, source: ClusterSource | None, node: str, pin_root: Path) -> tuple[str, ...]:
    """Remove every kernel object of ours, then our KmeshNodeInfo; give what could not be removed."""
    failures = kernel.remove_everything()
    if source is not None:
        source.withdraw(node)
        log.info("KmeshNodeInfo %s withdrawn", node)
    if not failures:
        log.info("nothing of ours is left below %s or in XFRM", pin_root)
    return tuple(str(failure.error) for failure in failures)

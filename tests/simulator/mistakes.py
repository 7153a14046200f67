# SPDX-License-Identifier: Apache-2.0
"""Known mistakes, put into the code one at a time: a simulator that does not find them finds nothing.

They are those that this project, or others of its kind, made once or nearly did; each changes one decision and nothing
else. `scripts/simulate --mistakes` shows how many histories each one takes. Two of the list that they are from are below
what is simulated, and other tests' business: a torn dump noticed in its last message only (netlink), a reserved byte of a
fragment header taken for a length (packets' bytes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from kmesh.cluster import placement
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.snapshot import kmesh_node_info, local_node
from kmesh.launcher import daemon

from kmesh_bpf.core import diff, formers, incarnation, keys, node_ids, parts, sas
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.state import PeerEntry, PodFlags, Program
from kmesh_bpf.core.tunnels import tunnels
from tests.bpf import model
from tests.simulator.history import live, make
from tests.simulator.kernel import NodeKernel
from tests.simulator.machine import Machine

Change = Callable[[], Iterator[None]]


@dataclass(frozen=True)
class Mistake:
    """A mistake: its name, and (object or dict, attribute or key, what stands there instead) for each change.

    ``first``: a seed by which it was found, where the test begins to look; None: it was not seen to be found yet.
    """

    name: str
    changes: tuple[tuple[Any, str, Any], ...]
    first: int | None = None

    @contextmanager
    def made(self) -> Iterator[None]:
        """Have it in the code for as long as the context lasts."""
        with ExitStack() as stack:
            for where, attribute, instead in self.changes:
                made = patch.dict(where, {attribute: instead}) if isinstance(where, dict) else None
                stack.enter_context(made or patch.object(where, attribute, instead))
            yield


@dataclass(frozen=True)
class Found:
    """After how many histories a mistake was found, by which check, and in which words."""

    histories: int
    seed: int
    check: int
    sentence: str


def search(mistake: Mistake, budget: int, first: int = 0) -> Found | None:
    """Live histories with a mistake until one fails that does not fail without it."""
    for number in range(budget):
        history = make(first + number)
        with mistake.made():
            outcome = live(history)
        if outcome.violation is not None and live(history).violation is None:
            return Found(number + 1, history.seed, outcome.violation.check, outcome.violation.sentence)
    return None


def _announce_first() -> Callable[..., Any]:
    view = daemon.Daemon.view

    def announcing(self: daemon.Daemon, objects: Any) -> Any:
        found = view(self, objects)
        ring, kept = self.keys.keyring, self.kernel.incarnation()
        if ring is not None and kept and self.memory.announced and ring.current > self.memory.announced:
            node = local_node(objects, self.config.node)
            self.source.publish(kmesh_node_info(node, ring.current, self.config.options.replay_window, boot_id=kept))
        return found

    return announcing


def _on_a_clock(
    held: Any,
    announced_by_peer: int,
    announced: int,
    announced_at: float,
    usage: Any,
    now: float,
    retirement: Any,
    sends: int,
) -> dict[int, float | None]:
    goes = announced_at + retirement.grace
    return {one: goes if announced > one else None for one in sorted(held) if announced <= one or now < goes}


def _before_idle(
    held: Any,
    announced_by_peer: int,
    announced: int,
    announced_at: float,
    usage: Any,
    now: float,
    retirement: Any,
    sends: int,
) -> dict[int, float | None]:
    return dict.fromkeys(one for one in sorted(held) if not min(announced_by_peer, announced) > one)


def _adds_only(desired: Any, observed: Any, *, inbound: bool) -> Iterator[Any]:
    for identity, sa in desired.sas.items():
        if (sa.mark is not None) is inbound and identity not in observed.sas:
            yield ops.AddSa(sa)


def _shown_again() -> Callable[..., Any]:
    decide = incarnation.decide

    def again(observed: Any, needs: Any, shown: Any, *rest: Any) -> Any:
        if not observed.incarnation and shown is not None and shown.boot_id:
            return incarnation.Decision(shown.boot_id, incarnation.Cause.FIRST, "as it was shown")
        return decide(observed, needs, shown, *rest)

    return again


def _only_known(attribute: str) -> Callable[..., Any]:
    found = getattr(sas._Tunnel, attribute)
    return lambda self: {spi: sa for spi, sa in found(self).items() if spi in self.view.keys}


def _ready_only(case: Any) -> Any:
    ready = model.has(case.destination, PodFlags.READY)
    return model.mark_encrypt(case if ready else replace(case, destination=None, to_service=False))


def _forgetful() -> Callable[..., Any]:
    view = daemon.Daemon.view

    def forgetting(self: daemon.Daemon, objects: Any) -> Any:
        if self.memory.published:
            return view(self, objects)
        found = view(self, objects)
        self.memory.announced = 0
        return replace(found, announced=0)

    return forgetting


def _entry_of_anybody(mirror: Any, address: Any, fingerprint: int) -> Any:
    entry = mirror.state.peers.get(address)
    return replace(entry, incarnations=fingerprint) if entry else PeerEntry(0, 0, 0, fingerprint)


def _sas_before_entries(desired: Any, observed: Any, *, new: bool) -> Iterator[Any]:
    for address, entry in desired.peers.items():
        if not new and observed.peers.get(address) != entry:
            yield ops.SetPeer(address, entry)


def _pods_first() -> Any:
    def first(desired: Any, observed: Any) -> Iterator[Any]:
        yield from pods(desired, observed)
        yield from made(desired, observed)

    pods, made = diff._set_pods, diff._formers
    return ((diff, "_formers", first), (diff, "_set_pods", lambda *_: iter(())))


def _old_goes_first() -> Any:
    def first(desired: Any, observed: Any) -> Iterator[Any]:
        yield from removed(desired, observed)
        yield from made(desired, observed)

    removed, made = diff._remove, diff._formers
    return ((diff, "_formers", first), (diff, "_remove", lambda *_: iter(())))


def _decrypts(case: Any) -> Any:
    """Ask for the security path alone."""
    marked = case.own in (case.decrypted, case.again)
    return model.mark_decrypt(case if marked or not case.decrypted_here else replace(case, mark=case.mark | 0xD0))


def _by_the_mark(program: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Take whatever has our mark for decrypted by an SA of ours."""
    return lambda case: program(replace(case, decrypted_here=case.own in (case.decrypted, case.again)))


def _replaces(desired: Any, observed: Any, *, outbound: bool) -> Iterator[Any]:
    return (replace(one, replace=True) for one in set_policies(desired, observed, outbound=outbound))


def _used_by(same: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    """Take the use of whichever SA looks the same, the last one in the dump."""

    def use(self: sas.Held, sa: Any) -> Any:
        return next((use for one, use in reversed(list(self.usage.items())) if same(one, sa)), sas.NEVER)

    return use


set_policies = diff._set_policies


class _Nothing:
    """Nothing is one of these."""


def _unused(local: Any, peer: Any, _versions: Any) -> dict[Any, int]:
    return dict.fromkeys(tunnels(local, peer).values(), 0)


FIRST = {
    "announce before install": 0,
    "retire on a clock": 1,
    "retire while it is still used": 0,
    "SPI ahead of the peer": 0,
    "EEXIST taken for success": 1,
    "boot id back after lost pins": 1,
    "still announced, so no fresh incarnation": 1,
    "first name wins an address": 19,
    "mark only READY peers behind a masquerade": 3,
    "forget the old SA when the key is unknown": 0,
    "read half a view": 19,
    "repair only what was notified": 1,
    "ids that live in old SAs given again": 24,
    "a restart forgets what it had announced": 3,
    "what was decrypted is not asked for its mark": 0,
    "what was decrypted is not asked for our reqid": 18,
    "always replacing a policy": 5,
}

_MADE = (
    Mistake("announce before install", ((daemon.Daemon, "view", _announce_first()),)),
    Mistake("retire on a clock", ((keys, "inbound_versions", _on_a_clock),)),
    Mistake("retire while it is still used", ((keys, "inbound_versions", _before_idle),)),
    Mistake("SPI ahead of the peer", ((keys, "outbound_version", lambda held, _: max(held, default=None)),)),
    Mistake("EEXIST taken for success", ((diff, "_new_sas", _adds_only),)),
    Mistake(
        "boot id back after lost pins", ((Machine, "_fresh", lambda self: f"boot {self.index} {self.boots}".ljust(36)),)
    ),
    Mistake(
        "still announced, so no fresh incarnation",
        ((__import__("sys").modules["kmesh_bpf.reconcile"], "decide", _shown_again()),),
    ),
    Mistake(
        "first name wins an address", ((placement, "_rank", lambda pod, address, ground: (pod.namespace, pod.name)),)
    ),
    Mistake("mark only READY peers behind a masquerade", ((model.PROGRAMS, Program.MARK_ENCRYPT, _ready_only),)),
    Mistake(
        "forget the old SA when the key is unknown",
        tuple((sas._Tunnel, one, _only_known(one)) for one in ("found_inbound", "found_outbound")),
    ),
    Mistake("read half a view", ((KubernetesCluster, "_whole", lambda self: True),)),
    Mistake(
        "repair only what was notified",
        (
            (NodeKernel, "look", lambda self: iter(())),
            (NodeKernel, "audit", lambda self, mappings=(): iter(())),
            (daemon, "PERIOD", math.inf),
        ),
    ),
    Mistake("the SPI of a former incarnation remembered", ((parts, "_entry", _entry_of_anybody),)),
    Mistake("an SA of other content counted as made", ((sas._Tunnel, "is_made", lambda self, sa: True),)),
    Mistake("ids that live in old SAs given again", ((node_ids.NodeIds, "is_taken", lambda self, number: False),)),
    Mistake("a restart forgets what it had announced", ((daemon.Daemon, "view", _forgetful()),)),
    Mistake("what was decrypted is not asked for its mark", ((model.PROGRAMS, Program.MARK_DECRYPT, _decrypts),)),
    Mistake(
        "what was decrypted is not asked for our reqid",
        tuple(
            (model.PROGRAMS, one, _by_the_mark(model.PROGRAMS[one]))
            for one in (Program.MARK_DECRYPT, Program.POD_GUARD)
        ),
    ),
    Mistake("announcing though programs are not attached", ((daemon, "Attach", _Nothing),)),
    Mistake("always replacing a policy", ((diff, "_set_policies", _replaces),)),
    Mistake(
        "usage by mark alone",
        ((sas.Held, "use", _used_by(lambda one, sa: (one.spi, one.mark) == (sa.spi, sa.mark))),),
    ),
    Mistake(
        "usage by address alone",
        ((sas.Held, "use", _used_by(lambda one, sa: (one.src, one.dst) == (sa.src, sa.dst))),),
    ),
    Mistake("entries of new peers after their SAs", ((diff, "_set_peers", _sas_before_entries),)),
    Mistake("pods are marked before all is in place", _pods_first()),
    Mistake("the old goes before the new is there", _old_goes_first()),
    Mistake("keys of peers that went are used again", ((formers, "used_with", _unused),)),
    Mistake("peers that are away for a moment go at once", ((formers, "DEPARTED_LINGER", 0.0),)),
)
MISTAKES = tuple(replace(one, first=FIRST.get(one.name)) for one in _MADE)

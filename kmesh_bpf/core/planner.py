# SPDX-License-Identifier: Apache-2.0
"""view + what the kernel holds -> the kernel objects that should be. Decides; does nothing.

Which these are: docs/design.md, "Kernel objects".

A plan is made of parts, one for each other node, one for this node and one for what is left of nodes that went. The
planner remembers them, and what they were made from; an event costs the parts that it concerns.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType

from kmesh_bpf.core import cidrs, claims, detours, devices, formers, interference, rivals, sas
from kmesh_bpf.core.desired import Desired
from kmesh_bpf.core.mirror import Changes, Keys, Mirror
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.parts import NO_STATE, Ground, Part, plan_part
from kmesh_bpf.core.pods import Moves, Owners
from kmesh_bpf.core.policies import blocks
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.reach import is_reached
from kmesh_bpf.core.register import Register
from kmesh_bpf.core.state import Direction, KernelState, Observation, PeerEntry, PodFlags, Policy, PolicyId, SaId
from kmesh_bpf.core.view import Address, Key, Node, Pods, View

NOBODY: Mapping[int, float] = MappingProxyType({})
NO_PART = Part()
NO_DEVICES = devices.Devices()
_Replaced = tuple[KernelState, KernelState]
"""What a part called for, and what it calls for now."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome: the state to reach, and what follows from it for the world outside the kernel.

    ``state`` goes on changing with the next plan of the same planner. ``ready_peers``: names of the peers we can send
    to. ``due``: when another pass must come though nothing has happened (an old SA that may go), None: never; in the
    planner's clock. ``lost``, ``returned`` (names of peers that are quarantined because they are back under keys that
    were used) and the state's formers call for a new incarnation (:mod:`kmesh_bpf.core.incarnation`). ``departing``:
    since when peers are missed, by fingerprint, whose SAs stay for a while; the next plan wants to know it.
    ``by_cidr``: names of the peers whose pods are selected by pod CIDR, for there are too many to select them one by
    one. ``asks``: SAs whose usage must be known for the plan to be a good one (nothing goes without). ``expected``:
    names of the other nodes that have announced themselves or hold a managed pod. ``replanned``: names of those of
    which the part was made anew.
    """

    state: KernelState
    ready_peers: frozenset[str]
    due: float | None
    lost: tuple[SaId, ...]
    problems: tuple[Problem, ...] = ()
    by_cidr: frozenset[str] = frozenset()
    returned: frozenset[str] = frozenset()
    departing: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    asks: tuple[SaId, ...] = ()
    expected: frozenset[str] = frozenset()
    replanned: frozenset[str] = frozenset()


def make_plan(
    view: View, observed: Observation, options: Options, now: float, departed: Mapping[int, float] = NOBODY
) -> Plan:
    """Decide which kernel objects should exist, remembering nothing: :meth:`Planner.plan`."""
    return Planner(options).plan(view, Mirror(observed), now, departed)


@dataclass(frozen=True, slots=True, eq=False)
class _Here:
    """The part of this node: what was decided about its devices, and the problems of these."""

    devices: devices.Devices = NO_DEVICES
    problems: tuple[Problem, ...] = ()
    state: KernelState = NO_STATE


@dataclass(frozen=True, slots=True)
class _OfAll:
    """What every part depends on."""

    node: Node
    keys: Mapping[int, Key]
    announced: int
    announced_at: float
    many: bool
    windows_begin: bool


class Planner:
    """Makes one plan after the other, each as if it were the first."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._desired = Desired()
        self._register = Register(options.node_mark_mask)
        self._owners = Owners()
        self._ranges: cidrs.Ranges | None = None
        self._parts: dict[str, Part] = {}
        self._here, self._rest = _Here(), NO_STATE
        self._due: list[tuple[float, str]] = []
        self._special: dict[str, Part] = {}
        """Parts that something is to be said of: SAs lost, not made yet, or asked of; keys that were in use."""
        self._expected: frozenset[str] = frozenset()
        self._ready: frozenset[str] = frozenset()
        self._by_cidr: frozenset[str] = frozenset()
        self._of_all: _OfAll | None = None
        self._used: Mapping[int, int] = {}
        self._pinned: frozenset[SaId] = frozenset()
        self._known: dict[str, object] = {}
        """What the other parts at hand were made from."""

    def take_changed(self) -> Keys:
        """Give the objects that may differ from what is desired: those changed, here or there, since last asked."""
        found, self._desired.changed = self._desired.changed, Keys()
        return found

    def reaches(self, name: str, mirror: Mirror) -> bool:
        """Tell whether packets reach a node, encrypted, with what the kernel holds."""
        return is_reached(self._parts.get(name, NO_PART), mirror)

    def plan(
        self,
        view: View,
        mirror: Mirror,
        now: float,
        departed: Mapping[int, float] = NOBODY,
        fresh: Container[SaId] | None = None,
    ) -> Plan:
        """Decide which kernel objects should exist.

        ``mirror``: what the kernel holds, the same one each time. ``now`` is in the clock of ``view.announced_at`` and
        of the kernel's use times (seconds since the epoch). ``departed``: ``departing`` of the plan before. ``fresh``:
        the SAs whose usage in the mirror is of now; None: all.
        """
        changes = mirror.take_changes()
        self._desired.changed.add(changes.keys)
        moves = self._owners.update(view.node, Pods.of(view.pods))
        names = self._register.update(view, mirror, self._owners, moves, changes)
        concerned, of_all = self._concerned(view, mirror, moves, changes, now)
        whole = (names | concerned) - {view.node.name}
        moved = {name for pair in moves.values() for name in pair if name is not None} - {view.node.name}
        names = whole | moved
        ground = Ground(mirror, self.options, now, self._used, self._pinned, of_all.windows_begin, fresh)
        replaced = [*self._replan(names, moved - whole, view, ground), self._plan_here(view, mirror, changes)]
        rest, leaving = self._plan_rest(view, mirror, departed, now)
        self._desired.put((*replaced, rest))
        return self._summed_up(view, mirror, names, leaving)

    def _concerned(
        self, view: View, mirror: Mirror, moves: Moves, changes: Changes, now: float
    ) -> tuple[set[str], _OfAll]:
        """Give the nodes whose part must be made anew for what is neither their pods nor their announcement."""
        register = self._register
        names = set(self._special)
        while self._due and self._due[0][0] <= now:
            names.add(heapq.heappop(self._due)[1])
        for identity in changes.keys.policies:
            policy = self._desired.mappings["policies"].get(identity)
            if policy is not None and policy.direction is Direction.OUT:
                names.add(register.name_at(policy.tunnel_dst) or "")
        pinned = frozenset(mirror.pinned.values())
        names.update(register.name_at(identity.dst) or "" for identity in pinned ^ self._pinned)
        many = cidrs.too_many(self._owners.remote(), self.options.max_exact, wide=bool(mirror.wide))
        names |= self._ranged(view, moves, many=many)
        otherwise = [address for address in register.astray if register.name_at(address) is not None]
        used = formers.used_versions(view.node, mirror, otherwise)
        begin = sas.windows_begin(register.without_window, mirror.with_window, self.options)
        names |= self._with_other_used(used)
        of_all = _OfAll(view.node, dict(view.keys), view.announced, view.announced_at, many, begin)
        if of_all != self._of_all:
            names |= self._parts.keys() | register.accepted.keys() | self._owners.numbers.keys()
        self._of_all, self._pinned = of_all, pinned
        return names - {""}, of_all

    def _with_other_used(self, used: dict[int, int]) -> set[str]:
        """Take in which key versions have been used by tunnels that are gone; give the peers that this concerns."""
        before, self._used = self._used, used
        if used == before:
            return set()
        pairs = [pair for pair, version in used.items() if before.get(pair) != version]
        return self._register.with_pairs([*pairs, *(pair for pair in before if pair not in used)])

    def _ranged(self, view: View, moves: Moves, *, many: bool) -> set[str]:
        """Keep account of pod CIDRs, where they are asked; give the nodes of which the answer may be another."""
        shape = (self._register.nodes, view.node.addresses, view.node.pod_cidrs)
        if not many:
            self._ranges = None
            return set()
        if not self._is_known("shape", shape) or self._ranges is None:
            self._ranges = cidrs.Ranges()
            nodes = (view.node, *(peer.node for peer in self._register.peers))
            self._ranges.begin(nodes, self._owners.all())
            return set(self._parts)
        return self._ranges.move({address: owner for address, (_, owner) in moves.items()})

    def _replan(self, names: Collection[str], only_pods: Container[str], view: View, ground: Ground) -> list[_Replaced]:
        """Make parts anew, of some of which nothing but the pods may have changed; give what they were and are."""
        replaced = []
        for name in sorted(names):
            pods, peer = self._owners.on(name), self._register.accepted.get(name)
            if peer is None and not pods:
                part = NO_PART
            else:
                wide = self._ranges is not None and bool(pods) and self._ranges.fit(name)
                fingerprint, number = self._register.fingerprints.get(name, 0), self._register.ids.get(name, 0)
                before = self._parts.get(name) if name in only_pods else None
                part = plan_part(view, pods, peer, fingerprint, number, wide, ground, before)
            replaced.append((self._parts.get(name, NO_PART).state, part.state))
            self._keep(name, part)
        self._ready = _with(self._ready, names, {name for name in names if self._parts.get(name, NO_PART).sends})
        self._by_cidr = _with(self._by_cidr, names, {name for name in names if self._parts.get(name, NO_PART).by_cidr})
        return replaced

    def _keep(self, name: str, part: Part) -> None:
        if part is NO_PART:
            self._parts.pop(name, None)
        else:
            self._parts[name] = part
        if part.lost or part.returned or part.unmade or part.asks:
            self._special[name] = part
        else:
            self._special.pop(name, None)
        if part.due is not None:
            heapq.heappush(self._due, (part.due, name))

    def _plan_here(self, view: View, mirror: Mirror, changes: Changes) -> _Replaced:
        """Plan for this node's devices and pods, if anything about them has changed; give what that was and is."""
        observed, options = mirror.observation, self.options
        pods = Pods.of(view.pods).on(view.node.name)
        others = (observed.suspects, observed.rivals, observed.refusing, observed.detours)
        asked = observed.rivals or any(one.destination for one in observed.detours)
        managed = self._owners.elsewhere() if asked else ()
        inputs = (view.node, pods, self._owners.on(view.node.name), observed.links, others, managed)
        if self._is_known("here", inputs) and not changes.keys.sources and not changes.keys.rest:
            return self._here.state, self._here.state
        addresses = view.node.addresses
        local = (address for pod in pods for address in pod.addresses)
        found = devices.decide(observed.links, addresses, options.uplinks, local, mirror.state.sources)
        alone = devices.without_device(observed.links, addresses, options.uplinks, pods, found)
        hindered = (
            *devices.with_pods_addresses(observed.links, self._owners.owner),
            *interference.judge(observed.suspects, observed.links, addresses, options.mark_mask),
            *rivals.judge(observed.rivals, observed.refusing, managed, options.mark_mask),
            *detours.judge(
                observed.detours,
                observed.links,
                found.pod_devices,
                managed,
                options.mark_mask | options.node_mark_mask,
            ),
        )
        flags = dict.fromkeys(addresses, PodFlags.CANDIDATE | PodFlags.OWN)
        flags.update(dict.fromkeys(inputs[2], PodFlags.LOCAL))
        state = KernelState(pods=flags, sources=found.sources)
        before, self._here = self._here, _Here(found, (*found.problems, *alone, *hindered), state)
        return before.state, state

    def _plan_rest(
        self, view: View, mirror: Mirror, departed: Mapping[int, float], now: float
    ) -> tuple[_Replaced, formers.Partings]:
        """Plan for nodes not dealt with, and for what is left of those that went; give what that was and is."""
        register = self._register
        returned = {name for name, part in self._special.items() if part.returned}
        others = [one for name in sorted(register.left_out | returned) if (one := register.peers.get(name))]
        astray = {*register.astray, *(a for one in others for a in one.node.addresses if a in mirror.state.peers)}
        planned = {address: entry for address in astray if (entry := self._entry(address)) is not None}
        kept, kept_sas = claims.keep_quarantined((one.node for one in others), mirror, planned)
        leaving = formers.partings(view.node, mirror, astray, planned | kept, departed, now)
        state = KernelState(
            sas=kept_sas | dict(leaving.sas),
            peers=kept | dict(leaving.peers),
            formers=leaving.formers,
            policies=self._blocks(view),
            pods=self._of_nobody(view),
        )
        before = self._rest
        if state != before:  # of those that went there may be many
            self._rest = state
        below = (view.candidates, tuple(address for one in others for address in one.node.addresses))
        if not self._is_known("below", below):
            self._desired.lay(dict.fromkeys((*below[0], *below[1]), PodFlags.CANDIDATE))
        return (before, self._rest), leaving

    def _blocks(self, view: View) -> dict[PolicyId, Policy]:
        """Give the policies that drop what would go to a contested address in clear: no part encrypts it."""
        if not view.contested or not self.options.strict:
            return {}
        found = {}
        for one in blocks(view, sorted(view.contested, key=str), self.options):
            name = self._register.name_at(one.dst.network_address)
            if name is None or one.id not in self._parts.get(name, NO_PART).state.policies:
                found[one.id] = one
        return found

    def _of_nobody(self, view: View) -> dict[Address, PodFlags]:
        """Give the contested addresses that no peer has: in clear nothing is taken from there either, as from a pod."""
        free = (one for one in view.contested if self._register.name_at(one) is None)
        return dict.fromkeys((one for one in free if one not in view.node.addresses), PodFlags.REMOTE)

    def _entry(self, address: Address) -> PeerEntry | None:
        """Give the entry of the peer map that a part calls for."""
        name = self._register.name_at(address)
        return self._parts[name].state.peers.get(address) if name in self._parts else None

    def _is_known(self, what: str, now: object) -> bool:
        """Tell whether it was the same last time."""
        before = self._known.get(what)
        self._known[what] = now
        return before == now

    def _summed_up(self, view: View, mirror: Mirror, names: set[str], leaving: formers.Partings) -> Plan:
        found = self._here.devices
        state = KernelState(
            **self._desired.mappings,
            services=frozenset(view.services),
            attachments=found.attachments,
            nat_exemption=True,
            policy_hash=mirror.observation.can_hash,
            pod_devices=found.pod_devices,
        )
        others = (view.node.name, self._register.peers.names, Pods.of(view.pods).nodes)
        if not self._is_known("others", others):
            self._expected = frozenset({*others[1], *others[2]} - {others[0]})
        special = sorted(self._special.items())
        returned = frozenset(name for name, part in special if part.returned)
        while self._due and self._due[0][0] != self._parts.get(self._due[0][1], NO_PART).due:
            heapq.heappop(self._due)  # of a part that was made anew since
        due = self._due[0][0] if self._due else None
        gone = (since + formers.DEPARTED_LINGER for since in leaving.departing.values())
        return Plan(
            state,
            self._ready,
            sas.earliest(due, *gone),
            tuple(identity for _, part in special for identity in part.lost),
            tuple(dict.fromkeys((*self._problems(view, mirror, returned), *self._here.problems))),
            self._by_cidr,
            returned,
            leaving.departing,
            tuple(identity for _, part in special for identity in part.asks),
            self._expected,
            frozenset(names),
        )

    def _problems(self, view: View, mirror: Mirror, returned: Iterable[str]) -> Iterator[Problem]:
        register = self._register
        yield from (Problem(ProblemKind.QUARANTINE, sentence) for sentence in register.quarantined)
        yield from (Problem(ProblemKind.QUARANTINE, formers.sentence(name)) for name in sorted(returned))
        yield from (Problem(ProblemKind.CAPACITY, sentence) for sentence in register.crowded)
        yield from (Problem(ProblemKind.CLAIM, sentence) for sentence in view.problems)
        if not view.keys and mirror.state.sas:
            # A daemon that started with a broken Secret: no key can be derived to make them anew.
            yield Problem(ProblemKind.KEY, "no key is known; the SAs stay as they are until there is one")
        yield from self._owners.problems()


def _with(names: frozenset[str], asked: Collection[str], found: Set[str]) -> frozenset[str]:
    """Give names, of those asked only the ones found; where nothing is another, the very same."""
    gone = {name for name in asked if name in names and name not in found}
    return names.difference(gone).union(found) if gone or not found <= names else names

# SPDX-License-Identifier: Apache-2.0
"""What the kernel holds: as last observed, and as it has acknowledged since. Sorted as plans look it up. Pure.

A pass asks the kernel for what it has written, and for nothing else. So that a plan can be as small, the mirror keeps
beside the objects what a plan would otherwise have to go through all of them for, and which of them have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.policies import ANY
from kmesh_bpf.core.state import Direction, KernelState, Observation, PeerEntry, Policy, PolicyId, Sa, SaId, SaUsage
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, Key

MAPPINGS = ("sas", "policies", "pods", "peers", "sources", "formers")
"""Members of KernelState that hold many objects, by key."""
SETS = ("services", "attachments", "pod_devices")
SWITCHES = ("nat_exemption", "policy_hash")
MANY, SHARE = 1000, 8
"""From so many objects of a mapping on, if they are more than one of so many of all that are known of it, it is read as
a whole: in a dump each costs a tenth of what asking for it does."""


@dataclass(slots=True)
class Keys:
    """Which objects: keys of the mappings of a KernelState, in an order; all of its sets and switches, if ``rest``.

    ``whole``: names of mappings, all objects of which are meant, known or not.
    """

    sas: dict[SaId, None] = field(default_factory=dict)
    policies: dict[PolicyId, None] = field(default_factory=dict)
    pods: dict[Address, None] = field(default_factory=dict)
    peers: dict[Address, None] = field(default_factory=dict)
    sources: dict[Address, None] = field(default_factory=dict)
    formers: dict[int, None] = field(default_factory=dict)
    rest: bool = False
    whole: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        some = self.sas or self.policies or self.pods or self.peers or self.sources or self.formers
        return self.rest or bool(self.whole or some)

    def __len__(self) -> int:
        return sum(len(getattr(self, name)) for name in MAPPINGS)

    def add(self, others: Keys) -> None:
        """Add others."""
        for name in MAPPINGS:
            getattr(self, name).update(getattr(others, name))
        self.rest = self.rest or others.rest
        self.whole |= others.whole

    @classmethod
    def everything(cls) -> Keys:
        """Give all objects."""
        return cls(rest=True, whole=frozenset(MAPPINGS))

    @classmethod
    def named(cls, mapping: str, keys: Iterable[Any]) -> Keys:
        """Give objects of one mapping."""
        found = cls()
        getattr(found, mapping).update(dict.fromkeys(keys))
        return found

    def cheapest(self, known: KernelState) -> Keys:
        """Give the same or more, as it is cheapest to read where so much is known to be."""
        found = Keys(rest=self.rest, whole=self.whole)
        for name in MAPPINGS:
            keys = getattr(self, name)
            if len(keys) > max(MANY, len(getattr(known, name)) // SHARE):
                found.whole |= {name}
            elif name not in self.whole:
                getattr(found, name).update(keys)
        return found

    @classmethod
    def of(cls, operations: Iterable[Operation]) -> Keys:
        """Give the objects that operations are about."""
        found = cls()
        for operation in operations:
            match operation:
                case ops.DeleteSa(sa):
                    found.sas[sa.id] = None
                case ops.AddSa(sa, told):
                    found.sas[sa.id] = None
                    found.peers |= {sa.dst: None} if told is not None else {}
                case ops.ReplaceSa(old, new, told):
                    found.sas |= {old.id: None, new.id: None}
                    found.peers |= {new.dst: None} if told is not None else {}
                case ops.SetPolicy(policy) | ops.DeletePolicy(policy):
                    found.policies[policy.id] = None
                case ops.SetPod(address) | ops.DeletePod(address):
                    found.pods[address] = None
                case ops.SetPeer(address) | ops.DeletePeer(address):
                    found.peers[address] = None
                case ops.SetSource(address) | ops.DeleteSource(address):
                    found.sources[address] = None
                case ops.SetFormer(pair) | ops.DeleteFormer(pair):
                    found.formers[pair] = None
                case _:
                    found.rest = True
        return found


def restricted(state: KernelState, keys: Keys) -> KernelState:
    """Give of a state what keys name."""
    parts: dict[str, Any] = {}
    for name in MAPPINGS:
        mapping: Mapping[Any, Any] = getattr(state, name)
        named = {key: mapping[key] for key in getattr(keys, name) if key in mapping}
        parts[name] = dict(mapping) if name in keys.whole else named
    if keys.rest:
        parts |= {name: getattr(state, name) for name in (*SETS, *SWITCHES)}
    return KernelState(**parts)


@dataclass(slots=True)
class Changes:
    """What has changed since a plan last asked: keys, and of SAs and peer entries the peers' addresses.

    ``node_ids``, ``node_marks``: those that have come to the mirror's, or gone from there.
    """

    keys: Keys = field(default_factory=Keys)
    remotes: set[Address] = field(default_factory=set)
    node_ids: set[int] = field(default_factory=set)
    node_marks: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Held:
    """What there is for a peer's address: its SAs, and the addresses of ours that policies lead to it from."""

    sas: Mapping[SaId, Sa]
    led_from: Collection[Address]


class Mirror:
    """The kernel's objects as far as they are known; ``observation`` shows them, and changes with them."""

    def __init__(self, observed: Observation) -> None:
        self.by_remote: dict[Address, dict[SaId, Sa]] = {}
        self.in_use: Counter[Key] = Counter()
        """The keys of all SAs."""
        self.node_marks: Counter[int] = Counter()
        """The marks of all inbound SAs."""
        self.node_ids: Counter[int] = Counter()
        """The node ids of all entries of the peer map."""
        self.with_window = 0
        """How many SAs have a replay window."""
        self.wide: set[PolicyId] = set()
        """Policies that select by pod CIDR."""
        self.pinned: dict[PolicyId, SaId] = {}
        """SAs that policies of a former version point to by SPI."""
        self.leading: Counter[Ends] = Counter()
        """Tunnel ends that outbound policies lead to: with the newest SA between them, and from when it is there."""
        self.sent: Counter[int] = Counter()
        """The key versions that entries of the peer map tell of; 0 where nothing is sent."""
        self.fingerprints: dict[int, dict[Address, int]] = {}
        """Node ids in the peer map by address, by fingerprint of incarnations."""
        self._ends: frozenset[Address] = frozenset()
        self._ends_touched: set[Address] = set()
        """Addresses of peers that may have become tunnel ends, or ceased to be."""
        self.outgoing: str | None = None
        """The incarnation before, as far as is known (:class:`kmesh_bpf.core.incarnation.Memory`)."""
        self.ended: frozenset[int] = frozenset()
        """The fingerprints of the pairs that have come to an end by that."""
        self._led: dict[Address, set[Address]] = {}
        """The addresses of ours that outbound policies lead from, by the peer's address that they lead to."""
        self._touched: set[Address] | None = None
        self._sas: dict[SaId, Sa] = {}
        self._policies: dict[PolicyId, Policy] = {}
        self._usage: dict[SaId, SaUsage] = {}
        self._peers: dict[Address, PeerEntry] = {}
        self._pods: dict[Address, Any] = {}
        self._sources: dict[Address, int] = {}
        self._formers: dict[int, int] = {}
        self._changes = Changes()
        self.observation = observed
        self.replace(observed)

    @property
    def state(self) -> KernelState:
        """The objects."""
        return self.observation.state

    def take_changes(self) -> Changes:
        """Give what has changed since this was last asked."""
        found, self._changes = self._changes, Changes()
        return found

    def held(self, address: Address) -> Held:
        """Give what there is for a peer's address."""
        return Held(self.by_remote.get(address, {}), self._led.get(address, ()))

    def tunnel_ends(self) -> frozenset[Address]:
        """Give the addresses of the peer map that SAs lead to or come from; the very same where nothing has changed."""
        come: list[Address] = []
        gone: list[Address] = []
        for address in self._ends_touched:
            there = address in self.by_remote and address in self._peers
            if there != (address in self._ends):
                (come if there else gone).append(address)
        self._ends_touched = set()
        if come or gone:
            self._ends = self._ends.difference(gone).union(come)
        return self._ends

    def take_touched(self) -> frozenset[Address] | None:
        """Give the addresses of which :meth:`held`, or the use of its SAs, changed since last asked; None: all."""
        found, self._touched = self._touched, set()
        return None if found is None else frozenset(found)

    def replace(self, observed: Observation) -> None:
        """Take in an observation of everything."""
        self.take(Keys.everything(), observed)

    def take_rest(self, observed: Observation) -> None:
        """Take in what an observation says beside the mappings: devices, sets and switches, who this node is."""
        known: dict[str, Any] = {name: self._mapping(name) for name in MAPPINGS}
        state = replace(observed.state, **known)
        self._changes.keys.rest = True
        self.observation = replace(observed, state=state, usage=self._usage)

    def take(self, keys: Keys, found: Observation) -> None:
        """Take in what the kernel says of the objects that keys name."""
        for name in MAPPINGS:
            now, named = getattr(found.state, name), getattr(keys, name)
            self._take(name, self._differing(name, now) if name in keys.whole else named, now)
        if "sas" in keys.whole:
            self._touched = None
            differing = (identity for identity, one in found.usage.items() if self._usage.get(identity) != one)
            self._changes.remotes.update(map(_remote, differing))
            self._usage.clear()
            self._usage.update(found.usage)
        for identity in keys.sas:
            self._touch(_remote(identity))
            self._changes.remotes.add(_remote(identity))  # how an SA was used may decide whether it goes
            if identity in found.usage:
                self._usage[identity] = found.usage[identity]
            else:
                self._usage.pop(identity, None)
        if keys.rest:
            self.take_rest(found)

    def use(self, usage: Mapping[SaId, SaUsage]) -> None:
        """Take in how SAs have been used, of those that are known."""
        for identity, one in usage.items():
            if identity in self._sas and self._usage.get(identity) != one:
                self._usage[identity] = one
                self._touch(_remote(identity))

    def remember(self, incarnation: str) -> None:
        """Take in that the kernel keeps this node's incarnation: what there is was made for another one."""
        self.outgoing, self.ended = self.observation.incarnation, frozenset(self.fingerprints)
        self.observation = replace(self.observation, incarnation=incarnation)

    def _mapping(self, name: str) -> dict[Any, Any]:
        mapping: dict[Any, Any] = getattr(self, f"_{name}")
        return mapping

    def _differing(self, name: str, now: Mapping[Any, Any]) -> list[Any]:
        before = self._mapping(name)
        changed = [key for key, value in now.items() if before.get(key) != value]
        return [*changed, *(key for key in before if key not in now)]

    def _take(self, name: str, keys: Collection[Any], found: Mapping[Any, Any]) -> None:
        mapping, changed = self._mapping(name), getattr(self._changes.keys, name)
        for key in keys:
            before, now = mapping.get(key), found.get(key)
            if before == now:
                continue
            changed[key] = None
            match name:
                case "sas":
                    self._sort_sa(key, before, now)
                case "policies":
                    self._sort_policy(key, before, now)
                case "peers":
                    self._sort_peer(key, before, now)
            if now is None:
                del mapping[key]
            else:
                mapping[key] = now

    def _sort_sa(self, identity: SaId, before: Sa | None, now: Sa | None) -> None:
        if before is not None:
            remote = _remote(before)
            self._move(remote)
            self._touch(remote)
            held = self.by_remote[remote]
            held.pop(before.id, None)
            if not held:
                del self.by_remote[remote]
            _less(self.in_use, before.key)
            self.with_window -= before.replay_window > 0
            if before.mark is not None:
                _less(self.node_marks, before.mark.value)
                self._changes.node_marks.add(before.mark.value)
        if now is not None:
            remote = _remote(now)
            self._move(remote)
            self._touch(remote)
            self.by_remote.setdefault(remote, {})[identity] = now
            self.in_use[now.key] += 1
            self.with_window += now.replay_window > 0
            if now.mark is not None:
                self.node_marks[now.mark.value] += 1
                self._changes.node_marks.add(now.mark.value)

    def _move(self, remote: Address) -> None:
        self._changes.remotes.add(remote)
        self._ends_touched.add(remote)

    def _touch(self, address: Address) -> None:
        if self._touched is not None:
            self._touched.add(address)

    def _lead(self, policy: Policy, number: int) -> None:
        """Count an outbound policy, or one less."""
        here, there = policy.tunnel_src, policy.tunnel_dst
        self._touch(there)
        self.leading[here, there] += number
        led = self._led.setdefault(there, set())
        if self.leading[here, there]:
            led.add(here)
            return
        del self.leading[here, there]
        led.discard(here)
        if not led:
            del self._led[there]

    def _sort_policy(self, identity: PolicyId, before: Policy | None, now: Policy | None) -> None:
        if before is not None and _leads(before):
            self._lead(before, -1)
        if now is not None and _leads(now):
            self._lead(now, 1)
        self.wide.discard(identity)
        self.pinned.pop(identity, None)
        if now is None:
            return
        if now.dst.prefixlen < now.dst.max_prefixlen and now.src == ANY[now.src.version]:
            self.wide.add(identity)
        if now.spi:
            self.pinned[identity] = SaId(now.tunnel_src, now.tunnel_dst, now.spi, None)

    def _sort_peer(self, address: Address, before: PeerEntry | None, now: PeerEntry | None) -> None:
        self._move(address)
        if before is not None:
            _less(self.sent, before.spi)
            _less(self.node_ids, before.node_id)
            self._changes.node_ids.add(before.node_id)
            ids = self.fingerprints[before.incarnations]
            del ids[address]
            if not ids:
                del self.fingerprints[before.incarnations]
        if now is not None:
            self.sent[now.spi] += 1
            self.node_ids[now.node_id] += 1
            self._changes.node_ids.add(now.node_id)
            self.fingerprints.setdefault(now.incarnations, {})[address] = now.node_id


def _remote(sa: Sa | SaId) -> Address:
    """Give the peer's end."""
    return sa.dst if sa.mark is None else sa.src


def _leads(policy: Policy) -> bool:
    return policy.direction is Direction.OUT and not policy.block


def _less(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]

# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory, with the real one's contract: for tests of whoever makes passes, or of a daemon."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from kmesh_bpf import contract
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.audits import Piece
from kmesh_bpf.core.diff import diff, missing
from kmesh_bpf.core.mirror import MAPPINGS, Keys, restricted
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.render import render
from kmesh_bpf.core.state import (
    Attachment,
    KernelState,
    Link,
    Observation,
    PeerEntry,
    PodFlags,
    Policy,
    PolicyId,
    Sa,
    SaId,
    SaUsage,
)
from kmesh_bpf.core.view import Address, Network
from kmesh_bpf.errors import ConflictError, KmeshBpfError
from kmesh_bpf.kernel.interface import Failure, Kernel

PROGRAMS, MAPS = "/sys/fs/bpf/fake/programs", "/sys/fs/bpf/fake/maps"
"""Folders named in what is rendered."""
SILENT = ("pods", "peers", "sources", "formers")
"""Mappings that nobody notifies of changes of."""
PORTION = 4
"""Objects in a piece of an audit."""


class FakeKernel:
    """Holds what it is given. ``refuse`` may name an operation's error; ``clock`` stamps new SAs.

    ``between`` is called between the two writes of an SA that the peer map tells of.

    The attributes are the objects themselves: a test reads them, and changes them to play somebody else on the node.
    ``foreign_sas``, ``foreign_policies``: what others hold, by what ours would be told apart by, and a conflict.
    ``remembered`` is the incarnation kept; ``numbers`` are the programs' counters, ``errors`` those of XFRM.
    """

    def __init__(self, links: Sequence[Link] = (), clock: Callable[[], float] = lambda: 0.0) -> None:
        self.links = tuple(links)
        self.clock = clock
        self.sas: dict[SaId, Sa] = {}
        self.usage: dict[SaId, SaUsage] = {}
        self.policies: dict[PolicyId, Policy] = {}
        self.pods: dict[Address, PodFlags] = {}
        self.peers: dict[Address, PeerEntry] = {}
        self.services: set[Network] = set()
        self.attachments: set[Attachment] = set()
        self.nat_exemption = False
        self.sources: dict[Address, int] = {}
        self.pod_devices: set[int] = set()
        self.formers: dict[int, int] = {}
        self.policy_hash = False
        self.remembered: str | None = None
        self.numbers: dict[str, int] = dict.fromkeys(contract.COUNTERS, 0)
        self.errors: dict[str, int] = {}
        self.foreign_sas: set[tuple[Address, int]] = set()
        self.foreign_policies: set[PolicyId] = set()
        self.log: list[Operation] = []
        self.refuse: Callable[[Operation], KmeshBpfError | None] = lambda _: None
        self.between: Callable[[], None] = lambda: None
        self._told = self._notified()
        self._untold = Keys()
        self._seen: dict[str, dict[Any, Any]] = {}
        """What was last read, or written by :meth:`apply`, of the mappings that nobody notifies of."""
        self._seen_rest: tuple[object, ...] | None = None
        self._readings: list[tuple[str, dict[Any, Any]]] = []

    def observe(self) -> Observation:
        """Give a copy of everything."""
        return self.find(Keys.everything())

    def find(self, keys: Keys) -> Observation:
        """Give a copy of some objects."""
        state = restricted(self._state(copy=lambda one: one), keys)
        if keys.rest:
            self._seen_rest = self._rest()
        for name in SILENT:
            if name in keys.whole:
                self._seen[name] = dict(getattr(state, name))
            for key in getattr(keys, name):
                self._note(self._seen.setdefault(name, {}), name, key)
        usage = self.usage if "sas" in keys.whole else {one: self.usage[one] for one in keys.sas if one in self.usage}
        return Observation(state, dict(usage), self.links, self.remembered)

    def _state(self, copy: Callable[[dict[Any, Any]], dict[Any, Any]] = dict) -> KernelState:
        return KernelState(
            copy(self.sas),
            copy(self.policies),
            copy(self.pods),
            copy(self.peers),
            frozenset(self.services),
            frozenset(self.attachments),
            self.nat_exemption,
            copy(self.sources),
            frozenset(self.pod_devices),
            copy(self.formers),
            self.policy_hash,
        )

    def remember(self, incarnation: str) -> None:
        """Keep the incarnation."""
        self.remembered = incarnation
        if self._seen_rest is not None:
            self._seen_rest = (*self._seen_rest[:-1], incarnation)

    def incarnation(self) -> str | None:
        """Give the incarnation kept."""
        return self.remembered

    def subscribe(self) -> tuple[int, ...]:
        """Give no descriptor: whoever waits asks :meth:`changed`."""
        return ()

    def changed(self) -> Keys:
        """Tell which SAs and policies, or whether links or tables, were changed since last asked, but by apply."""
        self._notice()
        changed, self._untold = self._untold, Keys()
        return changed

    def look(self) -> Iterator[Keys]:
        """Tell whether links, attachments or maps are other than last read or written."""
        if self._seen_rest is None:
            return
        yield Keys(rest=self._rest() != self._seen_rest)
        for name in SILENT:
            yield Keys(whole=frozenset({name} if getattr(self, name) != self._seen.get(name, {}) else ()))

    def audit(self, mappings: Iterable[str] = MAPPINGS) -> Iterator[Piece]:
        """Give a copy of some mappings, so many objects a step: as they are at that step."""
        for name in mappings:
            reading = name, dict[Any, Any]()
            self._readings.append(reading)
            try:
                yield Piece(name, begins=True)
                left = iter(list(getattr(self, name)))
                while keys := list(islice(left, PORTION)):
                    found = {key: held[key] for held in (getattr(self, name),) for key in keys if key in held}
                    reading[1].update(found)
                    yield Piece(name, found, {key: self.usage[key] for key in found if name == "sas"})
                if name in SILENT:
                    self._seen[name] = reading[1]
            finally:
                self._readings = [one for one in self._readings if one is not reading]
            yield Piece(name, ends=True)

    def attach_missing(
        self, node_addresses: Iterable[Address], uplinks: Collection[str]
    ) -> tuple[tuple[Operation, ...], tuple[Failure, ...]]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        wanted = missing(self.links, node_addresses, uplinks, self._flags, self._state())
        failures = self.apply(wanted)
        refused = {failure.operation for failure in failures}
        return tuple(one for one in wanted if one not in refused), failures

    def _flags(self, address: Address) -> PodFlags:
        return self.pods.get(address, PodFlags(0))

    def counters(self) -> dict[str, int]:
        """Give a copy of the programs' counters."""
        return dict(self.numbers)

    def xfrm_errors(self) -> dict[str, int]:
        """Give a copy of XFRM's counters."""
        return dict(self.errors)

    def render(self, operation: Operation) -> str:
        """Give an operation as a command line, on pins that are nowhere."""
        return render(operation, PROGRAMS, MAPS)

    def remove_stale(self) -> None:
        """Do nothing: no builds are kept."""

    def remove_everything(self) -> tuple[Failure, ...]:
        """Remove all objects, and what was remembered."""
        failures = self.apply(diff(KernelState(), self._state()))
        if not failures:
            self.remembered = None
        return failures

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def find_sa(self, dst: Address, spi: int, mark: int) -> Sa | None:
        """Find an SA as the kernel does: by destination, SPI and the bits of the mark that each one looks at.

        Of several it is the one that was added last (__xfrm_state_lookup: at the head of its chain).
        """
        for identity, sa in reversed(self.sas.items()):
            if identity.spi == spi and identity.dst == dst:
                selects = identity.mark
                if selects is None or mark & selects.mask == selects.value:
                    return sa
        return None

    def _notified(self) -> tuple[dict[SaId, Sa], dict[PolicyId, Policy], tuple[object, ...]]:
        """Give what the kernel notifies of."""
        return dict(self.sas), dict(self.policies), (self.links, self.nat_exemption)

    def _rest(self) -> tuple[object, ...]:
        """Give of what nobody is told of all but the mappings."""
        return (
            self.links,
            *(frozenset(one) for one in (self.attachments, self.services, self.pod_devices)),
            self.remembered,
        )

    def _notice(self) -> None:
        """Take note of what somebody else has changed."""
        (sas, policies, rest), now = self._told, self._notified()
        self._untold.add(Keys(_differing(sas, now[0]), _differing(policies, now[1]), rest=rest != now[2]))
        self._told = now

    def _note(self, held: dict[Any, Any], name: str, key: Any) -> None:
        """Take over what a mapping has under a key."""
        held.pop(key, None)
        held.update((key, one) for one in (getattr(self, name).get(key),) if one is not None)

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        """Carry out what is not refused."""
        self._notice()
        try:
            return self._carried_out(operations)
        finally:
            self._told = self._notified()
            written = Keys.of(operations)
            for name, held in (*self._seen.items(), *self._readings):
                for key in getattr(written, name):
                    self._note(held, name, key)

    def _carried_out(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        failures = []
        for operation in operations:
            self.log.append(operation)
            try:
                error = self.refuse(operation)
                if error is not None:
                    raise error
                self._apply(operation)
            except KmeshBpfError as caught:
                failures.append(Failure(operation, caught))
        return tuple(failures)

    def use(self, identity: SaId, at: float, packets: int = 1) -> None:
        """Count traffic over an SA."""
        before = self.usage[identity]
        self.usage[identity] = replace(before, last_used=int(at), packets=before.packets + packets)

    def _apply(self, operation: Operation) -> None:
        match operation:
            case ops.AddSa(sa, told):
                with self._telling(sa, told):
                    self._add_sa(sa)
            case ops.ReplaceSa(old, new, told):
                with self._telling(new, told):
                    self._delete_sa(old)
                    self._add_sa(new)
            case ops.DeleteSa(sa):
                self._delete_sa(sa)
            case ops.SetPolicy(policy, replace=may_replace):
                if not may_replace and (policy.id in self.policies or policy.id in self.foreign_policies):
                    raise ConflictError("add policy", str(policy.id), errno.EEXIST)
                self.foreign_policies.discard(policy.id)
                self.policies[policy.id] = policy
            case ops.DeletePolicy(policy):
                self.policies.pop(policy.id, None)
            case ops.SetPeer(address, entry):
                self.peers[address] = entry
            case ops.DeletePeer(address):
                self.peers.pop(address, None)
            case ops.SetPod(address, flags):
                self.pods[address] = flags
            case ops.DeletePod(address):
                self.pods.pop(address, None)
            case ops.SetSource(address, ifindex):
                self.sources[address] = ifindex
            case ops.DeleteSource(address):
                self.sources.pop(address, None)
            case ops.AddPodDevice(ifindex):
                self.pod_devices.add(ifindex)
            case ops.DeletePodDevice(ifindex):
                self.pod_devices.discard(ifindex)
            case ops.SetFormer(pair, spi):
                self.formers[pair] = spi
            case ops.DeleteFormer(pair):
                self.formers.pop(pair, None)
            case ops.LowerHashThresholds() | ops.RestoreHashThresholds():
                self.policy_hash = isinstance(operation, ops.LowerHashThresholds)
            case ops.AddService(cidr):
                self.services.add(cidr)
            case ops.DeleteService(cidr):
                self.services.discard(cidr)
            case ops.Attach(attachment):
                self.attachments.discard(replace(attachment, current=False))
                self.attachments.add(attachment)
            case ops.Detach(attachment):
                self.attachments.discard(attachment)
            case ops.InstallNatExemption() | ops.RemoveNatExemption():
                self.nat_exemption = isinstance(operation, ops.InstallNatExemption)

    @contextmanager
    def _telling(self, sa: Sa, entry: PeerEntry | None) -> Iterator[None]:
        """Have the peer map tell of an SA that is made meanwhile, unless it is refused."""
        if entry is None:
            yield
            return
        before = self.peers.get(sa.dst)
        self.peers[sa.dst] = entry
        self.between()
        try:
            yield
        except KmeshBpfError:
            del self.peers[sa.dst]
            if before is not None:
                self.peers[sa.dst] = before
            raise

    def _add_sa(self, sa: Sa) -> None:
        # The SAD is searched by (destination, SPI, mark), not by source: an unmarked one collides with any.
        taken = self.find_sa(sa.dst, sa.spi, sa.mark.value & sa.mark.mask if sa.mark else 0)
        if taken is not None or (sa.dst, sa.spi) in self.foreign_sas:
            raise ConflictError("add SA", f"{sa.src} -> {sa.dst} spi {sa.spi:#010x}", errno.EEXIST)
        self.sas[sa.id] = sa
        self.usage[sa.id] = SaUsage(int(self.clock()), 0, 0, 0)

    def _delete_sa(self, sa: Sa) -> None:
        # What is gone already is absent, as asked. What is deleted is what a packet with that mark would find.
        found = self.find_sa(sa.dst, sa.spi, sa.mark.value & sa.mark.mask if sa.mark else 0)
        if found is not None:
            del self.sas[found.id]
            self.usage.pop(found.id, None)


def _differing(before: dict[Any, Any], now: dict[Any, Any]) -> dict[Any, None]:
    """Give the keys of what has come, gone or changed."""
    if before == now:
        return {}
    return {key: None for key in (*before, *now) if before.get(key) != now.get(key)}


if TYPE_CHECKING:
    _FILLED: Kernel = FakeKernel()  # whatever the seam promises

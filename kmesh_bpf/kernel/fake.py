"""A kernel in memory, with the real one's contract: for tests of whoever uses :func:`kmesh_bpf.reconcile`."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.operations import Operation
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
from kmesh_bpf.errors import ConflictError, KernelError, KmeshBpfError
from kmesh_bpf.kernel.interface import Failure


class FakeKernel:
    """Holds what it is given. ``refuse`` may name an operation's error; ``clock`` stamps new SAs.

    The attributes are the objects themselves: a test reads them, and changes them to play somebody else on the node.
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
        self.incarnation: str | None = None
        self.foreign_sas: set[tuple[Address, int]] = set()
        self.log: list[Operation] = []
        self.refuse: Callable[[Operation], KmeshBpfError | None] = lambda _: None

    def observe(self) -> Observation:
        """Give a copy of everything."""
        state = KernelState(
            dict(self.sas),
            dict(self.policies),
            dict(self.pods),
            dict(self.peers),
            frozenset(self.services),
            frozenset(self.attachments),
            self.nat_exemption,
            dict(self.sources),
            frozenset(self.pod_devices),
            dict(self.formers),
            self.policy_hash,
        )
        return Observation(state, dict(self.usage), self.links, self.incarnation)

    def remember(self, incarnation: str) -> None:
        """Keep the incarnation."""
        self.incarnation = incarnation

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        """Carry out what is not refused."""
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
            case ops.AddSa(sa):
                self._add_sa(sa)
            case ops.ReplaceSa(old, new):
                self._delete_sa(old)
                self._add_sa(new)
            case ops.DeleteSa(sa):
                self._delete_sa(sa)
            case ops.SetPolicy(policy, replace=may_replace):
                if policy.id in self.policies and not may_replace:
                    raise ConflictError("add policy", str(policy.id), errno.EEXIST)
                self.policies[policy.id] = policy
            case ops.DeletePolicy(policy):
                self._delete(self.policies, policy.id)
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

    def _add_sa(self, sa: Sa) -> None:
        # The SAD is searched by (destination, SPI, mark), not by source: an unmarked one collides with any.
        taken = any(
            (other.dst, other.spi) == (sa.dst, sa.spi) and (other.mark is None or other.mark == sa.mark)
            for other in self.sas
        )
        if taken or (sa.dst, sa.spi) in self.foreign_sas:
            raise ConflictError("add SA", f"{sa.src} -> {sa.dst} spi {sa.spi:#010x}", errno.EEXIST)
        self.sas[sa.id] = sa
        self.usage[sa.id] = SaUsage(int(self.clock()), 0, 0, 0)

    def _delete_sa(self, sa: Sa) -> None:
        self._delete(self.sas, sa.id)
        self.usage.pop(sa.id, None)

    @staticmethod
    def _delete(objects: dict[Any, Any], identity: object) -> None:
        if identity not in objects:
            raise KernelError("delete", str(identity), errno.ENOENT)
        del objects[identity]

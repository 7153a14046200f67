# SPDX-License-Identifier: Apache-2.0
"""Kernels to measure with: one in memory that costs next to nothing, and the real one, with or without ESP."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

from kmesh_bpf import Address, FakeKernel, Key, LinuxKernel, Settings
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.audits import Piece
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import Observation, Sa, SaId, SaUsage
from kmesh_bpf.errors import UnsupportedError
from kmesh_bpf.kernel.interface import Failure
from kmesh_bpf.kernel.netlink import NetlinkSocket
from kmesh_bpf.kernel.xfrm import Xfrm
from tests.lab.network import inside

PIN_ROOT = Path(f"/sys/fs/bpf/kmesh-bench-{os.getpid()}")
NUMBERS = count()
SAS_IN_A_PIECE = 36
"""As many as the kernel gives at once."""
SA_OPERATIONS = (ops.AddSa, ops.ReplaceSa, ops.DeleteSa)


class Clock:
    """Seconds since the epoch, as the measurement wants them."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Sas:
    """SAs in a dictionary; all of them are in use, but for outbound ones beside a newer one: the kernel takes that."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sas: dict[SaId, Sa] = {}
        self.added: dict[SaId, int] = {}
        self.newest: dict[tuple[Address, Address], SaId] = {}

    def apply(self, operation: Operation) -> None:
        """Carry out an operation on SAs."""
        match operation:
            case ops.AddSa(sa):
                self.sas[sa.id], self.added[sa.id] = sa, int(self.clock.now)
                if sa.mark is None:
                    self.newest[sa.src, sa.dst] = sa.id
            case ops.ReplaceSa(old, new):
                self.apply(ops.DeleteSa(old))
                self.apply(ops.AddSa(new))
            case ops.DeleteSa(sa):
                self.sas.pop(sa.id, None)

    def usage(self, identity: SaId) -> SaUsage:
        """Tell when it carried a packet last: now, or until there was a newer one."""
        newest = self.newest.get((identity.src, identity.dst), identity)
        rests = identity.mark is None and newest != identity
        return SaUsage(self.added[identity], self.added[newest] if rests else int(self.clock.now), 1, 1)


class Handed:
    """When operations were first handed over: what a planner's speed ends with. In seconds of processor time."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.spent = 0.0
        """Seconds in which operations were carried out."""

    def begin(self) -> None:
        """Forget."""
        self.at, self.spent = None, 0.0


class Memory(FakeKernel):
    """A kernel in memory that costs as little as can be."""

    def __init__(self, clock: Clock) -> None:
        super().__init__((), clock)
        self.handed = Handed()
        self._sas = Sas(clock)
        self.sas = self._sas.sas

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        if self.handed.at is None:
            self.handed.at = time.process_time()
        for operation in operations:
            if isinstance(operation, SA_OPERATIONS):
                self._sas.apply(operation)
            else:
                self._apply(operation)
        return ()

    def find(self, keys: Keys) -> Observation:
        asked = self.sas if "sas" in keys.whole else keys.sas
        self.usage = {identity: self._sas.usage(identity) for identity in asked if identity in self.sas}
        return super().find(keys)


class Real:
    """The real kernel; where it has no ESP, its SAs are in a dictionary."""

    def __init__(self, kernel: LinuxKernel, clock: Clock) -> None:
        self.kernel, self.handed = kernel, Handed()
        self._sas = None if has_esp() else Sas(clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        began = time.process_time()
        if self.handed.at is None:
            self.handed.at = time.process_time()
        failures: list[Failure] = []
        for kept, run in groupby(operations, lambda one: self._sas is not None and isinstance(one, SA_OPERATIONS)):
            if kept and self._sas is not None:
                for operation in run:
                    self._sas.apply(operation)
            else:
                failures += self.kernel.apply(list(run))
        self.handed.spent += time.process_time() - began
        assert not failures, failures[0].error
        return ()

    def observe(self) -> Observation:
        return self._with_sas(self.kernel.observe(), Keys.everything())

    def find(self, keys: Keys) -> Observation:
        if self._sas is None:
            return self.kernel.find(keys)
        return self._with_sas(self.kernel.find(replace(keys, sas={}, whole=keys.whole - {"sas"})), keys)

    def audit(self, mappings: Sequence[str]) -> Iterator[Piece]:
        if self._sas is None or "sas" not in mappings:
            yield from self.kernel.audit(mappings)
            return
        yield Piece("sas", begins=True)
        left = iter(list(self._sas.sas.items()))
        while some := dict(islice(left, SAS_IN_A_PIECE)):
            yield Piece("sas", some, {identity: self._sas.usage(identity) for identity in some})
        yield Piece("sas", ends=True)
        yield from self.kernel.audit([name for name in mappings if name != "sas"])

    def _with_sas(self, found: Observation, keys: Keys) -> Observation:
        if self._sas is None:
            return found
        asked = self._sas.sas if "sas" in keys.whole else keys.sas
        held = {one: self._sas.sas[one] for one in asked if one in self._sas.sas}
        usage = {identity: self._sas.usage(identity) for identity in held}
        return replace(found, state=replace(found.state, sas=held), usage=usage)


def has_esp() -> bool:
    """Tell whether this kernel takes an SA of ours."""

    sa = Sa(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 4711, Key(bytes(36)))
    with namespace():
        socket = NetlinkSocket()
        try:
            failures = Xfrm(socket).apply([ops.AddSa(sa)])
        finally:
            socket.close()
    return not any(isinstance(one.error, UnsupportedError) for one in failures)


@contextmanager
def namespace() -> Iterator[str]:
    """Live in a network namespace of our own."""
    name = f"kmesh-bench-{os.getpid()}-{next(NUMBERS)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        with inside(name):
            yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def pinned() -> Iterator[Path]:
    """Have a pin root of our own, and nothing left of it."""
    shutil.rmtree(PIN_ROOT, ignore_errors=True)
    try:
        yield PIN_ROOT
    finally:
        shutil.rmtree(PIN_ROOT, ignore_errors=True)


@contextmanager
def real(clock: Clock) -> Iterator[Real]:
    """Give the real kernel, with nothing of ours in it but loaded programs."""
    with pinned() as root, namespace():
        kernel = LinuxKernel(root, Settings())
        try:
            yield Real(kernel, clock)
        finally:
            kernel.close()

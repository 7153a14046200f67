"""The seam between deciding and doing: what a reconciler may ask of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import Observation
from kmesh_bpf.errors import KmeshBpfError

AttachMode = Literal["auto", "tcx", "clsact"]
"""How programs are attached to devices; auto: TCX where the kernel has it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that the kernel refused; the others of its batch were carried out all the same."""

    operation: Operation
    error: KmeshBpfError


class Kernel(Protocol):
    """Three verbs. ``kmesh_bpf.kernel.linux`` speaks to the real one, ``kmesh_bpf.kernel.fake`` is in memory."""

    def observe(self) -> Observation:
        """Find all objects of ours.

        Raises:
            DecodeError: the observation would be torn or unreadable; nothing may be concluded from it.
            KernelError: the kernel refused to answer.

        """

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        """Carry the operations out in the order given; answer those that failed."""

    def remember(self, incarnation: str) -> None:
        """Keep this node's incarnation with the kernel objects, for as long as they live."""

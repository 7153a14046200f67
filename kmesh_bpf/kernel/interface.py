# SPDX-License-Identifier: Apache-2.0
"""The seam between deciding and doing: what a reconciler may ask of a kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kmesh_bpf.core.audits import Piece
from kmesh_bpf.core.mirror import MAPPINGS, Keys
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import Observation
from kmesh_bpf.core.view import Address
from kmesh_bpf.errors import KmeshBpfError

AttachMode = Literal["auto", "tcx", "clsact"]
"""How programs are attached to devices; auto: TCX where the kernel has it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that the kernel refused; the others of its batch were carried out all the same."""

    operation: Operation
    error: KmeshBpfError


class Kernel(Protocol):
    """Everything that a daemon asks. ``kmesh_bpf.kernel.linux`` speaks to the real one, ``kernel.fake`` is in memory.

    A pass takes the first three verbs; the others are of whoever makes passes: when one is due, what cannot wait for
    it, and what to tell of it.
    """

    def observe(self) -> Observation:
        """Find all objects of ours.

        Raises:
            DecodeError: the observation would be torn or unreadable; nothing may be concluded from it.
            KernelError: the kernel refused to answer.

        """

    def find(self, keys: Keys) -> Observation:
        """Find what there is of some objects of ours, as :meth:`observe` does; of SAs with their usage.

        Of mappings in ``keys.whole`` all. With ``keys.rest`` all that is not among the mappings of a KernelState too:
        devices and what is attached to them, sets and switches, who this node is.

        Raises:
            DecodeError, KernelError: as of :meth:`observe`.

        """

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        """Carry the operations out in the order given; answer those that failed."""

    def remember(self, incarnation: str) -> None:
        """Keep this node's incarnation with the kernel objects, for as long as they live."""

    def incarnation(self) -> str | None:
        """Give the incarnation kept, None where there is none yet."""

    def subscribe(self) -> tuple[int, ...]:
        """Start to listen to changes of SAs, policies, devices and tables of ours; give the descriptors to wait for.

        When one of them becomes readable, ask :meth:`changed`.
        """

    def changed(self) -> Keys:
        """Take the notifications waiting; give what somebody else has touched, of ours or in the place of ours.

        What it is now :meth:`find` tells. Where notifications were lost that is all that they would have told of.
        """

    def look(self) -> Iterator[Keys]:
        """Look, cheaply, whether anything of ours that no notification tells of is other than last read or written.

        A step takes a few milliseconds at most, and gives what is not: ``rest``, or a mapping as a whole, which
        :meth:`audit` can read piece by piece. Between two steps anything may happen; whoever has no more use of it
        closes it.

        Raises:
            KmeshBpfError: it could not be found out.

        """

    def audit(self, mappings: Iterable[str] = MAPPINGS) -> Iterator[Piece]:
        """Read all objects of some mappings of a KernelState once more, one mapping after the other, piece by piece.

        A step takes a few milliseconds at most. Between two steps anything may happen: the pieces are not of one
        moment, and what comes meanwhile is in one or in none.

        Raises:
            DecodeError: a mapping changed under way each time it was begun, or is unreadable.
            KernelError: the kernel refused to answer.

        """

    def attach_missing(
        self, node_addresses: Iterable[Address], uplinks: Collection[str]
    ) -> tuple[tuple[Operation, ...], tuple[Failure, ...]]:
        """Attach at once what devices lack, and unbind those that are gone; give what was done, and what was refused.

        A pass of everything takes its time. What is done: :func:`kmesh_bpf.core.diff.missing`.

        Raises:
            DecodeError, KernelError: it could not be found out.

        """

    def counters(self) -> Mapping[str, int]:
        """Give the programs' counters by name (:data:`kmesh_bpf.contract.COUNTERS`)."""

    def xfrm_errors(self) -> Mapping[str, int]:
        """Give the kernel's counters of packets that XFRM refused, by the kernel's names (/proc/net/xfrm_stat)."""

    def render(self, operation: Operation) -> str:
        """Give an operation as a command line, without its key."""

    def remove_stale(self) -> None:
        """Unpin former builds; called when every device runs the present one."""

    def remove_everything(self) -> tuple[Failure, ...]:
        """Remove every object of ours and nothing else; give what the kernel refused to remove."""

    def close(self) -> None:
        """Close all descriptors; what is in the kernel goes on working."""

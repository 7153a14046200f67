# SPDX-License-Identifier: Apache-2.0
"""What the kernel gives in portions as the pieces of an audit: with the first of a mapping marked, and the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kmesh_bpf.core.audits import Piece
from kmesh_bpf.core.state import Policy
from kmesh_bpf.kernel.xfrm_messages import DecodedSa


def of_entries(name: str, portions: Iterable[Mapping[Any, Any]]) -> Iterator[Piece]:
    """Give the pieces of a mapping that maps hold."""
    yield Piece(name, begins=True)
    yield from (Piece(name, portion) for portion in portions)
    yield Piece(name, ends=True)


def of_policies(portions: Iterable[list[Policy] | None]) -> Iterator[Piece]:
    """Give the pieces of the policies; None among the portions: they are read from the start again."""
    yield Piece("policies", begins=True)
    for portion in portions:
        yield Piece("policies", {policy.id: policy for policy in portion or ()}, begins=portion is None)
    yield Piece("policies", ends=True)


def of_sas(portions: Iterable[list[DecodedSa] | None]) -> Iterator[Piece]:
    """Give the pieces of our SAs, from portions of all SAs, in the same way."""
    yield Piece("sas", begins=True)
    for portion in portions:
        ours = [(one.sa, one.usage) for one in portion or () if one.sa]
        found, usage = {sa.id: sa for sa, _ in ours}, {sa.id: usage for sa, usage in ours}
        yield Piece("sas", found, usage, begins=portion is None)
    yield Piece("sas", ends=True)

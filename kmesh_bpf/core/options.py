# SPDX-License-Identifier: Apache-2.0
"""What the operator chose, as one record."""

from __future__ import annotations

from dataclasses import dataclass, field

from kmesh_bpf import contract
from kmesh_bpf.core.keys import Retirement


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose. ``replay_window`` in packets: ours, announced to peers; 0 turns ESN off.

    ``mark_mask``: bits of the low byte of marks that are ours. ``strict``: between managed pods nothing passes in
    clear. ``max_exact``: managed addresses of other nodes that are selected one by one; beyond, nodes by their pod
    CIDRs where that means the same.
    """

    node_mark_mask: int = contract.NODE_MARK_MASK
    mark_mask: int = contract.MARK_MASK
    strict: bool = True
    max_exact: int = 30000
    replay_window: int = 4096
    uplinks: tuple[str, ...] = ()
    retirement: Retirement = field(default_factory=Retirement)

# SPDX-License-Identifier: Apache-2.0
"""XFRM policies of others that are asked before ours, and defaults that drop what no policy selects. Pure.

The kernel takes the first policy that selects a packet, whoever wrote it: what should be encrypted is not, and the
guard drops it, or what was decrypted is taken from whoever sent it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from kmesh_bpf import contract
from kmesh_bpf.core.marks import to_encrypt, was_decrypted
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import Direction, Rival
from kmesh_bpf.core.view import Address

NAMES = 3
"""Policies named in one sentence: other software makes hundreds."""


def judge(
    rivals: Iterable[Rival], refusing: Collection[Direction], managed: Collection[Address], mark_mask: int
) -> Iterator[Problem]:
    """Name what is in the way. ``managed``: addresses of other nodes' managed pods; ``mark_mask``: bits that are ours.

    ``refusing``: directions in which what no policy selects is dropped.
    """
    found = [rival for rival in rivals if _meets(rival, managed, mark_mask)]
    for out, fate in ((True, "is not encrypted, and dropped"), (False, "is taken from whoever sent it, or dropped")):
        ahead = [one for one in found if (one.direction is Direction.OUT) is out]
        if ahead:
            named = ", ".join(f"{one.direction.value} {one.src} -> {one.dst}" for one in ahead[:NAMES])
            more = f" and {len(ahead) - NAMES} more" if len(ahead) > NAMES else ""
            sentence = (
                f"XFRM policy {named}{more} of priority {min(one.priority for one in ahead)} is not ours and comes "
                f"before ours: what it selects {fate}; delete it, or give it a priority above "
                f"{contract.POLICY_PRIORITY} (ip xfrm policy)"
            )
            yield Problem(ProblemKind.INTERFERENCE, sentence)
    if refusing:
        names = sorted(one.value for one in refusing)
        remedy = " ".join(f"{name} accept" for name in names)
        sentence = (
            f"XFRM drops what no policy selects ({', '.join(names)}), what pods send before it is encrypted too: "
            f"ip xfrm policy setdefault {remedy}"
        )
        yield Problem(ProblemKind.INTERFERENCE, sentence)


def _meets(rival: Rival, managed: Collection[Address], mark_mask: int) -> bool:
    """Tell whether a policy selects packets that one of ours is for."""
    out = rival.direction is Direction.OUT
    ours = to_encrypt(mark_mask) if out else was_decrypted(mark_mask)
    theirs = rival.dst if out else rival.src
    both = (ours.value ^ rival.mark.value) & ours.mask & rival.mark.mask == 0
    return both and any(address in theirs for address in managed)

"""XFRM policies of others that are asked before ours, and defaults that drop what no policy selects. Pure.

The kernel takes the first policy that selects a packet, whoever wrote it: what should be encrypted is not, and the
guard drops it, or what was decrypted is taken from whoever sent it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from kmesh_bpf import contract
from kmesh_bpf.core.policies import to_encrypt, was_decrypted
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import Direction, Rival
from kmesh_bpf.core.view import Address


def judge(
    rivals: Iterable[Rival], refusing: Collection[Direction], managed: Collection[Address], mark_mask: int
) -> Iterator[Problem]:
    """Name what is in the way. ``managed``: addresses of other nodes' managed pods; ``mark_mask``: bits that are ours.

    ``refusing``: directions in which what no policy selects is dropped.
    """
    for rival in rivals:
        out = rival.direction is Direction.OUT
        ours = to_encrypt(mark_mask) if out else was_decrypted(mark_mask)
        theirs = rival.dst if out else rival.src
        meets = (ours.value ^ rival.mark.value) & ours.mask & rival.mark.mask == 0
        if meets and any(address in theirs for address in managed):
            fate = "is not encrypted, and dropped" if out else "is taken from whoever sent it, or dropped"
            sentence = (
                f"XFRM policy {rival.direction.value} {rival.src} -> {rival.dst} of priority {rival.priority} is not "
                f"ours and comes before ours: what it selects {fate}; delete it, or give it a priority above "
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

"""Which marks of SAs and policies are ours, whatever mark mask they were made with.

What another setting has made must be found to be removed, so it goes by the form and not by the setting at hand.
"""

from __future__ import annotations

from kmesh_bpf import contract
from kmesh_bpf.core.policies import ASKS_ENCRYPTION, TELLS_DECRYPTION, UNMARKED
from kmesh_bpf.core.state import Direction, Mark

LOW = contract.MARK_MASK
UPPER_BITS = 0xFFFFFFFF & ~LOW


def of_sa(mark: Mark | None, output: Mark | None) -> bool:
    """Tell whether an SA's marks are ours: none at all (outbound), or node mark and decrypted mark (inbound)."""
    if mark is None:
        return output is None
    own = mark.mask & LOW
    return _says(mark.value & LOW, own, contract.MARK_DECRYPTED, TELLS_DECRYPTION) and output == Mark(
        contract.MARK_DECRYPTED & own, UPPER_BITS | own
    )


def of_policy(direction: Direction, mark: Mark) -> bool:
    """Tell whether a policy's mark is ours; also with the masks of former versions, which were whole."""
    if mark == UNMARKED:
        return direction is Direction.OUT
    if direction is Direction.OUT:
        return _says(mark.value, mark.mask, contract.MARK_ENCRYPT, ASKS_ENCRYPTION)
    return _says(mark.value, mark.mask, contract.MARK_DECRYPTED, TELLS_DECRYPTION)


def _says(value: int, mask: int, meaning: int, needed: int) -> bool:
    return not mask & ~LOW and mask & needed == needed and value == meaning & mask

"""What is wrong, for the operator to mend, as values: they name the thing and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ProblemKind(Enum):
    """What is wrong."""

    UPLINK = "an uplink is missing"
    BRIDGED = "pods are bridged with a device that leads out, past encryption"
    XFRM_DISABLED = "a device that leads out is kept from encryption"
    INTERFERENCE = "a rule of somebody else stands in the way"
    SOURCE = "two devices claim the address of a managed pod"
    QUARANTINE = "a peer claims the address of another one and gets no packet"
    CONFLICT = "a peer claims the pods of another one and misses those"
    KEY = "there is no key"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something for the operator to mend."""

    kind: ProblemKind
    sentence: str

    def __str__(self) -> str:
        return self.sentence

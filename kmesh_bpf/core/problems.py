"""What is wrong, for the operator to mend, as values: they name the thing and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ProblemKind(Enum):
    """What is wrong."""

    UPLINK = "an uplink is missing"
    QUARANTINE = "a peer claims the address of another one and gets no packet"
    CONFLICT = "a pod claims the address of a node or of another pod and misses it"
    KEY = "there is no key"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something for the operator to mend."""

    kind: ProblemKind
    sentence: str

    def __str__(self) -> str:
        return self.sentence

# SPDX-License-Identifier: Apache-2.0
"""What is wrong, for the operator to mend, as values: they name the thing and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ProblemKind(Enum):
    """What is wrong."""

    UPLINK = "an uplink is missing"
    BRIDGED = "pods are bridged with a device that leads out, past encryption"
    XFRM_DISABLED = "a device that leads out is kept from encryption, or from its policies"
    INTERFERENCE = "a rule of somebody else stands in the way"
    SOURCE = "two devices claim the address of a managed pod"
    ADDRESS = "a device of the node itself carries the address of a managed pod"
    NO_DEVICE = "a managed pod has no device of its own"
    QUARANTINE = "a peer claims the address of another one and gets no packet"
    CONFLICT = "a pod claims the address of a node or of another pod and misses it"
    CAPACITY = "there is no room for all peers"
    CLAIM = "an object of the cluster claims what is another one's and does not get it"
    KEY = "there is no key"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something for the operator to mend."""

    kind: ProblemKind
    sentence: str

    def __str__(self) -> str:
        return self.sentence

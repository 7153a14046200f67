# SPDX-License-Identifier: Apache-2.0
"""Changes to the kernel, as values. A difference between two states is a tuple of these, in a safe order."""

from __future__ import annotations

from dataclasses import dataclass

from kmesh_bpf.core.state import Attachment, PeerEntry, PodFlags, Policy, Sa
from kmesh_bpf.core.view import Address, Network


@dataclass(frozen=True, slots=True)
class AddSa:
    """Install an SA that is not there. Another one with its identity is a conflict, never a success.

    ``told``: what the peer map says of the far end from right before the SA is there; it is as it was if the SA is
    refused. None: nothing.
    """

    sa: Sa
    told: PeerEntry | None = None


@dataclass(frozen=True, slots=True)
class ReplaceSa:
    """Put ``new`` where ``old``, ours and with the same identity, is: the kernel cannot change a key in place.

    ``told``: as :class:`AddSa` has it.
    """

    old: Sa
    new: Sa
    told: PeerEntry | None = None


@dataclass(frozen=True, slots=True)
class DeleteSa:
    """Remove an SA of ours."""

    sa: Sa


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Install a policy, or put it in the place of ours with the same identity, in one step."""

    policy: Policy
    replace: bool = False


@dataclass(frozen=True, slots=True)
class DeletePolicy:
    """Remove a policy of ours."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Write an entry of the peer maps."""

    address: Address
    entry: PeerEntry


@dataclass(frozen=True, slots=True)
class DeletePeer:
    """Remove an entry of the peer maps."""

    address: Address


@dataclass(frozen=True, slots=True)
class SetPod:
    """Write an entry of the pod maps."""

    address: Address
    flags: PodFlags


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Remove an entry of the pod maps."""

    address: Address


@dataclass(frozen=True, slots=True)
class SetSource:
    """Bind a managed pod's address to its device: no other one may carry it as source."""

    address: Address
    ifindex: int


@dataclass(frozen=True, slots=True)
class DeleteSource:
    """Release an address."""

    address: Address


@dataclass(frozen=True, slots=True)
class AddPodDevice:
    """Let a device carry no source but those bound to it."""

    ifindex: int


@dataclass(frozen=True, slots=True)
class DeletePodDevice:
    """Let a device carry any source again."""

    ifindex: int


@dataclass(frozen=True, slots=True)
class SetFormer:
    """Remember a tunnel (PeerEntry.pair) whose SAs go: the highest key version that was in use."""

    pair: int
    spi: int


@dataclass(frozen=True, slots=True)
class DeleteFormer:
    """Forget a tunnel: its keys cannot come back."""

    pair: int


@dataclass(frozen=True, slots=True)
class LowerHashThresholds:
    """Have policies of whole addresses found by hash, and remember the thresholds found."""


@dataclass(frozen=True, slots=True)
class RestoreHashThresholds:
    """Put the thresholds back as they were found."""


@dataclass(frozen=True, slots=True)
class AddService:
    """Write a prefix into the service maps."""

    cidr: Network


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Remove a prefix from the service maps."""

    cidr: Network


@dataclass(frozen=True, slots=True)
class Attach:
    """Attach a program to a device, or put this version in the place of an older one without a gap."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Detach:
    """Take a program of ours off a device."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class InstallNatExemption:
    """Install our nft tables, or put them in the place of ours that differ, in one transaction."""


@dataclass(frozen=True, slots=True)
class RemoveNatExemption:
    """Remove our nft tables."""


Operation = (
    AddSa
    | ReplaceSa
    | DeleteSa
    | SetPolicy
    | DeletePolicy
    | SetPeer
    | DeletePeer
    | SetPod
    | DeletePod
    | SetSource
    | DeleteSource
    | AddPodDevice
    | DeletePodDevice
    | SetFormer
    | DeleteFormer
    | LowerHashThresholds
    | RestoreHashThresholds
    | AddService
    | DeleteService
    | Attach
    | Detach
    | InstallNatExemption
    | RemoveNatExemption
)

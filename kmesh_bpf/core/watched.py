# SPDX-License-Identifier: Apache-2.0
"""What the programs tell of packets, for whoever asks (``kmeshctl monitor``): events, and their sum by pair. Pure.

A packet may pass several programs, and each tells what it has decided: a packet that is encrypted is ``marked`` where
it leaves its pod, and ``decrypted`` where it arrives. The decisions are those of the contract header's counters, and
one that has none: what a managed pod sends in clear, as it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from kmesh_bpf import contract
from kmesh_bpf.core.view import Address

EVENT_BYTES = contract.size_of("kmesh_events", "value")
PASSED_CLEAR = "passed_clear"
"""The name of the decision that raises no counter."""


class PacketFate(Enum):
    """What becomes of a packet, in one word."""

    ENCRYPTED = "encrypted"
    CLEAR = "clear"
    DROPPED = "dropped"
    UNREADABLE = "unreadable"


DECISIONS: Mapping[str, tuple[PacketFate, str]] = MappingProxyType(
    {
        "marked": (PacketFate.ENCRYPTED, "sent, to be encrypted if a policy selects it"),
        "decrypted": (PacketFate.ENCRYPTED, "arrived encrypted"),
        "esp_known_peer": (PacketFate.ENCRYPTED, "ESP from a peer, not decrypted yet"),
        "esp_unknown_peer": (PacketFate.ENCRYPTED, "ESP from a node that is no peer: left to others"),
        PASSED_CLEAR: (PacketFate.CLEAR, "sent in clear: the other end is not managed, or on this node"),
        "allowed_clear_text": (
            PacketFate.CLEAR,
            "in clear, to or from another node: permissive mode lets it pass",
        ),
        "stale_mark_cleared": (PacketFate.CLEAR, "a mark of ours that nobody of ours has set was wiped off"),
        "dropped_by_guard": (
            PacketFate.DROPPED,
            "would have left in clear: its node is not ready, or policies are gone",
        ),
        "dropped_clear_text": (PacketFate.DROPPED, "came in clear from a managed pod of another node"),
        "dropped_decrypted": (PacketFate.DROPPED, "was decrypted here, and would have left the node in clear"),
        "dropped_spoofed": (PacketFate.DROPPED, "bears a managed pod's address, and does not come from that pod"),
        "parse_failure": (PacketFate.UNREADABLE, "cut, malformed, or behind too many tags"),
    }
)
"""What each decision means for the packet, by the name of its counter."""


@dataclass(frozen=True, slots=True)
class Event:
    """A program's word on a packet. No address: no IP packet, or none that could be read.

    ``protocol``: what the IP header carries; ``length`` in bytes, of what is yet to be cut up (GSO) the whole; ``mark``
    after the decision.
    """

    decision: str
    source: Address | None
    destination: Address | None
    protocol: int
    ifindex: int
    length: int
    mark: int


def decode(record: bytes) -> Event:
    """Read an event as the contract header lays it out; EVENT_BYTES bytes."""
    told = contract.unpacked("kmesh_events", "value", record)
    return Event(
        PASSED_CLEAR if told.decision == contract.DECISION_CLEAR else contract.COUNTERS[told.decision],
        _address(told.family, contract.raw(told.source)),
        _address(told.family, contract.raw(told.destination)),
        told.protocol,
        told.ifindex,
        told.length,
        told.mark,
    )


def _address(family: int, content: bytes) -> Address | None:
    match family:
        case 4:
            return IPv4Address(content[:4])
        case 6:
            return IPv6Address(content)
    return None


@dataclass(frozen=True, slots=True)
class PacketPair:
    """Who sends to whom, and what was decided on it."""

    source: Address | None
    destination: Address | None
    decision: str

    @property
    def fate(self) -> PacketFate:
        """What becomes of such packets."""
        return DECISIONS[self.decision][0]

    @property
    def reason(self) -> str:
        """Say why, as a sentence without its end."""
        return DECISIONS[self.decision][1]


@dataclass(slots=True)
class PacketSum:
    """Packets and bytes of a pair; of a sample, estimates: what was told, times what one stands for."""

    packets: int = 0
    bytes: int = 0


@dataclass(slots=True)
class EventTotals:
    """The sums since :meth:`taken` last gave them; ``one_of``: one event stands for so many packets."""

    one_of: int = 1
    _sums: dict[PacketPair, PacketSum] = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> None:
        """Count events."""
        for event in events:
            of_pair = self._sums.setdefault(PacketPair(event.source, event.destination, event.decision), PacketSum())
            of_pair.packets += self.one_of
            of_pair.bytes += self.one_of * event.length

    def taken(self) -> list[tuple[PacketPair, PacketSum]]:
        """Give the sums, what was dropped first, then by packets, and begin anew."""
        order = list(PacketFate)
        urgent = {PacketFate.DROPPED: -1}
        found = sorted(
            self._sums.items(),
            key=lambda item: (
                urgent.get(item[0].fate, order.index(item[0].fate)),
                -item[1].packets,
                str(item[0].source),
                str(item[0].destination),
                item[0].decision,
            ),
        )
        self._sums = {}
        return found

# SPDX-License-Identifier: Apache-2.0
"""How a packet goes from one end to the other: straight, by a Service's address, by a node's; and who may send it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from kmesh_bpf import Address

if TYPE_CHECKING:
    from tests.simulator.machine import LivePod, Machine

SERVICES = {4: ip_network("10.96.0.0/16"), 6: ip_network("fd00:96::/112")}
"""The Service CIDRs."""
CLUSTER_IPS = {4: ip_address("10.96.0.10"), 6: ip_address("fd00:96::10")}


class Way(Enum):
    """What the packet is sent to, and by whom.

    ``SERVICE``: a ClusterIP, which the sender's node gives to a pod. ``NODE_PORT``: a node's address, and that node gives
    it to a pod of its own (hostPort), or passes it on, masqueraded (NodePort). ``OWN``: the sender is a node itself
    (kubelet's probes, a pod with hostNetwork), as ``OWN_SERVICE`` by a ClusterIP. ``TO_NODE``: the receiver is a node.
    """

    STRAIGHT = "straight"
    SERVICE = "by a ClusterIP"
    NODE_PORT = "by a NodePort"
    OWN = "from the node itself"
    OWN_SERVICE = "from the node itself by a ClusterIP"
    TO_NODE = "to the node itself"


@dataclass(frozen=True)
class Trip:
    """A packet from one end to another; those between the same ends, by the same way, are equal.

    ``src``, ``dst``: the ends' addresses, whatever it is sent to. ``via``: the node of a NodePort.
    """

    ident: int = field(compare=False)
    source: LivePod
    target: LivePod
    src: Address
    dst: Address
    way: Way = Way.STRAIGHT
    via: Machine | None = None

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The nodes that it passes, in order."""
        ends = self.source.machine, self.target.machine
        return ends if self.via is None or self.via in ends else (ends[0], self.via, ends[1])

    @property
    def first(self) -> Machine:
        """The node that it is sent to over the wire first."""
        return self.machines[1]

    @property
    def between_pods(self) -> bool:
        """Whether both ends are pods."""
        return self.way not in (Way.OWN, Way.OWN_SERVICE, Way.TO_NODE)

    def __str__(self) -> str:
        ends = ((self.src, self.source), (self.dst, self.target))
        one, other = (f"{address} ({end.label} on {end.machine.name})" for address, end in ends)
        how = f" {self.way.value}" if self.way is not Way.STRAIGHT else ""
        return f"{one} -> {other}{how}{f' of {self.via.name}' if self.via else ''}"

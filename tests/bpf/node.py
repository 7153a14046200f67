# SPDX-License-Identifier: Apache-2.0
"""A node's programs and maps under test, filled with one address of each kind, and the devices that packets come by."""

import socket
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from kmesh_bpf.core.state import PeerEntry, PodFlags, Program
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.programs import Settings, ensure_loaded
from tests.lab.network import inside

READY = PodFlags.REMOTE | PodFlags.READY
NODE = PodFlags.CANDIDATE | PodFlags.PEER
READY_NODE = NODE | PodFlags.READY
READY_PEERS_POD = READY | PodFlags.PEER
OWN = PodFlags.CANDIDATE | PodFlags.OWN
LOCAL, REMOTE, NEAR, FAR, STRANGER, OUTSIDE = "local", "remote", "near", "far", "stranger", "outside"
ADDRESSES = {
    4: {
        LOCAL: "10.244.1.10",
        REMOTE: "10.244.2.10",
        NEAR: "10.244.2.11",
        FAR: "10.244.3.10",
        STRANGER: "192.0.2.1",
        OUTSIDE: "203.0.113.7",
    },
    6: {
        LOCAL: "fd00:1::10",
        REMOTE: "fd00:2::10",
        NEAR: "fd00:2::11",
        FAR: "fd00:3::10",
        STRANGER: "2001:db8::1",
        OUTSIDE: "2001:db8:f::7",
    },
}
OURSELVES = {4: "10.10.0.1", 6: "fd00:10::1"}
PEER = {4: "10.10.0.2", 6: "fd00:10::2"}
FAR_PEER = {4: "10.10.0.3", 6: "fd00:10::3"}
SERVICE = {4: "10.96.1.1", 6: "fd00:96::1"}
NODE_MARK = 0x00200100
LO, UPLINK, POD_DEVICE, OTHER_DEVICE = "lo", "uplink", "pod0", "pod1"


@dataclass(frozen=True)
class Devices:
    """A network namespace and its devices' numbers."""

    netns: str
    ifindex: Mapping[str, int]


class NodeUnderTest:
    """LOCAL is managed here and bound to POD_DEVICE, which carries no other source.

    REMOTE is managed on a ready peer, NEAR on one that encrypts what it sends to nodes; FAR on a node that is not ready; STRANGER is no managed pod, OUTSIDE the external
    address of a Service. PEER and FAR_PEER are nodes that take what is sent to them encrypted, the second not ready.
    """

    def __init__(self, root, devices=None, **changes):
        self.root, self.settings, self.devices = root, Settings(**changes), devices
        self.build = ensure_loaded(root, self.settings)
        self.maps = Maps(self.build.maps)
        flags = {
            LOCAL: PodFlags.LOCAL,
            REMOTE: READY,
            NEAR: READY_PEERS_POD,
            FAR: PodFlags.REMOTE,
            OUTSIDE: PodFlags.CANDIDATE,
        }
        for version, named in ADDRESSES.items():
            for name, ones in flags.items():
                self.maps.set_pod(ip_address(named[name]), ones)
            self.maps.set_pod(ip_address(OURSELVES[version]), OWN)
            self.maps.set_pod(ip_address(PEER[version]), READY_NODE)
            self.maps.set_pod(ip_address(FAR_PEER[version]), NODE)
            self.maps.set_peer(ip_address(PEER[version]), PeerEntry(5, NODE_MARK, 1, 7, pair=9))
            if devices:
                self.maps.set_source(ip_address(named[LOCAL]), devices.ifindex[POD_DEVICE])
        if devices:
            self.maps.add_pod_device(devices.ifindex[POD_DEVICE])
        self.maps.add_service(ip_network("10.96.0.0/16"))
        self.maps.add_service(ip_network("fd00:96::/64"))

    def run(self, program, packet, mark=0, segment=0, device=None):
        """Give (verdict, mark, counter raised or None); the packet's bytes must have stayed."""
        device = device or (POD_DEVICE if program is Program.MARK_ENCRYPT else UPLINK)
        before = self.maps.counters()
        with inside(self.devices.netns) if self.devices else nullcontext():
            ifindex = self.devices.ifindex[device] if self.devices else 0
            result = bpf.test_run(self.build.path(program), packet, mark, segment=segment, ifindex=ifindex)
        raised = {name: value - before[name] for name, value in self.maps.counters().items() if value != before[name]}
        assert list(raised.values()) in ([], [1])
        assert result.packet == packet
        return result.verdict, result.mark, next(iter(raised), None)


def number(device):
    """Give a device's number in the namespace that the caller lives in."""
    return socket.if_nametoindex(device)

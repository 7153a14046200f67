"""A node's programs and maps under test, filled with one address of each kind."""

from ipaddress import ip_address, ip_network

from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.programs import Settings, ensure_loaded

UNSPEC, SHOT = 0xFFFFFFFF, 2
READY = PodFlags.REMOTE | PodFlags.READY
LOCAL, REMOTE, FAR, STRANGER = "local", "remote", "far", "stranger"
ADDRESSES = {
    4: {LOCAL: "10.244.1.10", REMOTE: "10.244.2.10", FAR: "10.244.3.10", STRANGER: "192.0.2.1"},
    6: {LOCAL: "fd00:1::10", REMOTE: "fd00:2::10", FAR: "fd00:3::10", STRANGER: "2001:db8::1"},
}
OURSELVES = {4: "10.10.0.1", 6: "fd00:10::1"}
PEER = {4: "10.10.0.2", 6: "fd00:10::2"}
SERVICE = {4: "10.96.1.1", 6: "fd00:96::1"}
NODE_MARK = 0x00200100


class NodeUnderTest:
    """LOCAL is managed here; REMOTE on a ready peer; FAR on a node that is not ready; STRANGER is no managed pod."""

    def __init__(self, root, **changes):
        self.root, self.settings = root, Settings(**changes)
        self.build = ensure_loaded(root, self.settings)
        self.maps = Maps(self.build.maps)
        for version, named in ADDRESSES.items():
            self.maps.set_pod(ip_address(named[LOCAL]), PodFlags.LOCAL)
            self.maps.set_pod(ip_address(named[REMOTE]), READY)
            self.maps.set_pod(ip_address(named[FAR]), PodFlags.REMOTE)
            self.maps.set_peer(ip_address(PEER[version]), PeerEntry(5, NODE_MARK, 1, 7))
        self.maps.add_service(ip_network("10.96.0.0/16"))
        self.maps.add_service(ip_network("fd00:96::/64"))

    def run(self, program, packet, mark=0, segment=0):
        """Give (verdict, mark, counter raised or None); the packet's bytes must have stayed."""
        before = self.maps.counters()
        result = bpf.test_run(self.build.path(program), packet, mark, segment=segment)
        raised = {name: value - before[name] for name, value in self.maps.counters().items() if value != before[name]}
        assert list(raised.values()) in ([], [1])
        assert result.packet == packet
        return result.verdict, result.mark, next(iter(raised), None)

"""What BPF_PROG_TEST_RUN cannot make: cut packets, VLAN tags, devices without a link header; sent through devices.

In a network namespace: a veth pair (``out`` sends, ``in`` receives) and a TUN device, whose packets are bare IP.
"""

import errno
import fcntl
import os
import socket
import struct
import time
import uuid
from contextlib import contextmanager

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel import bpf
from tests.bpf.node import ADDRESSES, FAR, LOCAL, OURSELVES, PEER, REMOTE, STRANGER
from tests.bpf.packets import ESP, HEADER_BYTES, IPV4, IPV6, VLAN, ethernet, frame, packet
from tests.lab.network import inside, run

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
VERSIONS = pytest.mark.parametrize("version", [4, 6])
PATIENCE_SECONDS = 5


@pytest.fixture(scope="module")
def wire():
    name = f"kmesh-test-bpf-{uuid.uuid4().hex[:6]}"
    run(f"ip netns add {name}")
    with inside(name):
        # No addresses, no router solicitations: nothing but what the tests send.
        run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
        run("ip link add out type veth peer name in; ip link set out up; ip link set in up")
        yield name
    run(f"ip netns del {name}")


@pytest.fixture
def tun(wire):
    """A TUN device's descriptor: what is written there arrives on the device ``bare``."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"bare", IFF_TUN | IFF_NO_PI))
    run("ip link set bare up")
    yield device
    os.close(device)


@contextmanager
def attached(node, program, device):
    attach_type = bpf.TCX_EGRESS if program.egress else bpf.TCX_INGRESS
    with bpf.opened(node.build.path(program)) as fd:
        link = bpf.check(bpf.create_link(fd, socket.if_nametoindex(device), attach_type), "attach", device)
    try:
        yield
    finally:
        os.close(link)


def transmit(frames):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("out", 0))
        for one in frames:
            try:
                sender.send(one)
            except OSError as error:
                # How the sender learns of a drop on egress; the counters tell whose it was.
                if error.errno != errno.ENOBUFS:
                    raise


def raised(node, before, total):
    """Give the counters raised since, once they are so many in all."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        now = {name: value - before[name] for name, value in node.maps.counters().items() if value != before[name]}
        if sum(now.values()) >= total or time.monotonic() > end:
            return now
        time.sleep(0.01)


def counted_on_veth(node, program, frames, total):
    """Send frames, with the program on the side where it sits on a node; give the counters it raised."""
    before = node.maps.counters()
    with attached(node, program, "out" if program.egress else "in"):
        transmit(frames)
        return raised(node, before, total)


def pair(program, version):
    """Source, destination and counter of a packet that the program acts upon."""
    named = ADDRESSES[version]
    return {
        Program.MARK_ENCRYPT: (named[LOCAL], named[REMOTE], "marked"),
        Program.MARK_DECRYPT: (named[REMOTE], named[LOCAL], "dropped_clear_text"),
        Program.LEAK_GUARD: (named[LOCAL], named[FAR], "dropped_by_guard"),
    }[program]


@VERSIONS
@pytest.mark.parametrize("program", list(Program), ids=lambda program: program.value)
def test_a_packet_cut_anywhere_in_its_header_is_a_parse_failure_and_one_cut_behind_it_is_classified(
    wire, strict, program, version
):
    src, dst, counter = pair(program, version)
    whole = frame(version, src, dst)
    ethernet_bytes, header = 14, HEADER_BYTES[version]
    cut = [whole[: ethernet_bytes + length] for length in range(1, header)]
    assert counted_on_veth(strict, program, cut, len(cut)) == {"parse_failure": len(cut)}
    behind = [whole[: ethernet_bytes + length] for length in range(header, header + 21)]
    assert counted_on_veth(strict, program, behind, len(behind)) == {counter: len(behind)}


@VERSIONS
@pytest.mark.parametrize("program", [Program.MARK_ENCRYPT, Program.MARK_DECRYPT], ids=lambda program: program.value)
def test_a_vlan_tag_hides_nothing(wire, strict, program, version):
    src, dst, counter = pair(program, version)
    tag_and_type = struct.pack("!HH", 5, IPV4 if version == 4 else IPV6)
    tagged = ethernet(VLAN, tag_and_type + packet(version, src, dst))
    assert counted_on_veth(strict, program, [tagged], 1) == {counter: 1}


@VERSIONS
def test_a_device_without_a_link_header_is_served_like_ethernet(wire, tun, strict, version):
    named = ADDRESSES[version]
    with attached(strict, Program.MARK_DECRYPT, "bare"):
        before = strict.maps.counters()
        os.write(tun, packet(version, named[REMOTE], named[LOCAL]))
        os.write(tun, packet(version, PEER[version], OURSELVES[version], ESP))
        os.write(tun, packet(version, named[STRANGER], named[LOCAL]))
        assert raised(strict, before, 2) == {"dropped_clear_text": 1, "esp_known_peer": 1}


@VERSIONS
def test_a_dropped_packet_does_not_reach_the_far_end(wire, strict, version):
    src, dst, _ = pair(Program.LEAK_GUARD, version)
    sentinel = frame(version, ADDRESSES[version][STRANGER], ADDRESSES[version][STRANGER])
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as receiver,
        attached(strict, Program.LEAK_GUARD, "out"),
    ):
        receiver.bind(("in", 0x0003))  # ETH_P_ALL
        receiver.settimeout(PATIENCE_SECONDS)
        transmit([frame(version, src, dst), sentinel])
        assert receiver.recv(2048) == sentinel

# SPDX-License-Identifier: Apache-2.0
"""What BPF_PROG_TEST_RUN cannot make: cut packets, tags, data that is not linear, devices without a link header.

Packets sent through devices, as the kernel hands them on: it puts a VLAN tag aside, and moves the network header.

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
from ipaddress import ip_address

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel import bpf
from tests.bpf.node import ADDRESSES, FAR, LOCAL, OURSELVES, PEER, REMOTE, STRANGER, NodeUnderTest
from tests.bpf.packets import (
    ESP,
    HEADER_BYTES,
    ICMPV6,
    IPV6,
    PROVIDER_VLAN,
    ROUTING,
    TYPES,
    VLAN,
    error,
    ethernet,
    frame,
    packet,
    tagged,
)
from tests.lab.network import inside, run

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
ETHERNET_BYTES = 14
PROGRAMS = pytest.mark.parametrize("program", list(Program), ids=lambda program: program.value)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
PATIENCE_SECONDS = 5


@pytest.fixture(scope="module")
def wire():
    name = f"kmesh-test-bpf-{uuid.uuid4().hex[:6]}"
    run(f"ip netns add {name}")
    with inside(name):
        # No addresses, no router solicitations: nothing but what the tests send.
        run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
        run("ip link add out type veth peer name in; ip link set out mtu 9000 up; ip link set in mtu 9000 up")
        yield name
    run(f"ip netns del {name}")


@pytest.fixture(scope="module")
def strict(roots):
    """One that binds no address to a device, for all tests of this file."""
    return NodeUnderTest(roots / "wire")


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


def transmit(frames, device="out"):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        for one in frames:
            try:
                sender.send(one)
            except OSError as error:
                # How the sender learns of a drop on egress; the counters tell whose it was.
                if error.errno != errno.ENOBUFS:
                    raise


def transmit_in_pages(whole):
    """Send a frame of more than a page so that nothing but its Ethernet header lies in the linear part."""
    nothing_of_gso = struct.pack("=BBHHHH", 0, 0, ETHERNET_BYTES, 0, 0, 0)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.bind(("out", 0))
        try:
            sender.send(nothing_of_gso + whole)
        except OSError as error:
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
        Program.INNER_GUARD: (named[LOCAL], named[FAR], "dropped_by_guard"),
        Program.POD_GUARD: (named[FAR], named[LOCAL], "dropped_clear_text"),
    }[program]


@VERSIONS
@PROGRAMS
def test_a_packet_cut_anywhere_in_its_header_is_a_parse_failure_and_one_cut_behind_it_is_classified(
    wire, strict, program, version
):
    src, dst, counter = pair(program, version)
    whole = frame(version, src, dst)
    header = HEADER_BYTES[version]
    cut = [whole[: ETHERNET_BYTES + length] for length in range(1, header)]
    assert counted_on_veth(strict, program, cut, len(cut)) == {"parse_failure": len(cut)}
    behind = [whole[: ETHERNET_BYTES + length] for length in range(header, header + 21)]
    assert counted_on_veth(strict, program, behind, len(behind)) == {counter: len(behind)}


TAGS = [
    {"vlans": [VLAN]},
    {"vlans": [VLAN, VLAN]},
    {"vlans": [PROVIDER_VLAN, VLAN, VLAN]},
    {"labels": 3},
    {"vlans": [PROVIDER_VLAN, VLAN], "labels": 2},
    {"session": "plain"},
    {"vlans": [VLAN, VLAN], "session": "compressed"},
]
"""The kernel takes the first VLAN off on ingress; on egress a packet socket moves the network header behind them all."""


@VERSIONS
@pytest.mark.parametrize("tags", TAGS, ids=str)
@PROGRAMS
def test_tags_hide_nothing(wire, strict, program, version, tags):
    src, dst, counter = pair(program, version)
    whole = tagged(version, packet(version, src, dst), **tags)
    assert counted_on_veth(strict, program, [whole], 1) == {counter: 1}


@VERSIONS
@PROGRAMS
def test_too_many_tags_are_dropped_where_packets_leave_and_come(wire, strict, program, version):
    frames = [tagged(version, packet(version, *pair(program, version)[:2]), labels=9)]
    frames.append(tagged(version, packet(version, *pair(program, version)[:2]), vlans=[VLAN] * 10))
    assert counted_on_veth(strict, program, frames, 2) == {"parse_failure": 2}


@VERSIONS
@pytest.mark.parametrize("tags", [{}, *TAGS], ids=str)
@PROGRAMS
def test_what_is_not_linear_is_read_all_the_same(wire, strict, program, version, tags):
    """A pod may send so, and drivers of a virtual machine receive so: nothing but the Ethernet header is in reach."""
    src, dst, counter = pair(program, version)
    whole = tagged(version, packet(version, src, dst, payload=bytes(5000)), **tags)
    before = strict.maps.counters()
    with attached(strict, program, "out" if program.egress else "in"):
        transmit_in_pages(whole)
        assert raised(strict, before, 1) == {counter: 1}


@VERSIONS
def test_a_quoted_packet_that_is_not_linear_is_read_all_the_same(wire, strict, version):
    named = ADDRESSES[version]
    quoted = packet(version, named[LOCAL], named[REMOTE], payload=bytes(5000))
    body = error(version, OURSELVES[version], PEER[version], quoted)
    before = strict.maps.counters()
    with attached(strict, Program.LEAK_GUARD, "out"):
        transmit_in_pages(ethernet(TYPES[version], body))
        assert raised(strict, before, 1) == {"dropped_by_guard": 1}


def test_the_longest_extension_headers_are_stepped_over_where_nothing_is_linear(wire, strict):
    named = ADDRESSES[6]
    quoted = packet(6, named[LOCAL], named[REMOTE], payload=bytes(64))
    icmp = error(6, OURSELVES[6], PEER[6], quoted)[HEADER_BYTES[6] :]
    longest = bytes([ROUTING, 255]) + bytes(2046), bytes([ICMPV6, 255]) + bytes(2046)
    whole = packet(6, OURSELVES[6], PEER[6], ROUTING, payload=b"".join(longest) + icmp)
    before = strict.maps.counters()
    with attached(strict, Program.LEAK_GUARD, "out"):
        transmit_in_pages(ethernet(IPV6, whole))
        assert raised(strict, before, 1) == {"dropped_by_guard": 1}


@VERSIONS
@pytest.mark.parametrize("sent", ["out", "in"])
def test_a_pod_s_address_is_known_by_the_device_that_packets_come_by(wire, strict, version, sent):
    """Of the pair, ``in`` is the device that the address is bound to."""
    named, own = ADDRESSES[version], socket.if_nametoindex("in")
    received = "in" if sent == "out" else "out"
    strict.maps.set_source(ip_address(named[LOCAL]), own)
    try:
        before = strict.maps.counters()
        with attached(strict, Program.MARK_ENCRYPT, received):
            transmit([frame(version, named[LOCAL], named[REMOTE])], sent)
            expected = "marked" if received == "in" else "dropped_spoofed"
            assert raised(strict, before, 1) == {expected: 1}
    finally:
        strict.maps.delete_source(ip_address(named[LOCAL]))


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

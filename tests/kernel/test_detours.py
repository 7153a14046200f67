# SPDX-License-Identifier: Apache-2.0
"""What others have TC, nftables, routes and XDP do with packets is found where it is, and no more once it has gone."""

import os
import struct

import pytest

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.kernel import detours
from kmesh_bpf.kernel.detours import Detours
from kmesh_bpf.kernel.links import Links, LinkWatcher
from kmesh_bpf.kernel.rules import SOON, Rules
from tests.kernel import tiny_bpf
from tests.kernel.device import links
from tests.lab.network import run

PAIR = "ip link add pod0 type veth peer name other; ip link set pod0 up; ip link set other up"
TO_OTHER = "u32 match u32 0 0 action mirred egress redirect dev other"


def test_redirecting_filters_are_found_in_every_place_that_takes_filters(netns):
    run(f"{PAIR}; tc qdisc add dev pod0 clsact; tc qdisc add dev other ingress")
    run(f"tc filter add dev pod0 ingress pref 7 protocol ip {TO_OTHER}")
    run("tc filter add dev pod0 egress pref 8 protocol ip u32 match u32 0 0 action mirred egress mirror dev other")
    run(f"tc filter add dev pod0 egress pref 9 protocol all {TO_OTHER}")
    run(f"tc filter add dev other ingress pref 3 protocol ip {TO_OTHER}")
    found = Detours().found(links())
    assert {(one.where, one.words, one.to, one.undo) for one in found} == {
        (f"tc filter on {device}, {way}, priority {priority}", "it redirects packets to other (mirred)", "other", undo)
        for device, way, priority, undo in (
            ("pod0", "ingress", 7, "tc filter del dev pod0 ingress pref 7"),
            ("pod0", "egress", 9, "tc filter del dev pod0 egress pref 9"),
            ("other", "ingress", 3, "tc filter del dev other ingress pref 3"),
        )
    }


def test_they_are_read_again_soon_and_no_more_once_they_have_gone(netns):
    now = [0.0]
    one = Detours(lambda: now[0])
    run(f"{PAIR}; tc qdisc add dev pod0 clsact; tc filter add dev pod0 ingress pref 7 protocol ip {TO_OTHER}")
    devices = links()
    assert len(one.found(devices)) == 1
    run("tc filter del dev pod0 ingress pref 7")
    assert len(one.found(devices)) == 1
    now[0] += SOON
    assert one.found(devices) == ()
    run(f"tc filter add dev pod0 ingress pref 7 protocol ip {TO_OTHER}")
    assert one.found(devices) == ()
    one.tell()
    assert len(one.found(devices)) == 1


def test_a_filter_that_comes_or_goes_is_told_unless_it_is_a_bpf_program(netns):
    run(f"{PAIR}; tc qdisc add dev pod0 clsact")
    with LinkWatcher() as watcher:
        run("tc filter add dev pod0 ingress pref 6 bpf bytecode '1,6 0 0 4294967295,' da")
        assert (watcher.drain(), watcher.take_others()) == (False, False)
        for command in (f"add dev pod0 ingress pref 7 protocol ip {TO_OTHER}", "del dev pod0 ingress pref 7"):
            run(f"tc filter {command}")
            assert (watcher.drain(), watcher.take_others(), watcher.take_others()) == (True, True, False)


def options(**parts):
    return {getattr(lib, name): value for name, value in parts.items()}


def mirred(action):
    return bytes(ffi.buffer(ffi.new("struct tc_mirred *", {"eaction": action, "ifindex": 9})))


def u32(number):
    return struct.pack("=I", number)


REDIRECT = ("it redirects packets", 9, 0)
MARKS = "it sets packets' marks (skbedit)"


@pytest.mark.parametrize(
    ("kind", "given", "what"),
    [
        ("mirred", options(TCA_MIRRED_PARMS=mirred(lib.TCA_EGRESS_REDIR)), REDIRECT),
        ("mirred", options(TCA_MIRRED_PARMS=mirred(lib.TCA_INGRESS_REDIR)), REDIRECT),
        ("mirred", options(TCA_MIRRED_PARMS=mirred(2)), None),  # TCA_EGRESS_MIRROR: a copy
        ("mirred", {}, None),
        ("skbedit", options(TCA_SKBEDIT_MARK=u32(0)), (MARKS, 0, 0xFFFFFFFF)),
        ("skbedit", options(TCA_SKBEDIT_MARK=u32(1), TCA_SKBEDIT_MASK=u32(3)), (MARKS, 0, 3)),
        ("skbedit", {3: u32(1)}, None),  # a priority
        (
            "ct",
            options(TCA_CT_ACTION=struct.pack("=H", 1 | lib.TCA_CT_ACT_NAT)),
            ("it changes packets' addresses (ct nat)", 0, 0),
        ),
        ("ct", options(TCA_CT_ACTION=struct.pack("=H", 1)), None),
        ("nat", {}, ("it changes packets' addresses (nat)", 0, 0)),
        ("pedit", {}, ("it changes packets (pedit)", 0, 0)),
        ("connmark", {}, ("it sets packets' marks (connmark)", 0, 0xFFFFFFFF)),
        ("gact", {}, None),
    ],
)
def test_what_an_action_does(kind, given, what):
    """By its bytes: this kernel may lack most of the actions; tests/e2e has some."""
    assert detours._what(kind, given) == what


@pytest.mark.parametrize("version", [4, 6])
def test_a_rule_of_routing_that_comes_or_goes_is_told(netns, version):
    with LinkWatcher() as watcher:
        for verb in ("add", "del"):
            run(f"ip -{version} rule {verb} pref 100 fwmark 0x80/0x80 lookup 100")
            assert (watcher.drain(), watcher.take_others()) == (True, True)


def test_rules_in_chains_of_devices_are_found(netns):
    run(PAIR)
    run(
        "nft -f -",
        "table netdev theirs {\n"
        "chain in { type filter hook ingress device pod0 priority 0; ip daddr 10.244.2.10 fwd to other; }\n"
        "chain out { type filter hook egress devices = { pod0, other } priority 0; meta mark set 0; }\n}\n",
    )
    rules = Rules()
    assert {(one.device, one.to, one.lost) for one in rules.detours()} == {
        ("pod0", "other", 0),
        ("pod0", "", 0xF0),
        ("other", "", 0xF0),
    }
    assert rules.suspects() == ()


def test_rules_of_routing_by_our_marks_are_found_but_those_that_end_in_the_usual_tables(netns):
    run("ip rule add pref 100 fwmark 0xe0/0xff lookup 100; ip -6 rule add pref 101 fwmark 0x80/0x80 lookup 100")
    run("ip rule add pref 102 not fwmark 0x80/0x80 blackhole; ip rule add pref 103 fwmark 0x80/0x80 lookup main")
    run("ip rule add pref 104 not fwmark 0xca6c lookup 100; ip rule add pref 105 fwmark 0x200/0xf00 lookup 100")
    assert {(one.where, one.lost) for one in Detours().found(())} == {
        ("ip -4 rule 100", 0xFF),
        ("ip -6 rule 101", 0x80),
        ("ip -4 rule 102", 0x80),
    }


def test_a_route_that_wraps_packets_is_found_as_soon_as_it_comes(netns):
    run(PAIR)
    cached = Links()
    try:
        cached.list()
        assert cached.detours == ()
        run("ip -6 route add fd00:244:2::/64 dev pod0")
        cached.watcher.drain()
        cached.list()
        run("ip -6 route add fd00:244:3::/64 encap seg6 mode encap segs fd00:55::2 dev pod0")
        assert cached.watcher.drain()
        cached.list()
        (found,) = cached.detours
        assert (found.where, found.words) == ("route to fd00:244:3::/64", "it wraps packets (encap seg6)")
        for change in (
            found.undo,
            "ip -6 route replace fd00:244:3::/64 encap seg6 mode encap segs fd00:55::2 dev pod0",
        ):
            run(change)
            assert cached.watcher.drain()
            cached.list()
            assert bool(cached.detours) is (change != found.undo)
        run("ip -6 route replace fd00:244:3::/64 dev pod0")
        assert cached.watcher.drain()
        cached.list()
        assert cached.detours == ()
    finally:
        cached.close()


def test_an_xdp_program_is_seen_on_its_device(netns, pin_root):
    run(PAIR)
    assert {link.name for link in links() if link.xdp} == set()
    descriptor = tiny_bpf.load_passing_xdp()
    tiny_bpf.pin(descriptor, pin_root / "passing")
    os.close(descriptor)
    run(f"ip link set dev pod0 xdpgeneric pinned {pin_root / 'passing'}")
    assert {link.name for link in links() if link.xdp} == {"pod0"}

# SPDX-License-Identifier: Apache-2.0
"""What others do with packets behind our programs: on which devices it is named, and how."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kmesh_bpf.core.detours import devices_of_nft, judge, of_nft, of_rule
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.problems import ProblemKind
from kmesh_bpf.core.state import Detour, KernelState, Link, Observation
from tests.unit.core import mesh

BITS = 0xFFF01FFF
ADDRESS = ip_address("10.244.2.10")
ETH0 = Link(2, "eth0", "", False, (ip_address("10.10.0.1"),), leads_out=True)
MANAGED = Link(3, "pod0", "veth", True, (), far_addresses=(ip_address("10.244.1.10"),))
OTHER = Link(4, "pod1", "veth", True, (), far_addresses=(ip_address("10.244.1.11"),))
IFB = Link(5, "ifb0", "ifb", False, ())
LINKS = (ETH0, MANAGED, OTHER, IFB)


def detour(device="pod0", **more):
    return Detour(f"tc filter on {device}", "it redirects packets", f"tc filter del dev {device}", device, **more)


def told(*detours, links=LINKS, elsewhere=(ADDRESS,)):
    found = list(judge(detours, links, {MANAGED.ifindex}, elsewhere, BITS))
    assert {one.kind for one in found} <= {ProblemKind.INTERFERENCE}
    return [one.sentence for one in found]


def test_it_is_named_with_its_place_the_consequence_and_the_way_out():
    assert told(detour(to="eth0")) == [
        "tc filter on pod0: it redirects packets; what is to be encrypted, or was decrypted, is lost by it: "
        "tc filter del dev pod0"
    ]


@pytest.mark.parametrize(
    ("device", "links", "named"),
    [
        ("pod0", LINKS, True),
        ("pod1", LINKS, False),  # of a pod that is not managed
        ("eth0", LINKS, True),
        ("ifb0", LINKS, False),
        ("gone", LINKS, False),
        ("eth1", (*LINKS, Link(6, "eth1", "", False, (), master=2)), True),  # of a bond that leads out
        ("eth1", (*LINKS, Link(6, "eth1", "", False, (), master=5)), False),
        (
            "eth1",
            (*LINKS, Link(6, "eth1", "", False, ()), Link(7, "v", "vlan", False, (), leads_out=True, lower=6)),
            True,
        ),
    ],
)
def test_only_devices_that_our_packets_take_count(device, links, named):
    assert bool(told(detour(device, to="eth0"), links=links)) is named


def test_what_an_ifb_hands_back_is_no_detour():
    assert told(detour(to="ifb0"), detour("eth0", to="ifb0")) == []


@pytest.mark.parametrize(("lost", "named"), [(0xFFFFFFFF, True), (0x80, True), (0x100, True), (0xF0000, False)])
def test_other_bits_of_marks_are_theirs(lost, named):
    assert bool(told(detour(lost=lost))) is named


def test_a_route_that_wraps_counts_if_a_managed_pod_of_another_node_lies_behind_it():
    def route(network):
        destination = ip_network(network)
        return Detour(
            f"route to {destination}", "it wraps packets (encap seg6)", "ip route del", destination=destination
        )

    assert len(told(route("10.244.2.0/24"))) == len(told(route("0.0.0.0/0"))) == 1
    assert told(route("10.244.3.0/24")) == told(route("::/0")) == told(route("0.0.0.0/0"), elsewhere=()) == []


def test_an_xdp_program_is_named_on_the_device_of_a_managed_pod_only():
    def with_xdp(link):
        return Link(link.ifindex, link.name, link.kind, link.peer_elsewhere, (), leads_out=link.leads_out, xdp=True)

    (sentence,) = told(links=tuple(map(with_xdp, LINKS)))
    assert sentence.startswith("XDP program on pod0: ")
    assert sentence.endswith("ip link set dev pod0 xdp off")


def test_a_plan_names_detours_xdp_and_addresses_of_pods_on_devices():
    route = Detour(
        "route to ::/0", "it wraps packets (encap seg6)", "ip -6 route del ::/0", destination=ip_network("::/0")
    )
    lo = replace(mesh.LINKS[0], addresses=(mesh.pod(2).addresses[0], mesh.pod(1).addresses[1]))
    links = (lo, mesh.LINKS[1], replace(mesh.LINKS[2], xdp=True))
    observed = Observation(KernelState(), links=links, detours=(detour(to="eth0"), route))
    found = [problem.sentence for problem in make_plan(mesh.view(), observed, Options(), 1000.0).problems]
    for words in ("tc filter on pod0", "route to ::/0", "XDP program on pod0", "carries 10.244.2.10", "on n1"):
        assert any(words in one for one in found), words


@pytest.mark.parametrize(
    ("mark", "mask", "inverted", "lost"),
    [
        (0xE0, 0xFF, False, 0xFF),
        (0x80, 0x80, False, 0x80),
        (0x80, 0x80, True, 0x80),
        (0xD0, 0xFFFFFFFF, False, 0xFF),
        (0, 0x40, False, 0x40),  # all but ours
        (0xCA6C, 0xFFFFFFFF, True, None),  # wg-quick's: all but its own
        (0x80000, 0xFF0000, False, None),
        (0, 0, False, None),  # no mark is asked for
        (1, 0xFF, False, None),
    ],
)
def test_rules_of_routing_that_tell_our_marks_from_none(mark, mask, inverted, lost):
    found = of_rule(100, mark, mask, 4, inverted=inverted)
    assert (found and found.lost) == lost


def test_a_rule_of_routing_is_named_unless_its_bits_are_left_out_of_ours():
    rule = of_rule(100, 0x80, 0x80, 4, inverted=False)
    assert told(rule) == [
        "ip -4 rule 100: it chooses a routing table by fwmark 0x80/0x80; what is to be encrypted, or was decrypted, "
        "goes by it and may be lost: ip -4 rule del pref 100, or --mark-mask without these bits"
    ]
    assert list(judge([rule], LINKS, set(), (), 0x7F)) == []


def listing(*expressions):
    rule = {"family": "netdev", "table": "t", "chain": "c", "handle": 2, "expr": list(expressions)}
    return {"nftables": [{"chain": {"family": "netdev", "table": "t", "name": "c"}}, {"rule": rule}]}


MARK = {"meta": {"key": "mark"}}
MATCH = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "1.2.3.4"}}


@pytest.mark.parametrize(
    ("expressions", "words", "to", "lost"),
    [
        ([MATCH, {"fwd": {"dev": "eth0"}}], "it sends packets on to eth0 (fwd)", "eth0", 0),
        ([{"mangle": {"key": MARK, "value": 0}}], "it sets packets' marks (meta mark set)", "", 0xF0),
        (
            [{"mangle": {"key": {"payload": {"protocol": "ip", "field": "daddr"}}, "value": "10.1.1.1"}}],
            "it changes packets' addresses (set)",
            "",
            0,
        ),
    ],
)
def test_rules_of_a_device_s_chain_in_nft_s_words(expressions, words, to, lost):
    (found,) = of_nft(listing(*expressions), ["pod0"])
    assert (found.words, found.device, found.to, found.lost) == (words, "pod0", to, lost)
    assert found.where == "nft table netdev t, chain c, handle 2, on pod0"
    assert found.undo == "nft delete rule netdev t c handle 2"


@pytest.mark.parametrize(
    "expressions",
    [
        [{"dup": {"addr": "eth0"}}],  # the packet itself goes its way
        [MATCH, {"accept": None}],
        [{"mangle": {"key": MARK, "value": {"|": [MARK, 0x4000]}}}],
        [{"mangle": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "value": 5}}],
    ],
)
def test_what_changes_neither_way_nor_address_nor_our_bits_is_none(expressions):
    assert list(of_nft(listing(*expressions), ["pod0"])) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('type filter hook ingress device "vp1a" priority filter; policy accept;', ("vp1a",)),
        ("type filter hook egress devices = { vp1a, eth0.5 } priority 0;", ("vp1a", "eth0.5")),
        ('type filter hook ingress devices = { "a" } priority 0;', ("a",)),
        ("type filter hook prerouting priority raw;", ()),
    ],
)
def test_the_devices_of_a_chain(text, names):
    assert devices_of_nft(f"table netdev t {{\n\tchain c {{\n\t\t{text}\n\t}}\n}}\n") == names

# SPDX-License-Identifier: Apache-2.0
"""Rules as nft 1.0.6 and iptables-save 1.8.9 tell of them, and which of them are in the way."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kmesh_bpf.core.interference import holds_xt, judge, jumps, suspects_of_iptables, suspects_of_nft
from kmesh_bpf.core.problems import ProblemKind
from kmesh_bpf.core.state import Link

MARK, CONNECTION = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}
ETH0 = Link(2, "eth0", "", False, (ip_address("10.10.0.1"),), leads_out=True)
OVERLAY = Link(5, "flannel.1", "vxlan", False, (), leads_out=True)
NODE = [ip_address("10.10.0.1")]


def listing(*expressions, family="inet"):
    rule = {"family": family, "table": "fw", "chain": "pre", "handle": 7, "expr": list(expressions)}
    chain = {"family": family, "table": "fw", "name": "pre", "type": "filter", "hook": "prerouting", "prio": -150}
    return {"nftables": [{"metainfo": {"version": "1.0.6"}}, {"chain": chain}, {"rule": rule}]}


def match(left, right, op="=="):
    return {"match": {"op": op, "left": left, "right": right}}


def fib(*flags, right=False):
    return match({"fib": {"result": "oif", "flags": list(flags)}}, right)


def setting(value):
    return {"mangle": {"key": MARK, "value": value}}


DROP = {"drop": None}
FIREWALLD = (match({"meta": {"key": "nfproto"}}, "ipv6"), fib("saddr", "mark", "iif"), DROP)


def told(suspects, links=(ETH0, OVERLAY), nodes=NODE, mask=0xFF):
    return [str(one) for one in judge(suspects, links, nodes, mask)]


@pytest.mark.parametrize(
    "rule",
    [
        (fib("saddr", "mark", "iif"), DROP),
        (fib("saddr", "iif", right="0"), {"counter": {"packets": 0, "bytes": 0}}, DROP),
        (match({"meta": {"key": "iifname"}}, "eth0"), fib("saddr", "iif"), {"log": None}, DROP),
    ],
)
def test_a_reverse_path_filter_is_told_with_its_place_the_overlay_and_the_way_out(rule):
    (problem,) = told(suspects_of_nft(listing(*rule)))
    assert problem.startswith("nft table inet fw, chain pre, handle 7: a reverse path filter")
    assert "flannel.1" in problem
    assert "loosen it" in problem


def test_it_is_none_where_the_way_back_leads_by_the_same_device():
    suspects = suspects_of_nft(listing(fib("saddr", "iif"), DROP))
    assert told(suspects, links=(ETH0,)) == []
    assert told(suspects, links=(ETH0, replace(OVERLAY, leads_out=False))) == []


@pytest.mark.parametrize(
    "rule", [(fib("saddr"), DROP), (fib("saddr", "iif"),), (fib("saddr", "iif", right=True), DROP)]
)
def test_a_loose_filter_and_one_that_drops_nothing_are_none(rule):
    assert suspects_of_nft(listing(*rule)) == []


def test_a_rule_about_a_family_that_the_node_has_not_is_none():
    suspects = suspects_of_nft(listing(*FIREWALLD))
    assert told(suspects) == []
    assert len(told(suspects, nodes=[ip_address("fd00::1")])) == 1
    assert told(suspects_of_nft(listing(fib("saddr", "iif"), DROP, family="ip6"))) == []


@pytest.mark.parametrize(
    ("rule", "lost"),
    [
        ((setting(CONNECTION),), 0xFF),
        ((setting({"&": [CONNECTION, 0x80]}),), 0xF0),
        ((setting({"|": [{"&": [MARK, 0xFFFFFF7F]}, {"&": [CONNECTION, 0x80]}]}),), 0x80),
        ((match(CONNECTION, 0, "!="), setting(CONNECTION)), 0x3F),
        ((match(MARK, 0), setting(CONNECTION)), 0),
        ((match({"&": [MARK, 0xF0]}, 0), setting(CONNECTION)), 0),
        ((match({"&": [MARK, 0xF0]}, 0xD0), setting(CONNECTION)), 0xFF),
        ((setting({"|": [{"&": [MARK, 0xFFF0FFFF]}, {"&": [CONNECTION, 0xF0000]}]}),), 0),
        ((setting({"|": [MARK, 0x4000]}),), 0),
        (({"mangle": {"key": CONNECTION, "value": MARK}},), 0),
        ((setting(0),), 0xF0),
        ((match({"meta": {"key": "iifname"}}, "veth7"), {"counter": {}}, setting({"|": [MARK, 1]})), 0x01),
        ((match(MARK, 0), setting(1)), 0),
        ((match({"payload": {"protocol": "ip", "field": "saddr"}}, "192.0.2.1"), setting(1)), 0),
    ],
)
def test_which_bits_of_our_marks_a_rule_takes_away(rule, lost):
    found = suspects_of_nft(listing(*rule))
    assert [one.lost for one in found] == ([lost] if lost else [])


def test_a_bit_that_we_can_do_without_is_told_with_the_flag_that_leaves_it_out():
    suspects = suspects_of_nft(listing(setting({"|": [{"&": [MARK, 0xFFFFFF7F]}, {"&": [CONNECTION, 0x80]}]})))
    (problem,) = told(suspects)
    assert "--mark-mask=0x7f" in problem
    assert told(suspects, mask=0x7F) == []


def test_bits_that_we_cannot_do_without_are_told_with_the_mask_that_the_rule_should_have():
    (problem,) = told(suspects_of_nft(listing(setting(CONNECTION))))
    assert "--mark-mask" not in problem
    assert "0xffffff00" in problem


AWS = '-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80'
SAVED = "# Generated\n*mangle\n:PREROUTING ACCEPT [0:0]\n:mine - [0:0]\n:KUBE-X - [0:0]\n{}\nCOMMIT\n"


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        (AWS, 0x80),
        ("-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", 0xFF),
        ("-A PREROUTING -j CONNMARK --restore-mark --mask 0xf0000", 0),
        ("-A PREROUTING -m mark --mark 0x0/0xff -j CONNMARK --restore-mark", 0),
        ("-A PREROUTING -m mark ! --mark 0x0/0xff -j CONNMARK --restore-mark", 0xFF),
        ("-A PREROUTING -m connmark ! --mark 0x0 -j CONNMARK --restore-mark", 0xFF),
        ("-A PREROUTING -j CONNMARK --save-mark --nfmask 0x80 --ctmask 0x80", 0),
        ("-A PREROUTING -j mine\n-A mine -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", 0x80),
        ("-A mine -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", 0),
        ("-A OUTPUT -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", 0),
        ("-A PREROUTING -j MARK --set-xmark 0x0/0x80", 0x80),
        ("-A PREROUTING -i veth+ -m comment --comment all -j MARK --set-xmark 0x1/0xffffffff", 0xF1),
        ("-A PREROUTING -j MARK --set-xmark 0x4000/0x4000", 0),
        ("-A PREROUTING -s 192.0.2.1/32 -j MARK --set-xmark 0x1/0xffffffff", 0),
        ("-A PREROUTING -m mark --mark 0x0/0xff -j MARK --set-xmark 0x1/0xff", 0),
        ("-A PREROUTING -s 192.0.2.1/32 -j mine\n-A mine -j MARK --set-xmark 0x1/0xffffffff", 0),
        ("-A PREROUTING -j KUBE-X\n-A KUBE-X -j CONNMARK --restore-mark", 0),
    ],
)
def test_which_bits_a_rule_of_iptables_takes_away(line, lost):
    found = suspects_of_iptables(SAVED.format(line), "ip", "mangle")
    assert [one.lost for one in found] == ([lost] if lost else [])


def test_the_rule_of_aws_is_told_as_it_was_written_with_its_way_out():
    (suspect,) = suspects_of_iptables(SAVED.format(AWS), "ip", "mangle")
    assert list(judge([suspect], (ETH0,), NODE, 0xFF)) == [], "no device is called so"
    (problem,) = judge([suspect], (ETH0, Link(7, "eni5f3", "veth", True, ())), NODE, 0xFF)
    assert problem.kind is ProblemKind.INTERFERENCE
    assert "iptables (ip) table mangle, chain PREROUTING: -i eni+" in str(problem)
    assert "--mark-mask=0x7f" in str(problem)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("-A PREROUTING -m rpfilter --validmark --invert -j DROP", 1),
        ("-A PREROUTING -m rpfilter --loose --invert -j DROP", 0),
        ("-A PREROUTING -m rpfilter -j ACCEPT", 0),
    ],
)
def test_iptables_reverse_path_filter(line, found):
    assert len(told(suspects_of_iptables(SAVED.format(line), "ip", "raw"))) == found


def test_a_chain_tells_where_it_leads_on_to_and_whether_nft_understands_it():
    chain = listing(
        {"jump": {"target": "more"}}, {"goto": {"target": "cali-PREROUTING"}}, {"jump": {"target": "KUBE-X"}}
    )
    assert jumps(chain) == {"more", "cali-PREROUTING"}
    assert not holds_xt(chain)
    assert holds_xt(listing({"xt": {"type": "target", "name": "CONNMARK"}}))
    assert jumps({"nftables": []}) == frozenset()


@pytest.mark.parametrize(
    ("device", "found"),
    [("eth0", 1), ("eth*", 1), ({"set": ["docker0", "eth0"]}, 1), ("docker0", 0), ("flannel.1", 0)],
    ids=str,
)
def test_a_filter_of_other_devices_than_those_that_esp_comes_by_is_none(device, found):
    suspects = suspects_of_nft(listing(match({"meta": {"key": "iifname"}}, device), fib("saddr", "iif"), DROP))
    assert len(told(suspects)) == found
    but = suspects_of_nft(listing(match({"meta": {"key": "iifname"}}, "docker0", "!="), fib("saddr", "iif"), DROP))
    assert len(told(but)) == 1

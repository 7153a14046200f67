# SPDX-License-Identifier: Apache-2.0
"""Routing rules that drop packets of ours: named, and others left alone."""

from ipaddress import ip_address, ip_network

import pytest

from kmesh_bpf.core import detours, interference
from kmesh_bpf.core.detours import of_rule
from kmesh_bpf.core.fib_rules import FibRule, by_address, removal, suspects
from kmesh_bpf.core.problems import ProblemKind
from tests.unit.core import mesh

HERE = mesh.node(1).addresses
POD, OTHER = ip_address("10.244.2.10"), ip_network("192.0.2.0/24")


def told(*rules: FibRule) -> list[str]:
    return [one.sentence for one in interference.judge(suspects(rules), mesh.LINKS, HERE, 0xFF)]


@pytest.mark.parametrize("action", ["blackhole", "unreachable", "prohibit"])
@pytest.mark.parametrize(("mark", "mask"), [(0, 0), (0, 0x1), (0, 0xF00)])
def test_a_rule_that_drops_what_carries_our_marks_and_what_does_not_is_named_with_the_way_out(action, mark, mask):
    rule = FibRule(4, 99, action, mark, mask)
    (sentence,) = told(rule)
    assert sentence == f"{rule}: what is to be encrypted, or was decrypted, is dropped; {removal(rule)}"
    assert removal(rule).startswith("ip rule del priority 99")


def test_one_that_tells_our_marks_from_none_is_a_detour_and_not_named_twice():
    rule = FibRule(4, 99, "blackhole", 0xD0, 0xFF)
    assert told(rule) == []
    detour = of_rule(99, 0xD0, 0xFF, 4, inverted=False)
    assert [one.kind for one in detours.judge([detour], mesh.LINKS, (), (), 0xFF)] == [ProblemKind.INTERFERENCE]


@pytest.mark.parametrize(
    "rule",
    [
        FibRule(4, 99, "lookup"),
        FibRule(4, 99, "blackhole", 0x5, 0xFF),
        FibRule(4, 99, "blackhole", 0x100, 0xF00),
        FibRule(4, 99, "blackhole", 0xC0, 0xFF),
        FibRule(4, 99, "blackhole", src=OTHER),
        FibRule(4, 99, "blackhole", dst=OTHER),
        FibRule(4, 99, "blackhole", inverted=True),
        FibRule(4, 99, "blackhole", device="gone0"),
    ],
    ids=str,
)
def test_any_other_rule_is_not(rule):
    assert told(rule) == []


def test_by_the_device_that_packets_come_by_it_matters():
    name = next(link.name for link in mesh.LINKS if link.leads_out)
    assert len(told(FibRule(4, 99, "blackhole", device=name))) == 1


def test_a_rule_for_whatever_lacks_another_mark_is_for_ours():
    (sentence,) = told(FibRule(4, 99, "prohibit", 0x5, 0xFF, inverted=True))
    assert "ip rule del priority 99 not fwmark 0x5/0xff" in sentence


def test_of_an_ip_version_that_the_node_has_not_nothing_is_said():
    four = [one for one in HERE if one.version == 4]
    rules = suspects([FibRule(6, 9, "blackhole")])
    assert list(interference.judge(rules, mesh.LINKS, four, 0xFF)) == []
    assert "ip -6 rule del priority 9" in told(FibRule(6, 9, "blackhole"))[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dst": ip_network("10.244.0.0/16")}, True),
        ({"src": ip_network("10.244.2.10/32")}, True),
        ({"src": ip_network("10.244.0.0/16"), "dst": OTHER}, False),
        ({"dst": OTHER}, False),
        ({"dst": ip_network("10.244.0.0/16"), "mark": 0x5, "mask": 0xFF}, False),
        ({"dst": ip_network("10.244.0.0/16"), "inverted": True}, False),
        ({}, False),
    ],
)
def test_a_rule_that_drops_by_an_address_matters_if_it_is_a_managed_pod_s(changes, named):
    rule = FibRule(4, 5, "blackhole", **changes)
    assert (list(by_address([rule], [POD])) == [rule]) is named
    assert list(by_address([FibRule(4, 5, "lookup", **changes)], [POD])) == []

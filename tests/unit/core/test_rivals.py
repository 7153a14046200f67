# SPDX-License-Identifier: Apache-2.0
"""Policies of others that come before ours, and defaults that drop, are named if they are in our way."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core import rivals
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.policies import to_encrypt, was_decrypted
from kmesh_bpf.core.problems import ProblemKind
from kmesh_bpf.core.state import Direction, KernelState, Mark, Observation, Rival
from tests.unit.core import mesh

ANY, POD, ELSEWHERE = map(ip_network, ("0.0.0.0/0", "10.244.2.10/32", "192.0.2.0/24"))
MANAGED = (ip_address("10.244.2.10"), ip_address("fd00:244:2::a"))
ALL, MASK = Mark(0, 0), 0xFF


def told(direction, src, dst, mark=ALL):
    return [str(one) for one in rivals.judge([Rival(direction, src, dst, mark, 1)], (), MANAGED, MASK)]


@pytest.mark.parametrize("pods", [POD, ANY, ip_network("10.0.0.0/8"), ip_network("fd00::/16")])
def test_what_selects_a_managed_pod_elsewhere_is_named_with_the_way_out(pods):
    (sentence,) = told(Direction.OUT, ANY, pods)
    assert f"out {ANY} -> {pods} of priority 1 is not ours and comes before ours" in sentence
    assert "is not encrypted, and dropped" in sentence
    for direction in (Direction.IN, Direction.FWD):
        (sentence,) = told(direction, pods, ANY)
        assert "taken from whoever sent it" in sentence


def test_what_selects_no_managed_pod_elsewhere_is_nobody_s_business():
    assert told(Direction.OUT, POD, ELSEWHERE) == []
    assert told(Direction.FWD, ELSEWHERE, POD) == []


def test_of_many_a_few_are_named_and_the_others_counted():
    many = [Rival(direction, ANY, ANY, ALL, number) for direction in Direction for number in range(9, 100)]
    out, taken = map(str, rivals.judge(many, (), MANAGED, MASK))
    assert "0.0.0.0/0 and 88 more of priority 9 is" in out
    assert "0.0.0.0/0 and 179 more of priority 9 is" in taken


@pytest.mark.parametrize(
    ("mark", "out", "decrypted"),
    [
        (Mark(0xE0, 0xFF), True, False),
        (Mark(0xD0, 0xFF), False, True),
        (Mark(0xF0, 0xFF), True, True),
        (Mark(0x1, 0xFF), False, False),
        (Mark(0x10000, 0x10000), True, True),
        (Mark(0x20, 0x20), True, True),
    ],
)
def test_a_mark_that_none_of_our_packets_has_keeps_it_out_of_the_way(mark, out, decrypted):
    assert bool(told(Direction.OUT, ANY, ANY, mark)) is out
    assert bool(told(Direction.FWD, ANY, ANY, mark)) is decrypted


@given(st.integers(0, MASK), st.integers(0, MASK))
def test_marks_meet_where_a_packet_has_both(value, mask):
    mark = Mark(value & mask, mask)
    for direction, ours in ((Direction.OUT, to_encrypt(MASK)), (Direction.IN, was_decrypted(MASK))):
        both = any(bits & mask == mark.value and bits & ours.mask == ours.value for bits in range(MASK + 1))
        assert bool(told(direction, ANY, ANY, mark)) is both


def test_defaults_that_drop_are_named_with_the_command_that_ends_it():
    (problem,) = rivals.judge((), frozenset({Direction.FWD, Direction.IN}), MANAGED, MASK)
    assert str(problem).endswith("ip xfrm policy setdefault fwd accept in accept")
    assert list(rivals.judge((), frozenset(), MANAGED, MASK)) == []


def test_a_node_where_one_is_in_the_way_has_a_problem_as_long_as_it_is():
    rival = Rival(Direction.OUT, ANY, POD, ALL, 1)
    found = make_plan(mesh.view(), Observation(KernelState(), rivals=(rival,)), Options(), 1000.0)
    assert [one.kind for one in found.problems] == [ProblemKind.INTERFERENCE]
    refusing = Observation(KernelState(), refusing=frozenset({Direction.FWD}))
    assert [one.kind for one in make_plan(mesh.view(), refusing, Options(), 1000.0).problems] == [
        ProblemKind.INTERFERENCE
    ]
    assert make_plan(mesh.view(), Observation(KernelState()), Options(), 1000.0).problems == ()

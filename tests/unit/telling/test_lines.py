# SPDX-License-Identifier: Apache-2.0
"""What the log says of a pass's operations, and of what is wrong."""

import logging
from dataclasses import replace
from ipaddress import ip_address
from typing import get_args

import pytest
from kmesh.telling.lines import KINDS, MOST, NOUNS, counted, milliseconds, news

from kmesh_bpf import Operation
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.state import PodFlags
from tests.unit.cluster import kube
from tests.unit.core import mesh


def pods(number):
    return [ops.SetPod(ip_address(0x0A000000 + one), PodFlags.REMOTE) for one in range(number)]


def test_what_was_carried_out_is_told_in_numbers_by_kind():
    gone = [ops.DeletePod(ip_address("10.1.0.1")), ops.RemoveNatExemption()]
    assert counted([*pods(340), ops.AddPodDevice(3), *gone]) == (
        "340 pods, 1 pod device; removed: 1 pod, 1 NAT exemption"
    )
    assert counted(pods(1)) == "1 pod"
    assert counted(gone) == "removed: 1 pod, 1 NAT exemption"
    assert counted([]) == ""


def test_every_operation_has_its_noun_and_puts_or_removes():
    assert KINDS.keys() == set(get_args(Operation))
    assert {noun for _, noun in KINDS.values()} == NOUNS.keys()
    assert [KINDS[one] for one in (ops.AddSa, ops.ReplaceSa, ops.DeleteSa)] == [
        (True, "Sa"),
        (True, "Sa"),
        (False, "Sa"),
    ]
    assert [KINDS[one] for one in (ops.Attach, ops.Detach)] == [(True, ""), (False, "")]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0.0 ms"), (0.00123, "1.2 ms"), (0.0456, "46 ms"), (3.0, "3000 ms")]
)
def test_a_duration_is_told_in_milliseconds(seconds, told):
    assert milliseconds(seconds) == told


def test_a_pass_is_one_line_with_counts_and_for_who_debugs_each_command_and_the_time_of_each_phase(node, caplog):
    node.key(1)
    node.steps()
    node.put(kube.pod("another", 2, 11))
    for level, change in ((logging.INFO, ""), (logging.DEBUG, "removed: ")):
        caplog.clear()
        with caplog.at_level(level, "kmesh"):
            node.steps(1)
        said = [one.getMessage() for one in caplog.records]
        assert sum(one.startswith(f"{change}6 policies, 2 pods (") for one in said) == 1, said
        assert (len(said) == 1) == (level == logging.INFO), said
        assert any(one.startswith("ip xfrm policy ") for one in said) == (level == logging.DEBUG)
        phases = [one for one in said if one.startswith("a pass of ")]
        assert [all(phase in one for phase in ("plan", "apply", "read back")) for one in phases] == [True] * bool(
            change
        )
        (node.folder / "pod-another.yaml").unlink(missing_ok=True)


def test_a_pass_that_changes_nothing_is_no_line(node, caplog):
    node.key(1)
    node.steps()
    with caplog.at_level(logging.INFO, "kmesh"):
        node.steps(5)
    assert caplog.records == []


def test_what_is_done_ahead_of_a_pass_is_told_too(node, caplog):
    node.key(1)
    node.steps()
    node.memory.links = (*node.memory.links, replace(mesh.LINKS[2], ifindex=9, name="late", far_addresses=()))
    with caplog.at_level(logging.INFO, "kmesh"):
        node.daemon._attach()
    (line,) = [one.getMessage() for one in caplog.records]
    assert line.startswith("ahead of a pass: ")
    assert line.endswith(" programs")


def test_a_problem_is_told_when_it_comes_and_when_it_comes_back_but_not_while_it_lasts():
    passes = [("a",), ("a", "b"), ("b",), ("a", "b"), ("a", "b")]
    told_of = [tuple(news(before, now)) for before, now in zip([(), *passes], passes, strict=False)]
    assert told_of == [("a",), ("b",), (), ("a",), ()]


def test_of_many_problems_at_once_some_are_told_and_how_many_more_there_are():
    many = [f"problem {one}" for one in range(MOST + 3)]
    *some, rest = news((), many)
    assert (some, rest) == (many[:MOST], "and 3 more problems like these")
    assert list(news(many, many)) == []

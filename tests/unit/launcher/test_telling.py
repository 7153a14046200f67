"""How much the log says of a pass's operations, and of what is wrong."""

import logging
from ipaddress import ip_address

from kmesh.launcher.telling import MOST, news, told

from kmesh_bpf.core.operations import AddPodDevice, DeletePod, SetPod
from kmesh_bpf.core.state import PodFlags


def pods(number):
    return [SetPod(ip_address(0x0A000000 + one), PodFlags.REMOTE) for one in range(number)]


def test_few_operations_of_a_kind_are_told_one_by_one():
    applied = [AddPodDevice(3), *pods(MOST), DeletePod(ip_address("10.1.0.1"))]
    assert list(told(applied)) == [(logging.INFO, one, 0) for one in applied]


def test_of_many_the_first_stands_for_all_and_what_there_is_little_of_is_told_among_them():
    many = pods(MOST + 1)
    applied = [many[0], AddPodDevice(3), *many[1:]]
    first, device, *others = told(applied)
    assert first == (logging.INFO, many[0], MOST)
    assert device == (logging.INFO, AddPodDevice(3), 0)
    assert others == [(logging.DEBUG, one, 0) for one in many[1:]], "none is left out for who debugs"


def test_of_nothing_nothing_is_told():
    assert list(told([])) == []


def test_a_problem_is_told_when_it_comes_and_when_it_comes_back_but_not_while_it_lasts():
    passes = [("a",), ("a", "b"), ("b",), ("a", "b"), ("a", "b")]
    told_of = [tuple(news(before, now)) for before, now in zip([(), *passes], passes, strict=False)]
    assert told_of == [("a",), ("b",), (), ("a",), ()]


def test_of_many_problems_at_once_some_are_told_and_how_many_more_there_are():
    many = [f"problem {one}" for one in range(MOST + 3)]
    *some, rest = news((), many)
    assert (some, rest) == (many[:MOST], "and 3 more problems like these")
    assert list(news(many, many)) == []

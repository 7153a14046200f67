# SPDX-License-Identifier: Apache-2.0
"""What stands where in the answer for people: a line first, rows with findings first, a sentence once."""

import io
import json
import re
from dataclasses import replace

import pytest
from kmesh.cluster.objects import ClusterObjects
from kmesh.errors import ApiError, ClusterError

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_status import BASE, OURS, WELL, Source, status


def test_the_nodes_that_something_is_wrong_with_come_first_and_a_watch_says_when():
    ill = replace(WELL, node="n2", ready=False, reasons=("it is ill",))
    text = status(source=Source(reports=(WELL, ill)))[1]
    assert [line.split()[0] for line in text.split("\n\n")[1].splitlines()] == ["NODE", "n2", "n1"]
    assert text.splitlines()[0] == "1 of 2 nodes ready, key SPI 1"
    assert status(source=Source(BASE[:-1]))[1].splitlines()[0] == "2 of 2 nodes ready, no usable key"
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        status("--watch", out=out, sleep=lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert re.fullmatch(r"2 of 2 nodes ready, key SPI 1, \d\d:\d\d:\d\d", out.getvalue().splitlines()[0])


def test_what_is_so_of_many_nodes_is_said_once():
    nodes = tuple(kube.node_info(number, 7, **OURS) for number in range(10, 18))
    text = status(source=Source((*BASE, *nodes)))[1]
    many = "n10, n11, n12, n13, n14 and 3 more: "
    assert f"{many}it announces SPI 7, above that of the key in the Secret, 1: kmeshctl secret create" in text
    assert len([line for line in text.splitlines() if "above that of the key" in line]) == 1
    assert len(json.loads(status("-o", "json", source=Source((*BASE, *nodes)))[1])["findings"]) == 24


def test_problems_alone_are_lines_and_nothing_where_all_is_well():
    assert status("--problems") == (0, "")
    source = Source(reports=(replace(WELL, ready=False, reasons=("it is ill",)), replace(WELL, node="n2")))
    assert status("--problems", source=source) == (1, "n1: not ready: it is ill\n")


def test_a_watch_survives_a_server_that_is_away_and_says_so():
    source, out, looks = Source(), io.StringIO(), []
    real = source.statuses

    def sleep(_):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        source.statuses = away if len(looks) == 1 else real

    def away():
        raise ApiError("the API server cannot be reached: \x1bit does not answer")

    with pytest.raises(KeyboardInterrupt):
        status("--watch", source=source, out=out, sleep=sleep)
    lines = out.getvalue().splitlines()
    (gone,) = [line for line in lines if "cannot be reached" in line]
    assert re.fullmatch(r"(\d\d:\d\d:\d\d): the API server .*: \?it does not answer; the last answer is of \1", gone)
    assert len([line for line in lines if line.startswith("2 of 2 nodes ready")]) == 2


def test_a_watch_that_never_had_an_answer_fails():
    source = Source()
    source.statuses = None
    source.read = lambda: ClusterObjects(problems=("nobody is there",), complete=False)
    with pytest.raises(ClusterError, match="nobody is there"):
        status("--watch", source=source)

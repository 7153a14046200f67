"""What stands where in the answer for people: a line first, rows with findings first, a sentence once."""

import io
import json
import re
from dataclasses import replace

import pytest

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

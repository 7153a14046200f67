# SPDX-License-Identifier: Apache-2.0
"""What one sees of `status`: 80 columns, colours that say nothing of their own, a screen that fits, progress at once."""

import io
import json
import re
from dataclasses import replace

import pytest
from kmesh.cluster.status import to_lease
from kmesh.errors import ApiError
from kmesh.kmeshctl.terminal import HOME, Reader

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_status import BASE, NOW, OURS, WELL, Source, status

SGR = re.compile(r"\x1b\[[\d;]*m")
NEW = kube.secret(kube.entry(2, bytes(range(1, 37))), [kube.entry(1)])
JUST_NOW = {**NEW, "metadata": {**NEW["metadata"], "creationTimestamp": "2026-11-24T20:44:58Z"}}


def named(*names, **changes):
    manifests = [kube.secret(kube.entry(1))]
    for name in names:
        node, info = kube.node(1), kube.node_info(1, **OURS)
        node["metadata"]["name"] = info["metadata"]["name"] = name
        manifests += [node, info]
    return Source(tuple(manifests), tuple(replace(WELL, node=name, **changes) for name in names))


LONG = [f"ip-10-0-{number}-123.eu-central-1.compute.internal" for number in range(3)]
REPLACING = {
    "newest_spi": 4294967294,
    "spi": 4294967294,
    "peers_expected": 4999,
    "peers_ready": 4999,
    "peers_on_newest": 2500,
    "replacing_since": NOW - 20,
    "counters": {"dropped_by_guard": 123456789},
    "sequence_use": 0.00001,
}


@pytest.mark.parametrize("names", [["n1", "n2"], LONG, ["x" * 253]], ids=["short", "cloud", "longest"])
@pytest.mark.parametrize("changes", [{}, REPLACING], ids=["well", "replacing"])
def test_no_line_of_the_table_has_more_than_80_columns(names, changes):
    text = status(source=named(*names, **changes))[1]
    head, rows = text.split("\n\n")[:2]
    assert all(len(line) <= 80 for line in rows.splitlines())
    assert len(rows.splitlines()) == len(names) + 1
    assert len(head.splitlines()[0]) <= 80
    wide = status("-o", "wide", source=named(*names, **changes))[1]
    assert all(name in wide for name in names)


def test_on_a_narrow_terminal_it_is_narrower_and_sentences_are_broken():
    ill = named("n1", ready=False, reasons=("the wire is cut " * 10,))
    text = status(source=ill, reader=Reader(True, size=lambda: (50, 24)))[1]
    assert all(len(line) <= 50 for line in text.splitlines())


def test_colour_says_nothing_that_words_do_not():
    source = named("n1", ready=False, reasons=("it is ill",), counters={"dropped_by_guard": 1})
    plain = status(source=source)[1]
    coloured = status(source=source, reader=Reader(colour=True))[1]
    assert SGR.sub("", coloured) == plain
    assert SGR.search(coloured)


def test_a_replacement_that_nobody_follows_is_in_progress_at_once_and_nothing_is_wrong():
    code, text = status(source=Source((*BASE[:4], JUST_NOW)))
    assert code == 0
    assert text.splitlines()[:2] == [
        "2 of 2 nodes ready, key SPI 2",
        "replacement in progress: SPI 2 is announced by 0 of 2 nodes, sent with by 0",
    ]
    found = json.loads(status("-o", "json", source=Source((*BASE[:4], JUST_NOW)))[1])
    assert found["replacement"] == text.splitlines()[1]


def test_its_progress_goes_on_until_the_older_key_is_gone():
    infos = (kube.node_info(1, 2, **OURS), kube.node_info(2, 2, **OURS))
    done = replace(WELL, spi=2, newest_spi=2)
    left = replace(done, replacing_since=NOW - 60, old_inbound=2)
    for reports, said in (
        ((done, replace(WELL, node="n2", newest_spi=2, replacing_since=NOW, peers_on_newest=0)), ", sent with by 1"),
        ((left, replace(left, node="n2")), ", sent with by 2; 2 still take the one before"),
        ((done, replace(done, node="n2")), None),
    ):
        second = status(source=Source((*BASE[:2], *infos, JUST_NOW), reports))[1].splitlines()[1]
        assert second == (f"replacement in progress: SPI 2 is announced by 2 of 2 nodes{said}" if said else "")


class StopError(Exception):
    pass


def frames(source, lines=12, looks=3, colour=False, before=lambda _: None):
    """Give what is drawn on a terminal's other screen, a list of lines a look."""
    out, slept = io.StringIO(), []

    def sleep(_):
        slept.append(1)
        before(len(slept))
        if len(slept) == looks:
            raise StopError

    with pytest.raises(StopError):
        status("--watch", source=source, out=out, sleep=sleep, reader=Reader(True, colour, lambda: (80, lines)))
    drawn = re.sub(r"\x1b\[(\?\d+[hl]|[KJ])", "", out.getvalue()).split(HOME)[1:]
    return [frame.split("\r\n") for frame in drawn]


def test_of_many_nodes_a_watch_shows_what_fits_with_the_ill_ones_and_their_sentences():
    names = [f"node-{number:03}" for number in range(120)]
    source = named(*names)
    ill = replace(WELL, node="node-099", ready=False, reasons=("it is ill",))
    reports = [replace(WELL, node=name) for name in names if name != "node-099"]
    source.leases = tuple(map(to_lease, (*reports, ill)))
    for frame in frames(source, 24):
        assert len(frame) <= 24
        assert frame[0].startswith("119 of 120 nodes ready, key SPI 1, ")
        assert frame[3].startswith("node-099 ")
        assert "node-099: not ready: it is ill" in frame
        assert any(re.fullmatch(r"… \d+ more lines", line) for line in frame)


def test_while_the_server_is_silent_the_last_answer_stays_below_a_line_that_says_so():
    source = Source()
    real = source.statuses

    def away():
        raise ApiError("the API server https://x cannot be reached: it does not answer")

    def before(look):
        source.statuses = away if look == 1 else real

    first, second, third = frames(source, before=before)
    assert first[0].startswith("2 of 2 nodes ready")
    assert re.fullmatch(r"\d\d:\d\d:\d\d: the API server .* it does not answer; the last answer is of \S+", second[0])
    assert second[1:] == first
    assert third == first

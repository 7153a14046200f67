# SPDX-License-Identifier: Apache-2.0
"""What was sent and what arrived, counted: no packet of a span is forgotten, and none is counted twice."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.flows import Cost, Numbered, Stream, cost, measure, span


def flow(sent, arrived, twice=()):
    return Numbered("UDP", "n1", "n2", list(map(float, sent)), dict(arrived), list(twice))


def test_all_that_arrived_costs_nothing_but_the_gap_between_two():
    one = flow([0, 1, 2, 3], {0: 0.1, 1: 1.1, 2: 2.1, 3: 3.1})
    assert cost(one, 0, 4) == Cost("UDP", ("n1", "n2"), 4, 0, 0, 1000, None)


def test_the_gap_reaches_over_what_was_lost_and_healing_counts_from_the_last_one_lost():
    one = flow([0, 1, 2, 3, 4], {0: 0.1, 4: 4.1})
    assert cost(one, 0, 5) == Cost("UDP", ("n1", "n2"), 5, 3, 0, 4000, 3.0)


def test_a_flow_that_stays_dead_has_a_gap_until_the_end():
    assert cost(flow([0, 1, 2, 3], {0: 0.1}), 0, 10).gap == 9900
    assert cost(flow([0, 1], {}), 0, 10) == Cost("UDP", ("n1", "n2"), 2, 2, 0, 10000, 1.0)


def test_what_was_sent_before_or_after_a_span_is_not_its_own():
    one = flow([0, 1, 2, 3], {1: 1.1, 2: 5.0})
    assert cost(one, 1, 3) == Cost("UDP", ("n1", "n2"), 2, 0, 0, 3900, None)


def test_a_number_that_arrives_again_counts_as_accepted_twice_and_one_that_was_never_sent_as_nothing():
    one = flow([0.0, 1.0], {})
    for number, now in ((0, 0.1), (0, 0.2), (1, 1.1), (7, 1.2)):
        one.take(number, now)
    assert (one.arrived, one.twice) == ({0: 0.1, 1: 1.1}, [0.2])
    assert cost(one, 0, 2).twice == 1
    assert cost(one, 1, 2).twice == 0


def test_a_span_sums_up_and_knows_who_lost():
    flows = [flow([0, 1], {0: 0.0, 1: 1.0}), flow([0, 1], {0: 0.1}), Numbered("ICMP", "n2", "n3", [0.0], {})]
    streams = (Stream("TCP", ("n1", "n3"), 100, 1, 40, 2),)
    found = measure(flows, streams, 0, 2, 9, ["a > b", "a > b", "c > d"])
    assert (found.sent, found.lost, found.clear, found.broken, found.stall) == (5, 2, 3, 1, 40)
    assert found.what == ("2 of a > b", "1 of c > d")
    assert [one.name for one in found.costs] == ["UDP", "ICMP"]
    assert [found.lost_outside(nodes) for nodes in ((), ("n1",), ("n3",), ("n2",))] == [2, 1, 1, 0]
    assert found.last_lost == 1.0
    assert span(json.loads(json.dumps(found.plain()))) == found


def test_a_row_s_own_flow_counts_from_its_first_packet_to_its_last():
    found = measure([flow([0, 1], {0: 0.0, 1: 1.0})], (), 0, 10, 0, ())
    own = Numbered("UDP", "n3", "n1", [5.0, 6.0, 7.0], {0: 5.5, 2: 7.25})
    both = found.beside([own, Numbered("UDP", "n3", "n1")])
    assert (both.sent, both.lost, both.gap) == (found.sent + 3, 1, 1750)
    assert both.costs == (Cost("UDP", ("n3", "n1"), 3, 1, 0, 1750, 6.0),)
    assert found.beside([]) == found


@given(st.lists(st.integers(0, 60), max_size=30).map(sorted), st.data(), st.integers(0, 60), st.integers(0, 60))
def test_spans_that_follow_each_other_count_what_the_whole_one_does(sent, data, a, b):
    arrived = data.draw(st.sets(st.integers(0, max(0, len(sent) - 1)) if sent else st.nothing()))
    one = flow(sent, {number: sent[number] + 0.5 for number in arrived})
    start, middle, end = 0, min(a, b), max(a, b)
    parts = cost(one, start, middle), cost(one, middle, end)
    whole = cost(one, start, end)
    assert sum(part.sent for part in parts) == whole.sent
    assert sum(part.lost for part in parts) == whole.lost
    assert whole.lost == sum(at < end and number not in arrived for number, at in enumerate(sent))

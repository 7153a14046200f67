# SPDX-License-Identifier: Apache-2.0
"""What the fault matrix counts with, on a network without any daemon: everything is in clear, and a drop is a loss."""

import re
import time
from types import SimpleNamespace

import pytest

from tests.faults.meter import TrafficProcess
from tests.lab.network import WIRE, Network, run

RULE = """table netdev lossy { chain lose { type filter hook ingress devices = { u1, u2, u3 } priority 0;
    udp dport 7777 numgen inc mod 10 == 0 counter drop; }; }"""
LATE = 0.7


@pytest.fixture(scope="module")
def traffic():
    network = Network(3)
    for node in network.nodes:
        for number, letter in ((10, "a"), (11, "b")):
            network.add_pod(f"p{node.index}{letter}", node, number, bridge="cni0" if node.index == 3 else None)
    process = TrafficProcess(SimpleNamespace(network=network))
    time.sleep(1)
    yield process
    process.close()
    network.close()


def measured(traffic, seconds):
    start = time.monotonic()
    time.sleep(seconds)
    end = time.monotonic()
    time.sleep(LATE)
    return traffic.span(start, end)


def test_traffic_goes_all_ways_loses_nothing_by_itself_and_is_seen_in_clear(traffic):
    span = measured(traffic, 3)
    assert (span.lost, span.twice, span.broken, span.esp) == (0, 0, 0, 0)
    assert span.sent > 12 * 10  # flows that cross the wire, a second of each at least
    assert span.clear > span.sent
    assert all(stream.received for stream in span.streams)


def test_each_datagram_that_a_wire_drops_is_a_loss(traffic):
    run(f"nsenter --net=/run/netns/{WIRE} nft -f -", RULE)
    try:
        start = time.monotonic()
        time.sleep(3)
        dropped = int(
            re.search(r"packets (\d+)", run(f"nsenter --net=/run/netns/{WIRE} nft list table netdev lossy"))[1]
        )
    finally:
        run(f"nsenter --net=/run/netns/{WIRE} nft delete table netdev lossy")
    end = time.monotonic()
    time.sleep(LATE)
    span = traffic.span(start - 1, end)
    assert dropped > 0
    # Between the count and the rule's end a few more may have been dropped.
    assert dropped <= span.lost <= dropped + 12
    assert all(one.name.startswith("UDP") for one in span.costs)
    assert span.broken == 0

"""The programs against the model, over packets, marks and map contents at random."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core.state import PeerEntry, PodFlags, Program
from tests.bpf.model import Case, expected
from tests.bpf.node import READY, SHOT, UNSPEC, NodeUnderTest
from tests.bpf.packets import (
    ARP,
    DESTINATION_OPTIONS,
    ESP,
    FRAGMENT,
    HEADER_BYTES,
    HOP_BY_HOP,
    IPV4,
    IPV6,
    LATER_FRAGMENT,
    LLDP,
    MORE_FRAGMENTS,
    ROUTING,
    TCP,
    UDP,
    ethernet,
    frame,
)

HERE = {4: ip_address("10.1.2.3"), 6: ip_address("fd01::3")}
THERE = {4: ip_address("10.4.5.6"), 6: ip_address("fd04::6")}
AROUND_THERE = {4: ip_network("10.4.0.0/16"), 6: ip_network("fd04::/64")}

programs = st.sampled_from(list(Program))
low_bytes = st.sampled_from([0, 0xD0, 0xE0, 0xD1, 0xF0]) | st.integers(0, 0xFF)
marks = st.builds(lambda high, low: high << 8 | low, st.integers(0, 0xFFFFFF), low_bytes)
pods = st.sampled_from([None, PodFlags.LOCAL, PodFlags.REMOTE, READY])
node_marks = st.none() | st.integers(0, 0xFFFFFFFF).map(lambda bits: bits & contract.NODE_MARK_MASK)
cases = st.builds(Case, programs, st.booleans(), marks, st.booleans(), pods, pods, node_marks, st.booleans())
shapes4 = st.fixed_dictionaries(
    {
        "options": st.integers(0, 10).map(lambda words: bytes(4 * words)),
        "fragment": st.sampled_from([0, MORE_FRAGMENTS, LATER_FRAGMENT]),
        "payload": st.binary(max_size=64),
    }
)
shapes6 = st.fixed_dictionaries(
    {
        "chain": st.lists(st.sampled_from([HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, FRAGMENT]), max_size=6),
        "payload": st.binary(max_size=64),
    }
)
versions = st.tuples(st.just(4), shapes4) | st.tuples(st.just(6), shapes6)
not_esp = st.sampled_from([TCP, UDP, 41, 51, 255])
MANY_EXAMPLES = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def nodes(roots):
    """Strict and permissive ones, whose maps are each example's own."""
    return {strict: NodeUnderTest(roots / f"model-{strict:d}", strict=strict) for strict in (True, False)}


def fill(maps, case, version):
    for address, flags in ((HERE[version], case.source), (THERE[version], case.destination)):
        if flags is None:
            maps.delete_pod(address)
        else:
            maps.set_pod(address, flags)
    if case.peer_mark is None:
        maps.delete_peer(HERE[version])
    else:
        maps.set_peer(HERE[version], PeerEntry(1, case.peer_mark, 1, 1))
    (maps.add_service if case.to_service else maps.delete_service)(AROUND_THERE[version])


@MANY_EXAMPLES
@given(cases, not_esp, versions)
def test_the_programs_do_what_the_model_says(nodes, case, other_protocol, versioned):
    version, shape = versioned
    node = nodes[case.strict]
    fill(node.maps, case, version)
    packet = frame(version, HERE[version], THERE[version], ESP if case.esp else other_protocol, **shape)
    assert node.run(case.program, packet, case.mark) == expected(case)


@MANY_EXAMPLES
@given(programs, st.sampled_from([IPV4, IPV6, ARP, LLDP]), st.binary(min_size=1, max_size=120), marks)
def test_no_bytes_whatever_give_another_verdict_or_touch_foreign_mark_bits(strict, program, ethertype, body, mark):
    # The test run refuses cut IP headers since Linux 6.18; test_wire.py sends them.
    whole = body.ljust({IPV4: HEADER_BYTES[4], IPV6: HEADER_BYTES[6]}.get(ethertype, 1), b"\0")
    verdict, after, _ = strict.run(program, ethernet(ethertype, whole), mark)
    assert verdict in (UNSPEC, SHOT)
    assert (mark ^ after) & ~(contract.NODE_MARK_MASK | contract.MARK_MASK) == 0

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from kmesh.launcher.totals import Totals, Traffic, advance

from kmesh_bpf import SaId, SaUsage
from kmesh_bpf.core.state import Mark

HERE = {4: ip_address("10.10.0.1"), 6: ip_address("fd00:10::1")}
PEERS = {ip_address("10.10.0.2"): "n2", ip_address("10.10.0.3"): "n3", ip_address("fd00:10::3"): "n3"}


def inbound(src: str, spi: int = 1) -> SaId:
    there = ip_address(src)
    return SaId(there, HERE[there.version], spi, Mark(there.packed[-1] << 8, 0xFF00))


def outbound(dst: str, spi: int = 1) -> SaId:
    there = ip_address(dst)
    return SaId(HERE[there.version], there, spi, None)


def use(packets: int, added: int = 0) -> SaUsage:
    return SaUsage(added, 0, packets, packets * 100, replays=packets // 2, integrity_failures=packets // 3)


def packets(totals: Totals) -> dict:
    return {flow: traffic.packets for flow, traffic in totals.sums().items()}


def test_several_sas_of_a_peer_are_summed_by_direction():
    usage = {
        inbound("10.10.0.3"): use(1),
        inbound("10.10.0.3", 2): use(2),
        inbound("fd00:10::3"): use(4),
        outbound("10.10.0.3"): use(8),
    }
    assert packets(advance(Totals(), usage, PEERS)) == {("n3", "in"): 7, ("n3", "out"): 8}


def test_what_a_vanished_sa_counted_is_kept_while_its_peer_is_known():
    totals = advance(Totals(), {inbound("10.10.0.2"): use(5)}, PEERS)
    totals = advance(totals, {inbound("10.10.0.2", 2): use(1)}, PEERS)
    assert packets(totals) == {("n2", "in"): 6}
    only_n3 = {address: name for address, name in PEERS.items() if name == "n3"}
    assert packets(advance(totals, {inbound("10.10.0.2", 2): use(1)}, only_n3)) == {}


def test_an_sa_made_anew_in_the_place_of_another_counts_on():
    totals = advance(Totals(), {inbound("10.10.0.2"): use(5, added=10)}, PEERS)
    totals = advance(totals, {inbound("10.10.0.2"): use(5, added=11)}, PEERS)
    assert packets(totals) == {("n2", "in"): 10}


def test_an_address_that_goes_to_another_peer_leaves_what_the_former_had():
    totals = advance(Totals(), {inbound("10.10.0.2"): use(5)}, PEERS)
    moved = {**PEERS, ip_address("10.10.0.2"): "n3", ip_address("10.10.0.9"): "n2"}
    totals = advance(totals, {inbound("10.10.0.2"): use(6)}, moved)
    assert packets(totals) == {("n2", "in"): 5, ("n3", "in"): 6}


def test_sas_of_nobody_known_are_left_out():
    assert advance(Totals(), {inbound("192.0.2.1"): use(5)}, PEERS).sums() == {}


IDS = [
    inbound("10.10.0.2"),
    inbound("10.10.0.2", 2),
    outbound("10.10.0.2"),
    inbound("fd00:10::3"),
    outbound("10.10.0.3"),
]
changes = st.lists(
    st.lists(
        st.tuples(st.sampled_from(IDS), st.sampled_from(["count", "delete", "add", "remake"]), st.integers(0, 9)),
        max_size=6,
    ),
    max_size=12,
)


@given(changes)
def test_sums_never_go_backwards_and_are_what_all_sas_that_ever_were_had_counted(rounds):
    usage: dict[SaId, SaUsage] = {}
    lives: dict[tuple[SaId, int], Traffic] = {}
    totals, born = Totals(), 0
    for events in rounds:
        for identity, event, number in events:
            if event in ("delete", "remake"):
                usage.pop(identity, None)
            if event in ("add", "remake") and identity not in usage:
                born += 1
                usage[identity] = SaUsage(born, 0, 0, 0)
            if event == "count" and identity in usage:
                before = usage[identity]
                packets, replays = before.packets + number, before.replays + number % 2
                usage[identity] = replace(before, packets=packets, bytes=9 * packets, replays=replays)
        before_sums = totals.sums()
        totals = advance(totals, dict(usage), PEERS)
        sums = totals.sums()
        for flow, traffic in before_sums.items():
            assert sums[flow].packets >= traffic.packets
            assert sums[flow].bytes >= traffic.bytes
            assert sums[flow].replays >= traffic.replays
        for identity, one in usage.items():  # as last observed: what is observed is what can be counted
            lives[identity, one.added] = Traffic(one.packets, one.bytes, one.replays, one.integrity_failures)
        assert sum(traffic.packets for traffic in sums.values()) == sum(one.packets for one in lives.values())
        assert sum(traffic.bytes for traffic in sums.values()) == sum(one.bytes for one in lives.values())


@given(st.lists(st.dictionaries(st.sampled_from(IDS), st.builds(use, st.integers(0, 99), st.integers(0, 2)))))
def test_sums_never_go_backwards_whatever_is_observed(observations):
    totals = Totals()
    for usage in observations:
        before = totals.sums()
        totals = advance(totals, usage, PEERS)
        sums = totals.sums()
        assert all(sums[flow].packets >= traffic.packets for flow, traffic in before.items())
        assert all(sums[flow].integrity_failures >= one.integrity_failures for flow, one in before.items())

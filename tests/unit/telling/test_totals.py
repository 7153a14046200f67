# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from kmesh.telling.totals import WAYS, Account, Traffic

from kmesh_bpf import SaId, SaUsage
from kmesh_bpf.core.state import Mark

HERE, THERE = ip_address("10.10.0.1"), ip_address("10.10.0.2")


def inbound(spi: int = 1) -> SaId:
    return SaId(THERE, HERE, spi, Mark(0x200, 0xFF00))


def outbound(spi: int = 1) -> SaId:
    return SaId(HERE, THERE, spi, None)


def use(packets: int, added: int = 0) -> SaUsage:
    return SaUsage(added, 0, packets, packets * 100, replays=packets // 2, integrity_failures=packets // 3)


def packets(account: Account) -> tuple[int, int]:
    return account.total("in").packets, account.total("out").packets


def test_several_sas_are_summed_by_direction():
    usage = {inbound(): use(1), inbound(2): use(2), inbound(3): use(4), outbound(): use(8)}
    assert packets(Account().after(usage)) == (7, 8)


def test_what_a_vanished_sa_counted_is_kept():
    account = Account().after({inbound(): use(5), outbound(): use(7)})
    assert packets(account.after({inbound(2): use(1)})) == (6, 7)
    assert packets(account.after({}).after({})) == (5, 7)


def test_an_sa_made_anew_in_the_place_of_another_counts_on():
    account = Account().after({inbound(): use(5, added=10)})
    assert packets(account.after({inbound(): use(5, added=11)})) == (10, 0)


IDS = [inbound(), inbound(2), outbound(), inbound(3), outbound(2)]
changes = st.lists(
    st.lists(
        st.tuples(st.sampled_from(IDS), st.sampled_from(["count", "delete", "add", "remake"]), st.integers(0, 9)),
        max_size=6,
    ),
    max_size=12,
)


def sums_of(account: Account) -> dict[str, Traffic]:
    return {way: account.total(way) for way in WAYS}


@given(changes)
def test_sums_never_go_backwards_and_are_what_all_sas_that_ever_were_had_counted(rounds):
    usage: dict[SaId, SaUsage] = {}
    lives: dict[tuple[SaId, int], Traffic] = {}
    account, born = Account(), 0
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
        before_sums = sums_of(account)
        account = account.after(dict(usage))
        sums = sums_of(account)
        for way, traffic in before_sums.items():
            assert sums[way].packets >= traffic.packets
            assert sums[way].bytes >= traffic.bytes
            assert sums[way].replays >= traffic.replays
        for identity, one in usage.items():  # as last observed: what is observed is what can be counted
            lives[identity, one.added] = Traffic(one.packets, one.bytes, one.replays, one.integrity_failures)
        assert sum(traffic.packets for traffic in sums.values()) == sum(one.packets for one in lives.values())
        assert sum(traffic.bytes for traffic in sums.values()) == sum(one.bytes for one in lives.values())


@given(st.lists(st.dictionaries(st.sampled_from(IDS), st.builds(use, st.integers(0, 99), st.integers(0, 2)))))
def test_sums_never_go_backwards_whatever_is_observed(observations):
    account = Account()
    for usage in observations:
        before = sums_of(account)
        account = account.after(usage)
        sums = sums_of(account)
        assert all(sums[way].packets >= traffic.packets for way, traffic in before.items())
        assert all(sums[way].integrity_failures >= one.integrity_failures for way, one in before.items())

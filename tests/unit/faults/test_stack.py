# SPDX-License-Identifier: Apache-2.0
"""Counters of the kernel's own drops are read by their names, whatever stands around them."""

from itertools import chain, repeat

from tests.faults import stack
from tests.faults.meter import loop_seconds

SNMP = """\
Ip: Forwarding InReceives InDiscards OutNoRoutes
Ip: 1 900 3 2
Tcp: RtoAlgorithm MaxConn
Tcp: 1 -1
Udp: InDatagrams NoPorts RcvbufErrors
Udp: 50 4 5
"""
SNMP6 = "Ip6InReceives\t7\nIp6OutNoRoutes\t6\nUdp6RcvbufErrors\t8\nUdpLite6RcvbufErrors\t9\nIp6InDiscards\t0\n"
TABLE = (
    "entries  insert_failed drop early_drop\n00000010 00000001 0000000a 00000000\n00000010 00000002 00000000 00000000\n"
)


def test_each_counter_of_a_drop_is_read_and_no_other():
    assert stack.snmp(SNMP) == {
        "Ip InDiscards": 3,
        "Ip OutNoRoutes": 2,
        "Udp NoPorts": 4,
        "Udp RcvbufErrors": 5,
    }
    assert stack.snmp6(SNMP6) == {"Ip6 OutNoRoutes": 6, "Ip6 InDiscards": 0, "Udp6 RcvbufErrors": 8}


def test_what_each_processor_counts_is_summed_up_and_a_column_that_is_not_there_is_left_out():
    assert stack.table(TABLE, ("insert_failed", "drop", "no_such")) == {"insert_failed": 3, "drop": 10}
    assert stack.softnet("0000ffff 00000002 0\n00000001 00000010 0\n") == 18


def test_a_namespace_that_is_not_there_has_dropped_nothing_and_the_machine_is_asked_all_the_same():
    found = stack.drops(["no-such-namespace"])
    assert {name.split()[0] for name in found} <= {"arp_cache", "ndisc_cache", "softnet"}
    assert found["softnet dropped"] >= 0


def test_how_long_a_loop_takes_is_the_best_of_five_by_the_clock_that_is_given():
    times = chain.from_iterable(zip(repeat(0.0), [3.0, 2.0, 0.5, 4.0, 1.0], strict=False))
    assert loop_seconds(lambda: next(times)) == 0.5

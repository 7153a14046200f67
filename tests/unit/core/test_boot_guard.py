# SPDX-License-Identifier: Apache-2.0
"""What the guard's script says; that nft takes it, and what it then drops, is tests/kernel/test_boot_guard.py's."""

import re
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.boot_guard import installation, removal

ADDRESSES = st.frozensets(st.ip_addresses(), max_size=20)


def test_each_address_is_dropped_as_source_and_as_destination_and_counted():
    text = installation([ip_address("10.244.2.7"), ip_address("fd00:244:2::7")])
    assert "10.244.2.7" in text
    assert re.findall(r"\t\t(ip6? .addr @\S+) counter name \"dropped\" drop", text) == [
        "ip daddr @remote4",
        "ip saddr @remote4",
        "ip6 daddr @remote6",
        "ip6 saddr @remote6",
    ]


def test_a_family_without_addresses_has_no_set_for_nft_takes_no_empty_list():
    text = installation([ip_address("10.244.2.7")])
    assert "remote6" not in text
    assert "elements" not in installation([])


def test_a_former_one_is_replaced_in_the_same_transaction():
    text = installation([ip_address("10.244.2.7")])
    assert text.index(removal()) < text.index("table inet kmesh_boot_guard {")


@given(ADDRESSES)
def test_every_address_stands_there_once_in_one_order_whatever_order_they_came_in(addresses):
    one, other = installation(addresses), installation(sorted(addresses, key=str))
    assert one == other
    listed = re.findall(r"^\t\t\t([0-9a-f:.]+),?$", one, re.MULTILINE)
    assert sorted(listed) == sorted(map(str, addresses))

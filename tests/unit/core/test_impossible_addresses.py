# SPDX-License-Identifier: Apache-2.0
"""Which addresses can be a pod's or a node's, held against the standard library's account of what each is for."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import impossible

NAMES = {
    "0.0.0.0": "the unspecified address",  # noqa: S104 # nothing is bound to it
    "::": "the unspecified address",
    "127.0.0.1": "a loopback address",
    "127.255.255.254": "a loopback address",
    "::1": "a loopback address",
    "169.254.1.1": "a link-local address",
    "fe80::1": "a link-local address",
    "febf::1": "a link-local address",
    "224.0.0.1": "a multicast address",
    "239.255.255.255": "a multicast address",
    "ff02::1": "a multicast address",
    "255.255.255.255": "the broadcast address",
    "::ffff:10.244.2.10": "the IPv4 address 10.244.2.10 written as an IPv6 address",
    "fe80::1%eth0": "an address with a zone, which means nothing on another node",
    "fd00:244:2::a%1": "an address with a zone, which means nothing on another node",
}
USED = ["10.0.0.1", "100.64.0.1", "198.18.0.1", "203.0.113.1", "240.0.0.1", "255.255.255.254", "0.0.0.1", "1.1.1.1"]
USED_6 = ["fd00::1", "2001:db8::1", "fec0::1", "::2", "::10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"]


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_what_no_packet_from_another_node_can_reach_is_named_for_what_it_is(text, name):
    assert impossible(ip_address(text)) == name


@pytest.mark.parametrize("text", [*USED, *USED_6])
def test_whatever_people_give_to_pods_and_nodes_is_possible(text):
    assert impossible(ip_address(text)) is None


@given(st.ip_addresses())
def test_it_is_what_the_standard_library_calls_so(address):
    kinds = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    last = address == IPv4Address("255.255.255.255")
    mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    assert (impossible(address) is not None) is (kinds or last or mapped)

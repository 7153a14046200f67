from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.devices import OVERLAY_KINDS, attachments, missing_uplinks
from kmesh_bpf.core.state import Attachment, Link, Program

V4, V6, OTHER = ip_address("10.10.0.1"), ip_address("fd00:10::1"), ip_address("10.10.0.9")
UPLINK_PROGRAMS = {Program.MARK_DECRYPT, Program.LEAK_GUARD}

NAMES = ("lo", "eth0", "eth1", "pod0", "pod1", "flannel.1")
LINKS = st.lists(
    st.builds(
        Link,
        ifindex=st.integers(1, 1 << 31),
        name=st.sampled_from(NAMES),
        kind=st.sampled_from(("", "veth", "bridge", "dummy", "bond", *sorted(OVERLAY_KINDS))),
        peer_elsewhere=st.booleans(),
        addresses=st.lists(st.sampled_from((V4, V6, OTHER)), unique=True).map(tuple),
    ),
    unique_by=(lambda link: link.ifindex, lambda link: link.name),
).map(tuple)
NODE_ADDRESSES = st.lists(st.sampled_from((V4, V6)), unique=True)
UPLINKS = st.sets(st.sampled_from((*NAMES, "absent")))


def link(name: str = "eth0", kind: str = "", elsewhere: bool = False, *addresses) -> Link:
    return Link(7, name, kind, elsewhere, addresses)


def programs(found: frozenset[Attachment]) -> set[Program]:
    return {attachment.program for attachment in found}


@pytest.mark.parametrize("address", [V4, V6])
def test_the_device_with_a_node_address_is_an_uplink(address):
    assert programs(attachments([link("eth0", "", False, OTHER, address)], [V4, V6], ())) == UPLINK_PROGRAMS


@pytest.mark.parametrize("kind", sorted(OVERLAY_KINDS))
def test_an_overlay_device_is_an_uplink_whatever_its_addresses(kind):
    assert programs(attachments([link("over0", kind)], [V4], ())) == UPLINK_PROGRAMS


def test_a_veth_into_another_namespace_is_a_pods():
    assert programs(attachments([link("veth1", "veth", True)], [V4], ())) == {Program.MARK_ENCRYPT}


def test_a_veth_with_both_ends_at_home_is_nothing():
    assert attachments([link("veth1", "veth", False)], [V4], ()) == frozenset()


def test_a_veth_with_a_node_address_is_an_uplink_and_no_pods():
    assert programs(attachments([link("eth0", "veth", True, V4)], [V4], ())) == UPLINK_PROGRAMS


def test_a_veth_named_as_uplink_is_no_pods():
    assert programs(attachments([link("eth0", "veth", True)], [V4], ["eth0"])) == UPLINK_PROGRAMS


def test_named_uplinks_replace_the_choice_by_address_and_kind():
    found = attachments([link("eth0", "", False, V4), replace(link("over0", "vxlan"), ifindex=8)], [V4], ["eth9"])
    assert found == frozenset()


def test_named_uplinks_that_are_missing_are_told_in_the_order_asked():
    assert missing_uplinks([link("eth0")], ["eth9", "eth0", "eth1"]) == ("eth9", "eth1")
    assert missing_uplinks([link("eth0")], ["eth0"]) == ()


@given(LINKS, NODE_ADDRESSES, UPLINKS)
def test_each_device_is_an_uplink_or_a_pods_or_nothing(links, addresses, uplinks):
    found = attachments(links, addresses, uplinks)
    for one in links:
        own = {attachment.program for attachment in found if attachment.ifindex == one.ifindex}
        assert own in (set(), {Program.MARK_ENCRYPT}, UPLINK_PROGRAMS)
    assert {(one.ifindex, one.device) for one in found} <= {(one.ifindex, one.name) for one in links}


@given(LINKS, NODE_ADDRESSES, UPLINKS)
def test_a_device_is_judged_by_itself(links, addresses, uplinks):
    each = (attachments([one], addresses, uplinks) for one in links)
    assert attachments(reversed(links), addresses, uplinks) == frozenset().union(*each)


@given(LINKS, NODE_ADDRESSES, UPLINKS.filter(bool))
def test_named_uplinks_are_exactly_the_uplinks(links, addresses, uplinks):
    found = attachments(links, addresses, uplinks)
    guarded = {one.device for one in found if one.program is Program.LEAK_GUARD}
    assert guarded | set(missing_uplinks(links, uplinks)) == uplinks


@given(LINKS, NODE_ADDRESSES)
def test_no_device_with_a_node_address_goes_unguarded(links, addresses):
    guarded = {one.ifindex for one in attachments(links, addresses, ()) if one.program is Program.LEAK_GUARD}
    assert {one.ifindex for one in links if set(addresses) & set(one.addresses)} <= guarded


@given(LINKS, NODE_ADDRESSES, UPLINKS)
def test_no_pod_device_goes_unmarked(links, addresses, uplinks):
    found = attachments(links, addresses, uplinks)
    guarded = {one.ifindex for one in found if one.program is Program.LEAK_GUARD}
    marked = {one.ifindex for one in found if one.program is Program.MARK_ENCRYPT}
    assert marked == {one.ifindex for one in links if one.kind == "veth" and one.peer_elsewhere} - guarded

# SPDX-License-Identifier: Apache-2.0
"""What notifications of XFRM come to: those that the kernel sent, and built ones, for this machine may have no ESP."""

import socket
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.state import Direction, Mark, Policy, PolicyId, Sa, SaId
from kmesh_bpf.core.view import Key
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.netlink import HEADER, Notification, attribute
from kmesh_bpf.kernel.xfrm_events import POLICIES, SAS, touched
from tests.unit.kernel.test_golden_dumps import read

OWN = 4711
SA = Sa(
    ip_address("10.0.0.2"),
    ip_address("10.0.0.1"),
    1,
    Key(bytes(range(36))),
    Mark(0x1000D0, 0xFFF01FFF),
    Mark(0xD0, 0xFFFFFFFF),
    32,
)
OUTBOUND = Sa(SA.dst, SA.src, 1, SA.key)
FWD = PolicyId(Direction.FWD, ip_network("10.2.0.7/32"), ip_network("0.0.0.0/0"), Mark(0xD0, 0xDF))
POLICY = Policy(FWD.direction, FWD.src, FWD.dst, FWD.mark, SA.src, SA.dst)


def told(number: int, body: bytes = b"", port_id: int = 0) -> Notification:
    return Notification(number, port_id, body)


def of_sa(number: int, sa: Sa, proto: int = socket.IPPROTO_ESP) -> Notification:
    """Build what the kernel tells of an SA (xfrm_notify_sa, build_expire in net/xfrm/xfrm_user.c)."""
    body = bytearray(wire.encode_new_sa(sa)[HEADER:])
    size = ffi.sizeof("struct xfrm_usersa_info")
    ffi.from_buffer("struct xfrm_usersa_info *", body, require_writable=True).id.proto = proto
    info, rest = bytes(body[:size]), bytes(body[size:])
    if number == lib.XFRM_MSG_DELSA:
        named = wire.encode_delete_sa(sa)[HEADER:][: ffi.sizeof("struct xfrm_usersa_id")]
        return told(number, named + attribute(lib.XFRMA_SA, info) + rest)
    if number == lib.XFRM_MSG_EXPIRE:
        padded = info + b"\1" + bytes(ffi.sizeof("struct xfrm_user_expire") - size - 1)
        return told(number, padded + rest)
    return told(number, info + rest)


def test_what_the_kernel_told_of_policies_names_them_however_they_were_named_when_they_went():
    notifications = [told(*one) for one in read("told-policies")]
    assert [one.number for one in notifications] == [0x13, 0x19, 0x14, 0x14, 0x1D]
    assert [touched([one], OWN) for one in notifications] == [
        *[Keys.named("policies", (FWD,))] * 4,
        Keys(whole=POLICIES),
    ]


@pytest.mark.parametrize("sa", [SA, OUTBOUND], ids=["inbound", "outbound"])
@pytest.mark.parametrize("name", ["NEWSA", "UPDSA", "DELSA", "EXPIRE"])
def test_what_is_told_of_an_sa_names_it(name, sa):
    (found,) = touched([of_sa(getattr(lib, f"XFRM_MSG_{name}"), sa)], OWN).sas
    assert (found.src, found.dst, found.spi, found.mark) == (sa.src, sa.dst, sa.spi, sa.mark)


def test_a_policy_that_expires_is_named():
    info = wire.encode_set_policy(POLICY, replace=False)[HEADER:]
    size = ffi.sizeof("struct xfrm_userpolicy_info")
    hard = b"\1" + bytes(ffi.sizeof("struct xfrm_user_polexpire") - size - 1)
    assert touched([told(lib.XFRM_MSG_POLEXPIRE, info[:size] + hard + info[size:])], OWN) == Keys.named(
        "policies", (FWD,)
    )


@pytest.mark.parametrize("name", ["NEWPOLICY", "DELPOLICY", "POLEXPIRE"])
@pytest.mark.parametrize(
    ("priority", "rival"), [(contract.POLICY_PRIORITY, True), (contract.POLICY_PRIORITY + 1, False)]
)
def test_of_a_policy_of_others_that_comes_before_ours_a_dump_is_to_tell(name, priority, rival):
    theirs = replace(POLICY, priority=priority)
    body = wire.encode_set_policy(theirs, replace=False)[HEADER:]
    mark = attribute(lib.XFRMA_MARK, bytes(ffi.buffer(ffi.new("struct xfrm_mark *", (0x7, 0xFF)))))
    size = ffi.sizeof("struct xfrm_userpolicy_info")
    info, rest = body[:size], mark
    if name == "DELPOLICY":
        named = bytes(ffi.sizeof("struct xfrm_userpolicy_id"))
        one = told(lib.XFRM_MSG_DELPOLICY, named + attribute(lib.XFRMA_POLICY, info) + rest)
    elif name == "POLEXPIRE":
        hard = b"\1" + bytes(ffi.sizeof("struct xfrm_user_polexpire") - size - 1)
        one = told(lib.XFRM_MSG_POLEXPIRE, info + hard + rest)
    else:
        one = told(lib.XFRM_MSG_NEWPOLICY, info + rest)
    assert touched([one], OWN) == (Keys(whole=POLICIES, rest=True) if rival else Keys())


def test_of_our_own_doing_nothing_is_taken_and_of_the_kernel_s_everything():
    one = of_sa(lib.XFRM_MSG_NEWSA, SA)
    assert not touched([replace(one, port_id=OWN)], OWN)
    assert not touched([told(lib.XFRM_MSG_FLUSHSA, port_id=OWN)], OWN)
    assert touched([replace(one, port_id=0)], OWN)


def test_what_has_another_protocol_or_no_mark_of_ours_is_left_out():
    assert not touched([of_sa(lib.XFRM_MSG_NEWSA, SA, proto=socket.IPPROTO_AH)], OWN)
    body = bytearray(of_sa(lib.XFRM_MSG_NEWSA, SA).body)
    ours = bytes(ffi.buffer(ffi.new("struct xfrm_mark *", (SA.mark.value, SA.mark.mask))))
    assert ours in body
    theirs = bytes(ffi.buffer(ffi.new("struct xfrm_mark *", (0x7, 0xFF))))
    assert not touched([told(lib.XFRM_MSG_NEWSA, bytes(body).replace(ours, theirs))], OWN)


@pytest.mark.parametrize(
    ("number", "whole"),
    [
        (lib.XFRM_MSG_FLUSHSA, SAS),
        (lib.XFRM_MSG_FLUSHPOLICY, POLICIES),
        (lib.NLMSG_OVERRUN, SAS | POLICIES),
        (lib.XFRM_MSG_DELSA, SAS),  # cut short
        (lib.XFRM_MSG_NEWPOLICY, POLICIES),
    ],
)
def test_where_it_is_not_told_which_all_are_to_be_read_anew(number, whole):
    assert touched([told(number, b"\0" * 8)], OWN) == Keys(whole=whole)


def test_a_message_of_another_kind_says_nothing():
    assert not touched([told(lib.XFRM_MSG_GETSA), told(lib.XFRM_MSG_NEWSPDINFO, b"\0" * 4)], OWN)


@given(st.sampled_from([of_sa(lib.XFRM_MSG_UPDSA, SA), told(*read("told-policies")[2])]), st.data())
def test_whatever_is_cut_off_or_altered_something_is_to_be_read_anew_or_it_is_no_object_of_ours(one, data):
    body = bytearray(one.body[: data.draw(st.integers(0, len(one.body)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(body) - 1)), max_size=3)) if body else ():
        body[place] = data.draw(st.integers(0, 255))
    found = touched([replace(one, body=bytes(body))], OWN)
    assert found.whole or len(found) <= 1


def test_the_identity_of_an_sa_is_what_it_is_asked_for_by():
    assert SaId(SA.src, SA.dst, SA.spi, SA.mark) == SA.id
    assert contract.REQID, "a notification says it too, and it does not matter: whoever takes our place need not say it"


def test_of_another_default_for_what_no_policy_selects_what_is_little_is_read_anew():
    assert touched([told(lib.XFRM_MSG_GETDEFAULT, b"\1\1\1")], OWN) == Keys(rest=True)

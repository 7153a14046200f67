# SPDX-License-Identifier: Apache-2.0
import errno
import socket
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.policies import UNMARKED, to_encrypt, was_decrypted
from kmesh_bpf.core.state import Direction, Mark, Policy, Sa
from kmesh_bpf.core.view import Key
from kmesh_bpf.errors import DecodeError, EncodeError, KernelError
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.netlink import HEADER, NetlinkSocket, message

u32 = st.integers(0, 0xFFFFFFFF)
addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)
keys = st.binary(min_size=36, max_size=36).map(Key)
masks = st.sampled_from((0xFF, 0x7F, 0xF0))
inbound = st.tuples(st.integers(0, 0xFFFFFF), masks).map(
    lambda one: Mark(one[0] << 8 & 0xFFF01F00 | 0xD0 & one[1], 0xFFF01F00 | one[1])
)


@st.composite
def sas(draw):
    (src, dst), mark = draw(addresses), draw(st.none() | inbound)
    output = Mark(0xD0 & mark.mask, 0xFFFFFF00 | mark.mask) if mark else None
    return Sa(
        src,
        dst,
        draw(st.integers(1, 0xFFFFFFFF)),
        draw(keys),
        mark,
        output,
        draw(st.integers(0, 4096)),
        draw(st.booleans()),
    )


def networks(version):
    bits = 32 if version == 4 else 128
    return st.tuples(st.ip_addresses(v=version), st.integers(0, bits)).map(lambda one: ip_network(one, strict=False))


@st.composite
def policies(draw):
    direction = draw(st.sampled_from(list(Direction)))
    version = draw(st.sampled_from([4, 6]))
    mask = draw(st.sampled_from((0xFF, 0x7F, 0xBF, 0xF0)))
    whole = Mark((0xE0 if direction is Direction.OUT else 0xD0) & mask, mask)
    ours = [whole, to_encrypt(mask), UNMARKED] if direction is Direction.OUT else [whole, was_decrypted(mask)]
    src, dst = draw(networks(version)), draw(networks(version))
    return Policy(
        direction, src, dst, draw(st.sampled_from(ours)), *draw(addresses), draw(u32), draw(u32), draw(st.booleans())
    )


@given(sas())
def test_an_sa_reads_back_as_it_was_written(sa):
    decoded = wire.decode_sa(wire.encode_new_sa(sa)[HEADER:])
    assert decoded.sa == sa
    assert decoded.id == sa.id


@given(policies(), st.booleans())
def test_a_policy_reads_back_as_it_was_written(policy, replace):
    assert wire.decode_policy(wire.encode_set_policy(policy, replace=replace)[HEADER:]).policy == policy


SA = Sa(
    ip_address("10.10.0.2"),
    ip_address("10.10.0.1"),
    1,
    Key(bytes(range(36))),
    Mark(0x1000D0, 0xFFF01FFF),
    Mark(0xD0, 0xFFFFFFFF),
    4096,
)


@pytest.mark.parametrize(
    "change",
    [
        {"spi": 0},
        {"spi": 1 << 32},
        {"replay_window": 4097},
        {"replay_window": -1},
        {"dst": ip_address("::1")},
        {"mark": Mark(2, 1)},
        {"mark": Mark(0x1000E0, 0xFFF01FFF)},
        {"output_mark": None},
        {"output_mark": Mark(0xD0, 0xFF)},
        {"mark": None},
        {"src": ip_address("fe80::1%eth0"), "dst": ip_address("fe80::2")},
    ],
)
def test_an_sa_that_cannot_be_encoded_raises(change):
    with pytest.raises(EncodeError):
        wire.encode_new_sa(replace(SA, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"mark": Mark(0xD0, 0xFF)},
        {"mark": Mark(0xE0, 0xFFFF)},
        {"mark": Mark(0xC0, 0xCF)},
        {"direction": Direction.FWD, "mark": Mark(0, 0)},
        {"direction": Direction.IN, "mark": Mark(0xC0, 0xEF)},
        {"dst": ip_network("fd00::/64")},
        {"tunnel_dst": ip_address("::1")},
        {"tunnel_dst": ip_address("fe80::1%eth0"), "tunnel_src": ip_address("fe80::2")},
        {"spi": 1 << 32},
        {"priority": -1},
    ],
)
def test_a_policy_that_cannot_be_encoded_or_would_not_be_known_again_raises(change):
    policy = Policy(
        Direction.OUT,
        ip_network("10.1.0.0/24"),
        ip_network("10.2.0.0/24"),
        Mark(0xE0, 0xFF),
        ip_address("10.0.0.1"),
        ip_address("10.0.0.2"),
        1,
    )
    wire.encode_set_policy(policy, replace=False)
    with pytest.raises(EncodeError):
        wire.encode_set_policy(replace(policy, **change), replace=False)


def test_a_policy_reads_the_same_whatever_its_index_and_its_use_and_is_the_same_object():
    policy = Policy(
        Direction.OUT, *[ip_network("10.1.0.7/32")] * 2, Mark(0xE0, 0xEF), *[ip_address("10.0.0.1")] * 2, block=True
    )
    body = wire.encode_set_policy(policy, replace=False)[HEADER:]
    later = bytearray(body)
    info = ffi.from_buffer("struct xfrm_userpolicy_info *", later, require_writable=True)
    info.index, info.curlft.use_time, info.curlft.packets = 4711, 1795553190, 9
    found = wire.decode_policy(body).policy
    assert found == policy
    assert wire.decode_policy(bytes(later)).policy is found


def test_a_policy_cut_short_or_that_lets_through_what_it_should_not_is_refused():
    policy = Policy(Direction.OUT, *[ip_network("10.1.0.8/32")] * 2, Mark(0xE0, 0xEF), *[ip_address("10.0.0.1")] * 2)
    body = bytearray(wire.encode_set_policy(policy, replace=False)[HEADER:])
    with pytest.raises(DecodeError):
        wire.decode_policy(bytes(body[:100]))
    ffi.from_buffer("struct xfrm_userpolicy_info *", body, require_writable=True).action = 7
    with pytest.raises(DecodeError, match="does not require ESP"):
        wire.decode_policy(bytes(body))


def test_a_wish_for_an_sa_that_the_kernel_keeps_for_a_key_manager_is_no_sa():
    body = bytearray(wire.encode_new_sa(replace(SA, mark=None, output_mark=None))[HEADER:])
    info = ffi.from_buffer("struct xfrm_usersa_info *", body, require_writable=True)
    info.id.spi = 0
    assert wire.decode_sa(bytes(body[: ffi.sizeof("struct xfrm_usersa_info")])) is None


def test_somebody_else_s_sa_is_not_ours():
    body = bytearray(wire.encode_new_sa(SA)[HEADER:])
    ffi.from_buffer("struct xfrm_usersa_info *", body, require_writable=True).reqid = 7
    decoded = wire.decode_sa(bytes(body))
    assert not decoded.ours
    assert decoded.id == SA.id


@given(st.integers(0, 600))
def test_a_message_cut_short_is_never_taken_for_a_whole_one(length):
    body = wire.encode_new_sa(SA)[HEADER:]
    try:
        decoded = wire.decode_sa(body[:length])
    except DecodeError:
        return
    assert (decoded.sa == SA) is (length >= len(body)) or not decoded.ours


def test_the_layout_of_the_system_s_structs_is_the_kernel_s_abi():
    sizes = {
        "struct xfrm_usersa_info": 224,
        "struct xfrm_userpolicy_info": 168,
        "struct xfrm_user_tmpl": 64,
        "struct xfrm_usersa_id": 24,
        "struct xfrm_userpolicy_id": 64,
        "struct xfrm_algo_aead": 72,
        "struct xfrm_mark": 8,
    }
    assert {name: ffi.sizeof(name) for name in sizes} == sizes


def answer(sequence, error, kind=None):
    body = ffi.new("struct nlmsgerr *", {"error": -error})
    header = ffi.new(
        "struct nlmsghdr *", (HEADER + ffi.sizeof("struct nlmsgerr"), kind or lib.NLMSG_ERROR, 0, sequence, 0)
    )
    return bytes(ffi.buffer(header)) + bytes(ffi.buffer(body))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    class Named:
        """A datagram socket with a netlink socket's name."""

        def __getattr__(self, name):
            return getattr(ours, name)

        def getsockname(self):
            return (42, 0)

    yield NetlinkSocket(sock=Named()), theirs
    ours.close()
    theirs.close()


def test_each_request_gets_its_own_answer_and_strangers_are_passed_over(pair):
    netlink, kernel = pair
    kernel.send(answer(99, 1) + answer(2, errno.EEXIST) + answer(1, 0))
    assert [ack.errno for ack in netlink.execute([message(16, 0, b""), message(16, 0, b"")])] == [0, errno.EEXIST]


def test_a_refused_dump_is_an_error_and_a_torn_one_is_not_believed(pair):
    netlink, kernel = pair
    kernel.send(answer(1, errno.EPERM))
    with pytest.raises(KernelError, match="EPERM"):
        netlink.dump(message(16, 0, b""))
    for sequence in range(2, 7):
        header = ffi.new("struct nlmsghdr *", (HEADER, lib.NLMSG_DONE, lib.NLM_F_DUMP_INTR, sequence, 0))
        kernel.send(bytes(ffi.buffer(header)))
    with pytest.raises(DecodeError, match="changed during each"):
        netlink.dump(message(16, 0, b""))


@pytest.mark.parametrize("at", [0, 1, 2], ids=["its first message", "another one", "its last"])
def test_whichever_message_of_a_dump_says_that_it_is_torn_the_whole_is_asked_for_again(pair, at):
    """The kernel says it on the messages that it makes after it has noticed; of several datagrams maybe on one alone."""
    netlink, kernel = pair

    def dump(sequence, body, torn=()):
        for index, kind in enumerate((16, 16, lib.NLMSG_DONE)):
            flags = lib.NLM_F_MULTI | (lib.NLM_F_DUMP_INTR if index in torn else 0)
            header = ffi.new("struct nlmsghdr *", (HEADER + 4, kind, flags, sequence, 0))
            kernel.send(bytes(ffi.buffer(header)) + (body if kind == 16 else bytes(4)))

    dump(1, b"torn", torn=(at,))
    dump(2, b"good")
    assert netlink.dump(message(16, 0, b"")) == [(16, b"good")] * 2


def test_a_dump_that_broke_off_is_an_error(pair):
    netlink, kernel = pair
    header = ffi.new("struct nlmsghdr *", (HEADER + 4, lib.NLMSG_DONE, lib.NLM_F_MULTI, 1, 0))
    kernel.send(bytes(ffi.buffer(header)) + (-errno.ENOMEM).to_bytes(4, sys.byteorder, signed=True))
    with pytest.raises(KernelError, match="ENOMEM"):
        netlink.dump(message(16, 0, b""))


def test_one_object_is_asked_for_answered_and_acknowledged(pair):
    netlink, kernel = pair
    header = ffi.new("struct nlmsghdr *", (HEADER + 4, 16, 0, 1, 0))
    kernel.send(answer(99, errno.EPERM) + bytes(ffi.buffer(header)) + b"body" + answer(1, 0))
    assert netlink.get(message(16, 0, b"")) == b"body"
    kernel.send(answer(2, errno.EINVAL))
    with pytest.raises(KernelError, match="EINVAL"):
        netlink.get(message(16, 0, b""))
    kernel.send(answer(3, 0))
    with pytest.raises(DecodeError, match="did not answer"):
        netlink.get(message(16, 0, b""))


def test_answers_find_their_requests_where_the_sequence_numbers_wrap(pair):
    netlink, kernel = pair
    netlink._sequence = 0xFFFFFFFE
    kernel.send(answer(0, errno.EEXIST) + answer(0xFFFFFFFF, 0))
    assert [ack.errno for ack in netlink.execute([message(16, 0, b""), message(16, 0, b"")])] == [0, errno.EEXIST]


def test_a_message_of_impossible_length_is_refused(pair):
    netlink, kernel = pair
    kernel.send(b"\xff" * 32)
    with pytest.raises(DecodeError, match="impossible length"):
        netlink.execute([message(16, 0, b"")])

# SPDX-License-Identifier: Apache-2.0
"""Our messages against bytes that others wrote: requests as ip (iproute2) sent them, dumps as the kernel gave them."""

import struct
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from kmesh_bpf._abi import lib
from kmesh_bpf.core.state import Direction, Mark, Policy, Sa, SaUsage
from kmesh_bpf.core.view import Key
from kmesh_bpf.kernel import thresholds
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.netlink import HEADER, attributes, messages

DUMPS = Path(__file__).parent / "dumps"
KEY = Key(bytes(range(0x24)))
HERE, THERE = ip_address("10.0.0.1"), ip_address("10.0.0.2")
HERE6, THERE6 = ip_address("fd00::1"), ip_address("fd00::2")
NET1, NET2 = ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")
NET1_6, NET2_6 = ip_network("fd00:1::/64"), ip_network("fd00:2::/64")
ENCRYPT, DECRYPTED, OUTPUT = Mark(0xE0, 0xFF), Mark(0xD0, 0xFF), Mark(0xD0, 0xFFFFFFFF)

SA_IN = Sa(THERE, HERE, 1, KEY, Mark(0x001000D0, 0xFFF01FFF), OUTPUT, 4096)
SA_OUT = Sa(HERE, THERE, 1, KEY)
SA_IN6 = Sa(THERE6, HERE6, 0xABCD0002, KEY, Mark(0xFFF01FD0, 0xFFF01FFF), OUTPUT, any_family=True)
SA_OUT6 = Sa(HERE6, THERE6, 2, KEY, replay_window=32, any_family=True)
OUT = Policy(Direction.OUT, NET1, NET2, ENCRYPT, HERE, THERE, 1)
FWD = Policy(Direction.FWD, NET2, NET1, DECRYPTED, THERE, HERE)
IN6 = Policy(Direction.IN, NET2_6, NET1_6, DECRYPTED, THERE6, HERE6)
POD, ANYBODY = ip_network("10.2.0.7/32"), ip_network("0.0.0.0/0")
BLOCK = Policy(Direction.OUT, ANYBODY, POD, Mark(0xE0, 0xEF), HERE, HERE, block=True)
UNMARKED = Policy(Direction.OUT, ip_network(HERE), POD, Mark(0, 0), HERE, THERE)
POD6, ANYBODY6 = ip_network("fd00:2::7/128"), ip_network("::/0")
EXACT_IN6 = Policy(Direction.IN, POD6, ANYBODY6, Mark(0xD0, 0xDF), THERE6, HERE6)
IN_MIXED = Policy(Direction.IN, NET1, NET2, DECRYPTED, HERE6, THERE6)


def read(name: str) -> list[tuple[int, bytes]]:
    """Give (message type, body) of an annotated dump; what follows a # is for people."""
    found: list[tuple[int, bytearray]] = []
    for line in (DUMPS / f"{name}.dump").read_text().splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["message"]:
            found.append((int(words[1], 16), bytearray()))
        elif words:
            found[-1][1].extend(bytes.fromhex("".join(words)))
    return [(number, bytes(body)) for number, body in found]


STRUCT_BYTES = {lib.XFRM_MSG_NEWSA: 224, lib.XFRM_MSG_DELSA: 24, lib.XFRM_MSG_NEWPOLICY: 168}
STRUCT_BYTES |= {lib.XFRM_MSG_UPDPOLICY: 168, lib.XFRM_MSG_DELPOLICY: 64}
STRUCT_BYTES |= {lib.XFRM_MSG_NEWSPDINFO: 4, lib.XFRM_MSG_GETSPDINFO: 4}
SELECTOR_FAMILY = slice(40, 42)


def parts(number: int, body: bytes) -> tuple[int, bytes, dict[int, bytes]]:
    """Give a request without the order of its attributes, nor what ip and we say differently with one meaning."""
    struct, found = bytearray(body[: STRUCT_BYTES[number]]), dict(attributes(body[STRUCT_BYTES[number] :]))
    if number == lib.XFRM_MSG_NEWSA:
        struct[SELECTOR_FAMILY] = bytes(2)  # ip leaves it to the kernel, which takes that of the SA
        if lib.XFRMA_REPLAY_ESN_VAL in found:
            esn = found[lib.XFRMA_REPLAY_ESN_VAL]
            assert not any(esn[24:]), "the bitmap, which ip leaves out, is empty"
            found[lib.XFRMA_REPLAY_ESN_VAL] = esn[:24]
    if number == lib.XFRM_MSG_DELSA:
        found.pop(XFRMA_SRCADDR, None)  # ip names the source; the kernel looks at it for other protocols only
    return number, bytes(struct), found


XFRMA_SRCADDR = 13


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("sa-in-v4", wire.encode_new_sa(SA_IN)),
        ("sa-out-v4", wire.encode_new_sa(SA_OUT)),
        ("sa-in-v6", wire.encode_new_sa(SA_IN6)),
        ("sa-out-v6", wire.encode_new_sa(SA_OUT6)),
        ("pol-out-v4", wire.encode_set_policy(OUT, replace=False)),
        ("pol-fwd-v4", wire.encode_set_policy(FWD, replace=False)),
        ("pol-in-v6", wire.encode_set_policy(IN6, replace=False)),
        ("pol-v4-in-v6", wire.encode_set_policy(IN_MIXED, replace=False)),
        ("pol-upd", wire.encode_set_policy(replace(OUT, spi=2), replace=True)),
        ("del-sa-v4", wire.encode_delete_sa(SA_IN)),
        ("pol-block-v4", wire.encode_set_policy(BLOCK, replace=False)),
        ("pol-unmarked-v4", wire.encode_set_policy(UNMARKED, replace=False)),
        ("pol-exact-in-v6", wire.encode_set_policy(EXACT_IN6, replace=False)),
        ("del-pol-v4", wire.encode_delete_policy(OUT)),
        ("del-pol-unmarked-v4", wire.encode_delete_policy(UNMARKED)),
        ("set-thresholds", thresholds.encode_set((0, 32, 0, 128))),
        ("get-thresholds", thresholds.encode_get()),
    ],
)
def test_a_request_says_what_ip_says_for_the_same_object(name, ours):
    ((header, body),) = messages(ours)
    ((number, theirs),) = read(name)
    assert parts(int(header.nlmsg_type), body) == parts(number, theirs)
    assert len(ours) == HEADER + len(body)


def test_a_dump_of_sas_gives_ours_and_knows_the_others():
    found = [wire.decode_sa(body) for _, body in read("dump-sas")]
    assert [one.sa for one in found if one and one.sa] == [SA_OUT6, SA_IN6, SA_OUT, SA_IN]
    strangers = [one for one in found if one is None or not one.ours]
    assert len(strangers) == 3  # IPcomp, its IP-in-IP helper, and ESP with another reqid
    assert [one.id.spi for one in strangers if one] == [7]


def test_a_dump_of_policies_gives_ours_and_knows_the_others():
    found = [wire.decode_policy(body).policy for _, body in read("dump-policies")]
    assert sorted((one for one in found if one), key=str) == sorted([replace(OUT, spi=2), FWD, IN6, IN_MIXED], key=str)


def test_policies_that_block_or_have_no_mark_or_a_bit_of_leeway_are_read_back_as_written():
    found = [wire.decode_policy(body).policy for _, body in read("dump-exact-policies")]
    assert sorted(found, key=str) == sorted([BLOCK, UNMARKED, EXACT_IN6], key=str)


def test_the_thresholds_are_read():
    ((_, body),) = read("thresholds")
    assert thresholds.decode(body) == (0, 32, 0, 128)


def test_the_use_of_an_sa_is_read():
    inbound, outbound = (wire.decode_sa(body) for _, body in read("dump-used"))
    three_echoes = 3 * 84
    assert inbound.usage == SaUsage(1795553190, 1795553193, 3, three_echoes, sequence=3)
    assert outbound.usage == SaUsage(1795553190, 1795553193, 3, three_echoes, sequence=3)


def test_packets_outside_of_the_window_and_packets_seen_before_are_both_replays():
    body = bytearray(read("dump-used")[0][1])
    stats = slice(192, 204)  # struct xfrm_stats: replay_window, replay, integrity_failed
    assert body[stats] == bytes(12)
    body[stats] = struct.pack("=III", 3, 40, 500)
    usage = wire.decode_sa(bytes(body)).usage
    assert (usage.replays, usage.integrity_failures) == (43, 500)


def test_without_esn_the_sequence_comes_from_the_short_replay_state():
    _, body = read("sa-out-v4")[0]
    short = bytes.fromhex("0500000002000000" + "00000000")
    attribute = (4 + len(short)).to_bytes(2, "little") + lib.XFRMA_REPLAY_VAL.to_bytes(2, "little") + short
    assert wire.decode_sa(body + attribute).usage.sequence == 5

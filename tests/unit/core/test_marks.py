# SPDX-License-Identifier: Apache-2.0
import hashlib
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core import marks
from kmesh_bpf.core.view import Node
from kmesh_bpf.errors import ConfigError

masks = (
    st.integers(0, 0xFFFFFF).map(lambda bits: bits << 8).filter(lambda mask: mask.bit_count() >= marks.MIN_NODE_BITS)
)


@pytest.mark.parametrize(
    ("node_id", "mark"), [(1, 0x00100000), (0xFFF, 0xFFF00000), (0x1000, 0x100), (0x1FFFF, 0xFFF01F00)]
)
def test_the_default_layout_is_the_design_s(node_id, mark):
    assert marks.node_mark(node_id, contract.NODE_MARK_MASK) == mark


def test_a_pair_of_incarnations_has_the_fingerprint_that_version_1_gave_it():
    here = Node("n1", (ip_address("10.10.0.1"),), "boot-1")
    peer = Node("n2", (ip_address("10.10.0.2"), ip_address("fd00::2")), "boot-2")
    text = b"n1\0boot-1\0n2\0boot-2\x0010.10.0.2\0fd00::2"
    assert marks.incarnations(here, peer) == int(hashlib.sha256(text).hexdigest()[:16], 16)


def test_who_has_another_name_or_other_addresses_has_another_fingerprint():
    here = Node("n1", (ip_address("10.10.0.1"),), "boot-1")
    peer = Node("n2", (ip_address("10.10.0.2"),), "boot-2")
    renamed, moved = replace(peer, name="n3"), replace(peer, addresses=(ip_address("10.10.0.3"),))
    assert len({marks.incarnations(here, one) for one in (peer, renamed, moved)}) == 3


def test_what_contract_version_2_remembers_pairs_by_is_found_again():
    here = Node("n1", (ip_address("10.10.0.1"),), "boot-1")
    peer = Node("n2", (ip_address("10.10.0.2"),), "boot-2")
    assert marks.second_pair(here, peer) == int(hashlib.sha256(b"boot-1\0boot-2").hexdigest()[:16], 16)


@given(masks, st.data())
def test_a_mark_stays_in_its_mask_and_reads_back(mask, data):
    node_id = data.draw(st.integers(0, marks.capacity(mask)))
    mark = marks.node_mark(node_id, mask)
    assert mark & ~mask == 0
    assert marks.node_id(mark, mask) == marks.node_id(mark | ~mask & 0xFFFFFFFF, mask) == node_id


def test_a_mask_of_eight_bits_will_do_and_one_of_seven_will_not():
    assert marks.check_mask(0xFF00) == 0xFF00
    with pytest.raises(ConfigError, match=r"^node mark mask 0x7f00 has room for 127 nodes only: use more bits$"):
        marks.check_mask(0x7F00)


def test_an_id_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="does not fit"):
        marks.node_mark(1 << 17, contract.NODE_MARK_MASK)


@pytest.mark.parametrize(
    ("mask", "why"), [(0, "32-bit"), (1 << 32, "32-bit"), (0xFFF000FF, "low byte"), (0x7F00, "room for 127")]
)
def test_a_mask_that_cannot_be_used_is_refused_with_its_reason(mask, why):
    with pytest.raises(ConfigError, match=why):
        marks.check_mask(mask)


@given(st.integers(-1, 0x1FF))
def test_a_mark_mask_is_good_that_leaves_three_marks_which_differ_and_stay_in_the_low_byte(mask):
    try:
        marks.check_mark_mask(mask)
    except ConfigError as error:
        assert f"mark mask {mask:#x} " in str(error)
        assert not 0 <= mask <= 0xFF or len({0xE0 & mask, 0xD0 & mask, 0xF0 & mask, 0}) < 4
    else:
        found = marks.encrypt_mark(mask), marks.decrypted_mark(mask), marks.again_mark(mask)
        assert found == (0xE0 & mask, 0xD0 & mask, 0xF0 & mask)
        assert len({*found, 0}) == 4


def test_the_mark_mask_that_leaves_bit_0x80_to_others_gives_the_design_s_marks():
    mask = marks.check_mark_mask(0x7F)
    assert (marks.encrypt_mark(mask), marks.decrypted_mark(mask), marks.again_mark(mask)) == (0x60, 0x50, 0x70)

# SPDX-License-Identifier: Apache-2.0
"""Packet in, verdict, mark and counter out: each program on this machine's own kernel, case by case."""

from ipaddress import ip_address

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core.state import Program
from tests.bpf.model import SHOT, UNSPEC
from tests.bpf.node import (
    ADDRESSES,
    FAR,
    FAR_PEER,
    LO,
    LOCAL,
    NEAR,
    NODE_MARK,
    OTHER_DEVICE,
    OURSELVES,
    OUTSIDE,
    PEER,
    POD_DEVICE,
    REMOTE,
    SERVICE,
    STRANGER,
    UPLINK,
    NodeUnderTest,
)
from tests.bpf.packets import (
    ESP,
    TCP,
    UDP,
    frame,
)

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PROGRAMS = pytest.mark.parametrize("program", list(Program), ids=lambda program: program.value)
GUARDS = pytest.mark.parametrize("guard", [Program.LEAK_GUARD, Program.INNER_GUARD], ids=lambda program: program.value)
FOREIGN_BITS = 0x400F_6000  # kube-proxy's, kubelet's, portmap's, Calico's, and one of a node mark
PASSED = (UNSPEC, 0, None)


@VERSIONS
@pytest.mark.parametrize("dst", [LOCAL, REMOTE, FAR, STRANGER, OUTSIDE])
def test_encrypt_marks_what_goes_to_a_managed_pod_ready_or_not_or_to_what_dnat_may_turn_into_one(
    strict, permissive, version, dst
):
    named = ADDRESSES[version]
    wanted = dst in (REMOTE, FAR, OUTSIDE)
    expected = (UNSPEC, FOREIGN_BITS | (0xE0 if wanted else 0x11), "marked" if wanted else None)
    for node in (strict, permissive):
        packet = frame(version, named[LOCAL], named[dst])
        assert node.run(Program.MARK_ENCRYPT, packet, FOREIGN_BITS | 0x11) == expected
        packet = frame(version, named[STRANGER], named[dst])
        unmarked = (UNSPEC, FOREIGN_BITS | 0x11, None)
        assert node.run(Program.MARK_ENCRYPT, packet, FOREIGN_BITS | 0x11, device=OTHER_DEVICE) == unmarked


@VERSIONS
def test_encrypt_marks_for_a_service_or_node_address_from_managed_pods_only(strict, version):
    named = ADDRESSES[version]
    for target in (SERVICE, OURSELVES, PEER, FAR_PEER):
        own, strange = frame(version, named[LOCAL], target[version]), frame(version, named[STRANGER], target[version])
        assert strict.run(Program.MARK_ENCRYPT, own)[1:] == (0xE0, "marked")
        assert strict.run(Program.MARK_ENCRYPT, strange, device=OTHER_DEVICE) == PASSED


@VERSIONS
@pytest.mark.parametrize("src", [REMOTE, FAR])
@pytest.mark.parametrize("device", [POD_DEVICE, OTHER_DEVICE])
def test_no_pod_of_this_node_speaks_as_one_of_another_node(strict, permissive, version, src, device):
    packet = frame(version, ADDRESSES[version][src], ADDRESSES[version][LOCAL])
    for node in (strict, permissive):
        assert node.run(Program.MARK_ENCRYPT, packet, device=device)[::2] == (SHOT, "dropped_spoofed")


@VERSIONS
@pytest.mark.parametrize("dst", [LOCAL, REMOTE, STRANGER])
def test_a_managed_pod_s_address_comes_from_its_own_device_only(strict, version, dst):
    packet = frame(version, ADDRESSES[version][LOCAL], ADDRESSES[version][dst])
    assert strict.run(Program.MARK_ENCRYPT, packet, device=POD_DEVICE)[0] == UNSPEC
    assert strict.run(Program.MARK_ENCRYPT, packet, device=OTHER_DEVICE) == (SHOT, 0, "dropped_spoofed")


@pytest.mark.parametrize(
    ("version", "src", "passes"),
    [
        (4, ADDRESSES[4][LOCAL], True),
        (4, ADDRESSES[4][STRANGER], False),
        (4, PEER[4], False),
        (4, str(ip_address(0)), True),
        (4, "0.0.0.1", False),
        (4, "169.254.0.1", True),
        (4, "169.253.255.255", False),
        (4, "169.255.0.0", False),
        (6, ADDRESSES[6][STRANGER], False),
        (6, OURSELVES[6], False),
        (6, "::", True),
        (6, "::1", False),
        (6, "0:0:0:1::", False),
        (6, "1::", False),
        (6, "fe80::1", True),
        (6, "febf::1", True),
        (6, "fec0::1", False),
        (6, "fe7f::1", False),
    ],
)
def test_a_managed_pod_s_device_carries_its_addresses_and_those_of_the_link(strict, version, src, passes):
    packet = frame(version, src, ADDRESSES[version][STRANGER])
    expected = PASSED if passes else (SHOT, 0, "dropped_spoofed")
    assert strict.run(Program.MARK_ENCRYPT, packet, device=POD_DEVICE) == expected
    if src != ADDRESSES[version][LOCAL]:
        assert strict.run(Program.MARK_ENCRYPT, packet, device=OTHER_DEVICE) == PASSED


@VERSIONS
@pytest.mark.parametrize("mark", [0, 0x12, 0x4000_00E0])
def test_esp_of_a_known_peer_gets_its_node_mark_and_keeps_other_bits(strict, version, mark):
    packet = frame(version, PEER[version], OURSELVES[version], ESP)
    mask = contract.NODE_MARK_MASK | contract.MARK_MASK
    wanted = ((mark | 0x000F_6000) & ~mask) | NODE_MARK | 0xD0
    assert strict.run(Program.MARK_DECRYPT, packet, mark | 0x000F_6000) == (UNSPEC, wanted, "esp_known_peer")
    assert strict.run(Program.MARK_DECRYPT, packet, wanted) == (UNSPEC, wanted, None)  # on a bridge above its port


@VERSIONS
def test_esp_of_a_stranger_is_counted_and_loses_only_a_stale_mark(strict, version):
    packet = frame(version, ADDRESSES[version][STRANGER], ADDRESSES[version][LOCAL], ESP)
    assert strict.run(Program.MARK_DECRYPT, packet, 0x77) == (UNSPEC, 0x77, "esp_unknown_peer")
    assert strict.run(Program.MARK_DECRYPT, packet, 0x40D0) == (UNSPEC, 0x4000, "esp_unknown_peer")


@VERSIONS
@pytest.mark.parametrize("protocol", [UDP, TCP, ESP])
def test_clear_text_between_managed_pods_of_two_nodes_is_dropped(strict, version, protocol):
    named = ADDRESSES[version]
    for src in (REMOTE, FAR):
        packet = frame(version, named[src], named[LOCAL], protocol)
        assert strict.run(Program.MARK_DECRYPT, packet)[::2] == (SHOT, "dropped_clear_text")


@VERSIONS
@pytest.mark.parametrize("protocol", [UDP, TCP, ESP])
def test_clear_text_to_this_node_s_address_is_dropped_where_the_pod_s_node_would_have_encrypted_it(
    strict, permissive, version, protocol
):
    # DNAT may turn that address into a managed pod's (hostPort, NodePort).
    named, here = ADDRESSES[version], OURSELVES[version]
    packet = frame(version, named[NEAR], here, protocol)
    assert strict.run(Program.MARK_DECRYPT, packet)[::2] == (SHOT, "dropped_clear_text")
    assert permissive.run(Program.MARK_DECRYPT, packet, 0x40D0) == (UNSPEC, 0x4000, "allowed_clear_text")
    for source, destination, mark in (
        (named[REMOTE], here, 0x30),
        (named[FAR], here, 0x30),
        (named[STRANGER], here, 0),
        (PEER[version], here, 0),
        (named[NEAR], PEER[version], 0x30),
        (named[NEAR], FAR_PEER[version], 0x30),
        (named[NEAR], named[OUTSIDE], 0x30),
        (named[NEAR], named[STRANGER], 0x30),
    ):
        assert strict.run(Program.MARK_DECRYPT, frame(version, source, destination)) == (UNSPEC, mark, None)


@VERSIONS
@pytest.mark.parametrize(
    "target",
    [OURSELVES, PEER, SERVICE, *({v: ADDRESSES[v][one] for v in (4, 6)} for one in (OUTSIDE, STRANGER, REMOTE))],
)
def test_what_a_pod_managed_elsewhere_sends_in_clear_and_dnat_may_turn_into_one_of_ours_is_noted_on_it(
    strict, masked, version, target
):
    """Whoever masquerades it on its way to the pod changes the source, not the mark."""
    named, noted = ADDRESSES[version], FOREIGN_BITS | 0x30
    clear = frame(version, named[FAR], target[version])
    assert strict.run(Program.MARK_DECRYPT, clear, FOREIGN_BITS) == (UNSPEC, noted, None)
    assert strict.run(Program.MARK_DECRYPT, clear, noted) == (UNSPEC, noted, None)  # on a bridge above its port
    assert strict.run(Program.MARK_DECRYPT, clear, 0xE0) == (UNSPEC, 0x30, "stale_mark_cleared")
    assert masked.run(Program.MARK_DECRYPT, clear, 0x80) == (UNSPEC, 0xB0, None)
    of_nobody = frame(version, named[STRANGER], target[version])
    assert strict.run(Program.MARK_DECRYPT, of_nobody, noted) == (UNSPEC, FOREIGN_BITS, "stale_mark_cleared")


@VERSIONS
@pytest.mark.parametrize("protocol", [UDP, TCP, ESP])
@pytest.mark.parametrize("src", [REMOTE, NEAR, FAR, LOCAL, STRANGER, "ourselves"])
@pytest.mark.parametrize("dst", [LOCAL, STRANGER, REMOTE])
@pytest.mark.parametrize("mark", [0, 0x40_0030, 0xD0, 0xF0, 0xB0])
def test_no_managed_pod_gets_in_clear_what_one_managed_elsewhere_sent_whatever_nat_has_made_of_it(
    strict, permissive, version, protocol, src, dst, mark
):
    source = OURSELVES[version] if src == "ourselves" else ADDRESSES[version][src]
    packet = frame(version, source, ADDRESSES[version][dst], protocol)
    noted, passed = mark == 0x40_0030, (UNSPEC, mark, None)
    in_clear = dst == LOCAL and (noted or src in (REMOTE, NEAR, FAR))
    dropped, counted = (SHOT, mark, "dropped_clear_text"), (UNSPEC, mark, "allowed_clear_text")
    assert strict.run(Program.POD_GUARD, packet, mark) == (dropped if in_clear else passed)
    # What is not noted was for the pod when it came, and is counted already.
    assert permissive.run(Program.POD_GUARD, packet, mark) == (counted if in_clear and noted else passed)


def test_where_no_bit_is_left_to_note_it_by_the_mark_of_what_was_decrypted_is_not_taken_for_it(roots, devices):
    node = NodeUnderTest(roots / "two-bits", devices, mark_mask=0x30)
    named = ADDRESSES[4]
    assert node.run(Program.MARK_DECRYPT, frame(4, named[FAR], OURSELVES[4])) == PASSED
    for mark in (0, 0x30, 0x30):
        assert node.run(Program.POD_GUARD, frame(4, OURSELVES[4], named[LOCAL]), mark) == (UNSPEC, mark, None)
        forged = frame(4, named[FAR], named[LOCAL])
        assert node.run(Program.POD_GUARD, forged, mark) == (SHOT, mark, "dropped_clear_text")


@VERSIONS
def test_that_a_pod_s_node_encrypts_what_goes_to_nodes_changes_nothing_about_what_is_sent_to_that_pod(
    strict, permissive, version
):
    named = ADDRESSES[version]
    for node in (strict, permissive):
        for source in (LOCAL, STRANGER):
            for mark in (0, 0xE0, 0xF0, 0x12):
                for program in (Program.MARK_ENCRYPT, Program.LEAK_GUARD, Program.INNER_GUARD):
                    device = OTHER_DEVICE if source == STRANGER and program is Program.MARK_ENCRYPT else None
                    near, remote = (
                        node.run(program, frame(version, named[source], named[one]), mark, device=device)
                        for one in (NEAR, REMOTE)
                    )
                    assert near == remote


@VERSIONS
def test_permissive_lets_clear_text_in_counts_it_and_wipes_the_mark(permissive, version):
    named = ADDRESSES[version]
    packet = frame(version, named[REMOTE], named[LOCAL])
    assert permissive.run(Program.MARK_DECRYPT, packet, 0x40D0) == (UNSPEC, 0x4000, "allowed_clear_text")


@VERSIONS
@pytest.mark.parametrize(("src", "dst"), [(REMOTE, STRANGER), (STRANGER, LOCAL), (LOCAL, LOCAL), (REMOTE, FAR)])
def test_clear_text_of_any_other_pair_is_let_in_untouched_but_for_a_note_on_what_a_managed_pod_sent(
    strict, version, src, dst
):
    packet = frame(version, ADDRESSES[version][src], ADDRESSES[version][dst])
    left = 0x30 if src == REMOTE else 0x12
    assert strict.run(Program.MARK_DECRYPT, packet, FOREIGN_BITS | 0x12) == (UNSPEC, FOREIGN_BITS | left, None)


@VERSIONS
@pytest.mark.parametrize(
    ("mark", "left"), [(0xD0, 0), (0xE0, 0), (0xF0, 0), (0x40D0, 0x4000), (0x12, 0x12), (0x40E1, 0x40E1)]
)
def test_a_mark_of_ours_on_a_clear_packet_is_stale_and_wiped_off_whoever_set_it(strict, version, mark, left):
    """0xd0 without a security path is no proof of decryption: other software uses it too."""
    named = ADDRESSES[version]
    packet = frame(version, named[STRANGER], named[LOCAL])
    expected = "stale_mark_cleared" if left != mark else None
    assert strict.run(Program.MARK_DECRYPT, packet, mark) == (UNSPEC, left, expected)
    assert strict.run(Program.MARK_DECRYPT, packet, mark, device=LO) == (UNSPEC, mark, None)
    assert strict.run(Program.MARK_DECRYPT, frame(version, named[REMOTE], named[LOCAL]), mark)[0] == SHOT


@VERSIONS
@pytest.mark.parametrize("mark", [0xE0, 0xF0, 0xD0])
def test_a_mark_that_a_pod_of_this_node_got_on_a_bridge_s_port_stays_on_the_bridge(strict, version, mark):
    named = ADDRESSES[version]
    packet = frame(version, named[LOCAL], named[REMOTE])
    assert strict.run(Program.MARK_DECRYPT, packet, mark, device=UPLINK) == (UNSPEC, mark, None)


def unasked(guard, mark):
    """Give the mark that is left where a packet leaves the node: none that asks for encryption."""
    return mark & ~0xFF if guard is Program.LEAK_GUARD and mark & 0xFF in (0xE0, 0xF0) else mark


@GUARDS
@VERSIONS
@pytest.mark.parametrize("src", [LOCAL, REMOTE, STRANGER])
@pytest.mark.parametrize("dst", [LOCAL, REMOTE, FAR, STRANGER, OUTSIDE])
@pytest.mark.parametrize("mark", [0, 0x40E0, 0xF0, 0xD0])
@pytest.mark.parametrize("protocol", [UDP, ESP])
def test_the_guards_drop_what_should_have_been_encrypted(strict, permissive, guard, version, src, dst, mark, protocol):
    named = ADDRESSES[version]
    packet = frame(version, named[src], named[dst], protocol)
    should = dst in (REMOTE, FAR) and (src == LOCAL or mark in (0x40E0, 0xF0))
    left = unasked(guard, mark)
    dropped, passed = (SHOT, mark, "dropped_by_guard"), (UNSPEC, left, None)
    assert strict.run(guard, packet, mark) == (dropped if should else passed)
    lenient = (UNSPEC, left, "allowed_clear_text") if dst == FAR else dropped
    assert permissive.run(guard, packet, mark) == (lenient if should else passed)


@GUARDS
@VERSIONS
@pytest.mark.parametrize("src", [LOCAL, "ourselves", STRANGER])
@pytest.mark.parametrize("mark", [0, 0x40E0, 0xF0, 0xD0])
@pytest.mark.parametrize("protocol", [UDP, ESP])
def test_what_goes_to_a_node_that_takes_it_encrypted_leaves_as_esp_of_ours(
    strict, permissive, guard, version, src, mark, protocol
):
    source = OURSELVES[version] if src == "ourselves" else ADDRESSES[version][src]
    should = mark == 0x40E0 and (protocol != ESP or src == LOCAL)
    dropped, passed = (SHOT, mark, "dropped_by_guard"), (UNSPEC, unasked(guard, mark), None)
    for node in (strict, permissive):
        assert node.run(guard, frame(version, source, PEER[version], protocol), mark) == (dropped if should else passed)
        assert node.run(guard, frame(version, source, FAR_PEER[version], protocol), mark) == passed


@VERSIONS
def test_a_bit_that_somebody_else_owns_is_neither_asked_nor_touched(masked, version):
    named = ADDRESSES[version]
    out = frame(version, named[LOCAL], named[REMOTE])
    esp = frame(version, PEER[version], OURSELVES[version], ESP)
    clear = frame(version, named[STRANGER], named[LOCAL])
    for theirs in (0, 0x80):
        assert masked.run(Program.MARK_ENCRYPT, out, theirs | 0x11) == (UNSPEC, theirs | 0x60, "marked")
        assert masked.run(Program.MARK_DECRYPT, esp, theirs)[1] == NODE_MARK | theirs | 0x50
        for own in (0x60, 0x50, 0x70):
            wiped = (UNSPEC, theirs, "stale_mark_cleared")
            assert masked.run(Program.MARK_DECRYPT, clear, theirs | own) == wiped
        for own in (0x60, 0x70):
            unmanaged = frame(version, named[STRANGER], named[FAR])
            dropped = (SHOT, theirs | own, "dropped_by_guard")
            assert masked.run(Program.LEAK_GUARD, unmanaged, theirs | own) == dropped
        to_peer = frame(version, OURSELVES[version], PEER[version])
        assert masked.run(Program.LEAK_GUARD, to_peer, theirs | 0x60)[0] == SHOT
        assert masked.run(Program.LEAK_GUARD, to_peer, theirs | 0x40)[0] == UNSPEC

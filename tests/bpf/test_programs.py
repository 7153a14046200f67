"""Packet in, verdict and mark out: each program on this machine's own kernel, against a model in Python."""

import shutil
import struct
import uuid
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmesh_bpf import contract
from kmesh_bpf.core.state import PeerEntry, PodFlags, Program
from kmesh_bpf.errors import LayoutError, LoadError, MapFullError, UnsupportedError
from kmesh_bpf.kernel import bpf, programs
from kmesh_bpf.kernel.maps import Maps, open_maps
from kmesh_bpf.kernel.programs import Settings, ensure_loaded, source_folder

UNSPEC, SHOT = 0xFFFFFFFF, 2
READY = PodFlags.REMOTE | PodFlags.READY
LOCAL, REMOTE, FAR, STRANGER = "local", "remote", "far", "stranger"
ADDRESSES = {
    4: {LOCAL: "10.244.1.10", REMOTE: "10.244.2.10", FAR: "10.244.3.10", STRANGER: "192.0.2.1"},
    6: {LOCAL: "fd00:1::10", REMOTE: "fd00:2::10", FAR: "fd00:3::10", STRANGER: "2001:db8::1"},
}
PEER = {4: "10.10.0.2", 6: "fd00:10::2"}
SERVICE = {4: "10.96.1.1", 6: "fd00:96::1"}
NODE_MARK = 0x00200100
ESP, UDP, TCP = 50, 17, 6


def ip4(src, dst, protocol=UDP, options=b"", fragment=0, payload=bytes(32)):
    length = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | (5 + len(options) // 4), 0, length, 1, fragment, 64, protocol, 0)
    return head + ip_address(src).packed + ip_address(dst).packed + options + payload


def ip6(src, dst, protocol=UDP, extensions=b"", payload=bytes(32)):
    head = struct.pack("!IHBB", 0x60000000, len(extensions) + len(payload), protocol, 64)
    return head + ip_address(src).packed + ip_address(dst).packed + extensions + payload


def frame(version, src, dst, protocol=UDP, **more):
    body = (ip4 if version == 4 else ip6)(src, dst, protocol, **more)
    return bytes(12) + (b"\x08\x00" if version == 4 else b"\x86\xdd") + body


class Loaded:
    def __init__(self, root, **changes):
        self.root = root
        self.build = ensure_loaded(root, Settings(**changes))
        self.maps = Maps(self.build.maps)
        for version, named in ADDRESSES.items():
            self.maps.set_pod(ip_address(named[LOCAL]), PodFlags.LOCAL)
            self.maps.set_pod(ip_address(named[REMOTE]), READY)
            self.maps.set_pod(ip_address(named[FAR]), PodFlags.REMOTE)
            self.maps.set_peer(ip_address(PEER[version]), PeerEntry(5, NODE_MARK, 1, 7))
        self.maps.add_service(ip_network("10.96.0.0/16"))
        self.maps.add_service(ip_network("fd00:96::/64"))

    def run(self, program, packet, mark=0):
        """Give (verdict, mark, counter raised or None)."""
        before = self.maps.counters()
        result = bpf.test_run(self.build.path(program), packet, mark)
        raised = [name for name, value in self.maps.counters().items() if value != before[name]]
        assert len(raised) <= 1
        assert result.packet == packet
        return result.verdict, result.mark, raised[0] if raised else None


@pytest.fixture(scope="module")
def roots():
    folder = Path("/sys/fs/bpf") / f"kmesh-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def strict(roots):
    return Loaded(roots / "strict")


@pytest.fixture(scope="module")
def permissive(roots):
    return Loaded(roots / "permissive", strict=False)


VERSIONS = pytest.mark.parametrize("version", [4, 6])


@VERSIONS
@pytest.mark.parametrize("src", [LOCAL, REMOTE, STRANGER])
@pytest.mark.parametrize("dst", [LOCAL, REMOTE, FAR, STRANGER])
def test_encrypt_marks_only_from_a_local_managed_pod_to_one_on_a_ready_peer(strict, version, src, dst):
    named = ADDRESSES[version]
    verdict, mark, counter = strict.run(Program.MARK_ENCRYPT, frame(version, named[src], named[dst]), 0x4000_0011)
    wanted = (src, dst) == (LOCAL, REMOTE)
    assert verdict == UNSPEC
    assert mark == (0x4000_00E0 if wanted else 0x4000_0011)
    assert counter == ("marked" if wanted else None)


@VERSIONS
def test_encrypt_marks_for_a_service_address_from_managed_pods_only(strict, version):
    named = ADDRESSES[version]
    assert strict.run(Program.MARK_ENCRYPT, frame(version, named[LOCAL], SERVICE[version]))[1:] == (0xE0, "marked")
    assert strict.run(Program.MARK_ENCRYPT, frame(version, named[STRANGER], SERVICE[version]))[1:] == (0, None)


@VERSIONS
@pytest.mark.parametrize("mark", [0, 0x12, 0x4000_00E0])
def test_esp_of_a_known_peer_gets_its_node_mark_and_keeps_other_bits(strict, version, mark):
    packet = frame(version, PEER[version], "10.10.0.1" if version == 4 else "fd00:10::1", ESP)
    verdict, got, counter = strict.run(Program.MARK_DECRYPT, packet, mark | 0x000F_0000)
    mask = contract.NODE_MARK_MASK | contract.MARK_MASK
    assert (verdict, counter) == (UNSPEC, "esp_known_peer")
    assert got == ((mark | 0x000F_0000) & ~mask) | NODE_MARK | 0xD0


@VERSIONS
def test_esp_of_a_stranger_is_counted_and_untouched(strict, version):
    packet = frame(version, ADDRESSES[version][STRANGER], ADDRESSES[version][LOCAL], ESP)
    assert strict.run(Program.MARK_DECRYPT, packet, 0x77) == (UNSPEC, 0x77, "esp_unknown_peer")


@VERSIONS
@pytest.mark.parametrize("protocol", [UDP, TCP, ESP])
def test_clear_text_between_managed_pods_of_two_nodes_is_dropped(strict, version, protocol):
    named = ADDRESSES[version]
    for src in (REMOTE, FAR):
        packet = frame(version, named[src], named[LOCAL], protocol)
        assert strict.run(Program.MARK_DECRYPT, packet)[::2] == (SHOT, "dropped_clear_text")


@VERSIONS
def test_permissive_lets_clear_text_in_and_counts_it(permissive, version):
    named = ADDRESSES[version]
    packet = frame(version, named[REMOTE], named[LOCAL])
    assert permissive.run(Program.MARK_DECRYPT, packet)[::2] == (UNSPEC, "allowed_clear_text")


@VERSIONS
@pytest.mark.parametrize(("mark", "left"), [(0xD0, 0), (0xE0, 0), (0x40D0, 0x4000), (0x12, 0x12), (0x40E1, 0x40E1)])
def test_a_mark_of_ours_on_a_clear_packet_is_stale_and_wiped_off_whoever_set_it(strict, version, mark, left):
    """0xd0 without a security path is no proof of decryption: other software uses it too."""
    named = ADDRESSES[version]
    packet = frame(version, named[STRANGER], named[LOCAL])
    expected = "stale_mark_cleared" if left != mark else None
    assert strict.run(Program.MARK_DECRYPT, packet, mark) == (UNSPEC, left, expected)
    assert strict.run(Program.MARK_DECRYPT, frame(version, named[REMOTE], named[LOCAL]), mark)[0] == SHOT


@VERSIONS
@pytest.mark.parametrize("src", [LOCAL, REMOTE, STRANGER])
@pytest.mark.parametrize("dst", [LOCAL, REMOTE, FAR, STRANGER])
@pytest.mark.parametrize("mark", [0, 0xE0, 0xD0])
@pytest.mark.parametrize("protocol", [UDP, ESP])
def test_the_guard_drops_what_should_have_been_encrypted(strict, permissive, version, src, dst, mark, protocol):
    named = ADDRESSES[version]
    packet = frame(version, named[src], named[dst], protocol)
    should = dst in (REMOTE, FAR) and (src == LOCAL or mark == 0xE0)
    assert strict.run(Program.LEAK_GUARD, packet, mark) == (
        (SHOT, mark, "dropped_by_guard") if should else (UNSPEC, mark, None)
    )
    lenient = permissive.run(Program.LEAK_GUARD, packet, mark)
    if should and dst == FAR:
        assert lenient == (UNSPEC, mark, "allowed_clear_text")
    else:
        assert lenient == strict.run(Program.LEAK_GUARD, packet, mark)


def test_ip_options_and_fragments_change_nothing(strict):
    named = ADDRESSES[4]
    for more in ({"options": b"\x01" * 8}, {"fragment": 0x2000}, {"fragment": 0x0010}, {"options": b"\x07" * 40}):
        assert strict.run(Program.MARK_ENCRYPT, frame(4, named[LOCAL], named[REMOTE], **more))[1] == 0xE0
        assert strict.run(Program.MARK_DECRYPT, frame(4, PEER[4], "10.10.0.1", ESP, **more))[2] == "esp_known_peer"


HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ([HOP], True),
        ([ROUTING, OPTIONS], True),
        ([FRAGMENT], True),
        ([HOP, ROUTING, FRAGMENT, OPTIONS], True),
        ([OPTIONS] * 6, True),
        ([OPTIONS] * 7, False),
    ],
)
def test_esp_is_found_behind_ipv6_extension_headers_up_to_six(strict, chain, found):
    extensions = b""
    for number, following in zip(chain, [*chain[1:], ESP], strict=True):
        # A later fragment: offset 185 units; its header still names ESP.
        rest = struct.pack("!HI", 185 << 3, 1) if number == FRAGMENT else bytes(6)
        extensions += bytes([following, 0]) + rest
    packet = frame(6, PEER[6], "fd00:10::1", chain[0], extensions=extensions)
    assert strict.run(Program.MARK_DECRYPT, packet)[2] == ("esp_known_peer" if found else None)


@pytest.mark.parametrize("program", list(Program))
@pytest.mark.parametrize("ethertype", [0x0806, 0x8100, 0x88CC])
def test_what_is_not_ip_passes_untouched(strict, program, ethertype):
    packet = bytes(12) + ethertype.to_bytes(2, "big") + bytes(60)
    assert strict.run(program, packet, 0x12) == (UNSPEC, 0x12, None)


@pytest.mark.parametrize("program", list(Program))
def test_a_wrong_version_or_header_length_is_a_parse_failure(strict, program):
    for first in (0x55, 0x44):
        packet = bytes(12) + b"\x08\x00" + bytes([first]) + ip4("10.0.0.1", "10.0.0.2")[1:]
        assert strict.run(program, packet) == (UNSPEC, 0, "parse_failure")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(Program)),
    st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]),
    st.binary(min_size=40, max_size=120),
    st.integers(0, 0xFFFFFFFF),
)
def test_no_bytes_whatever_give_another_verdict_or_touch_foreign_mark_bits(strict, program, ethertype, body, mark):
    verdict, after, _ = strict.run(program, bytes(12) + ethertype + body, mark)
    assert verdict in (UNSPEC, SHOT)
    assert (mark ^ after) & ~(contract.NODE_MARK_MASK | contract.MARK_MASK) == 0


def test_the_same_sources_and_settings_compile_nothing(strict, monkeypatch):
    monkeypatch.setattr(programs, "_run_child", lambda *_: pytest.fail("compiled"))
    assert not ensure_loaded(strict.root, Settings()).compiled


def test_other_settings_make_another_build_over_the_same_maps_and_the_old_one_stays_until_told(roots):
    root = roots / "change"
    first = ensure_loaded(root, Settings())
    second = ensure_loaded(root, Settings(strict=False))
    assert second.compiled
    assert first.maps == second.maps
    assert first.path(Program.LEAK_GUARD).exists()
    programs.remove_stale(root, second)
    assert not first.programs.exists()
    assert second.path(Program.LEAK_GUARD).exists()


def test_a_broken_source_is_an_error_with_the_compiler_s_words_and_leaves_nothing_complete(roots, tmp_path):
    shutil.copytree(source_folder(), tmp_path / "bpf", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "bpf/tc_leak_guard.c").open("a") as file:
        file.write("int broken(void) { return nothing; }\n")
    with pytest.raises(LoadError, match="nothing") as caught:
        ensure_loaded(roots / "broken", Settings(), tmp_path / "bpf")
    assert "error:" in caught.value.log
    assert ensure_loaded(roots / "broken", Settings()).compiled


def test_a_full_map_is_an_error_with_its_name_and_capacity(roots):
    maps = Maps(ensure_loaded(roots / "full", Settings(max_pods=4)).maps)
    for number in range(4):
        maps.set_pod(ip_address(f"10.0.0.{number}"), PodFlags.LOCAL)
    with pytest.raises(MapFullError, match=r"kmesh_pods4 is full \(4 entries\)"):
        maps.set_pod(ip_address("10.0.0.9"), PodFlags.LOCAL)
    maps.set_pod(ip_address("10.0.0.1"), PodFlags.REMOTE)


def test_two_hundred_thousand_pods_are_written_and_read_back(roots):
    maps = Maps(ensure_loaded(roots / "many", Settings()).maps)
    wanted = {ip_address(0x0A000000 + number): PodFlags.LOCAL for number in range(200_000)}
    for address, flags in wanted.items():
        maps.set_pod(address, flags)
    assert maps.pods() == wanted


def test_nothing_pinned_and_another_layout_are_said_clearly(roots):
    with pytest.raises(UnsupportedError, match="is the daemon running"):
        open_maps(roots / "nowhere")
    (roots / "older/maps-0-4").mkdir(parents=True)
    with pytest.raises(LayoutError, match=r"holds maps-0-4; this version reads maps-1"):
        open_maps(roots / "older")


def test_identity_services_and_peers_read_back(strict):
    strict.maps.set_identity("i" * 36, contract.NODE_MARK_MASK)
    assert strict.maps.identity() == "i" * 36
    assert strict.maps.services() == {ip_network("10.96.0.0/16"), ip_network("fd00:96::/64")}
    assert strict.maps.peers()[ip_address(PEER[6])] == PeerEntry(5, NODE_MARK, 1, 7)

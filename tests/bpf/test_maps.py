# SPDX-License-Identifier: Apache-2.0
"""The pinned maps as Python reads and writes them, and their layout as both compilers see it."""

import ctypes
import errno
import os
import time
from ipaddress import ip_address, ip_network

import pytest

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi
from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.errors import DecodeError, EncodeError, KernelError, LayoutError, MapFullError, UnsupportedError
from kmesh_bpf.kernel import bcc_loader, bpf, maps, programs
from kmesh_bpf.kernel.maps import Maps, open_maps
from kmesh_bpf.kernel.programs import Settings, ensure_loaded
from tests.bpf.node import NODE_MARK, PEER, READY

MANY = 200_000
PATIENCE_SECONDS = 3  # for a dump of twice as many, on a busy machine
FIRST = {4: ip_address("10.0.0.0"), 6: ip_address("fd00::")}


@pytest.fixture
def small(root):
    return Maps(ensure_loaded(root, Settings(max_pods=4)).maps)


def test_pods_peers_services_and_identity_read_back_and_go(small):
    pods = {ip_address("10.0.0.1"): PodFlags.LOCAL, ip_address("fd00::1"): READY}
    peers = {
        ip_address("10.9.0.1"): PeerEntry(1, 2, 3, 2**64 - 1, 2**32 - 1, 2**64 - 2),
        ip_address("fd09::1"): PeerEntry(2**17 - 1, 0, 0, 0),
    }
    services = {ip_network("10.96.0.0/12"), ip_network("0.0.0.0/0"), ip_network("fd00:96::/112")}
    assert (small.identity(), small.node_mark_mask()) == (None, 0)
    for address, flags in pods.items():
        small.set_pod(address, flags)
    for address, entry in peers.items():
        small.set_peer(address, entry)
    for cidr in services:
        small.add_service(cidr)
    small.set_identity("i" * 36, 0xFFF0_0000)
    assert (small.pods(), small.peers(), small.services()) == (pods, peers, services)
    assert (small.identity(), small.node_mark_mask()) == ("i" * 36, 0xFFF0_0000)
    assert [small.count(name) for name in ("kmesh_pods4", "kmesh_pods6", "kmesh_peers4")] == [1, 1, 1]
    assert (small.capacity("kmesh_pods4"), small.capacity("kmesh_peers6")) == (4, contract.MAX_PEERS)
    for _ in range(2):  # what is not there is as good as deleted
        for address in pods:
            small.delete_pod(address)
        for address in peers:
            small.delete_peer(address)
        for cidr in services:
            small.delete_service(cidr)
    assert (small.pods(), small.peers(), small.services()) == ({}, {}, frozenset())


def test_sources_devices_and_former_pairs_read_back_and_go(small):
    sources = {ip_address("10.0.0.1"): 7, ip_address("fd00::1"): 2**31 - 1}
    devices, formers = frozenset({7, 2**31 - 1}), {0: 1, 2**64 - 1: 2**32 - 1}
    assert (small.sources(), small.pod_devices(), small.formers()) == ({}, frozenset(), {})
    for address, ifindex in sources.items():
        small.set_source(address, ifindex)
    for ifindex in devices:
        small.add_pod_device(ifindex)
    for pair, spi in formers.items():
        small.set_former(pair, spi)
    assert (small.sources(), small.pod_devices(), small.formers()) == (sources, devices, formers)
    for _ in range(2):
        for address in sources:
            small.delete_source(address)
        for ifindex in devices:
            small.delete_pod_device(ifindex)
        for pair in formers:
            small.delete_former(pair)
    assert (small.sources(), small.pod_devices(), small.formers()) == ({}, frozenset(), {})


def test_the_thresholds_found_stay_whatever_incarnation_is_remembered(small):
    assert small.thresholds() is None
    small.set_thresholds((0, 32, 0, 128))
    assert small.identity() is None
    for incarnation in ("i" * 36, "short"):
        small.set_identity(incarnation, 0xFFF0_0000)
        assert (small.identity(), small.node_mark_mask()) == (incarnation, 0xFFF0_0000)
        assert small.thresholds() == (0, 32, 0, 128)
    small.set_thresholds((32, 16, 128, 64))
    assert (small.identity(), small.node_mark_mask()) == ("short", 0xFFF0_0000)
    assert small.thresholds() == (32, 16, 128, 64)
    small.set_thresholds(None)
    assert (small.identity(), small.thresholds()) == ("short", None)


def test_counters_are_those_of_the_contract_and_add_up(strict):
    by_cpu = strict.maps.counters_per_cpu()
    assert tuple(by_cpu) == contract.COUNTERS
    assert {len(values) for values in by_cpu.values()} == {maps.possible_cpus()}
    assert {name: sum(values) for name, values in by_cpu.items()} == strict.maps.counters()
    assert strict.maps.peers()[ip_address(PEER[6])].node_mark == NODE_MARK


@pytest.mark.parametrize(("text", "number"), [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 8), ("0,2\n", 2)])
def test_possible_cpus_are_counted_with_their_holes(tmp_path, monkeypatch, text, number):
    (tmp_path / "possible").write_text(text)
    monkeypatch.setattr(maps, "CPUS", tmp_path / "possible")
    assert maps.possible_cpus() == number


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_map_is_an_error_with_its_name_and_capacity(small, version):
    pods = {FIRST[version] + number: PodFlags.LOCAL for number in range(4)}
    small.set_pods(pods)
    full = rf"kmesh_pods{version} is full \(4 entries\)"
    with pytest.raises(MapFullError, match=full):
        small.set_pod(FIRST[version] + 9, PodFlags.LOCAL)
    with pytest.raises(MapFullError, match=full) as caught:
        small.set_pods({FIRST[version] + 9: PodFlags.LOCAL})
    assert (caught.value.map_name, caught.value.capacity) == (f"kmesh_pods{version}", 4)
    small.set_pod(FIRST[version], PodFlags.REMOTE)
    assert small.pods() == {**pods, FIRST[version]: PodFlags.REMOTE}


def test_a_full_trie_is_an_error_with_its_name_and_capacity(small):
    cidrs = list(ip_network("10.0.0.0/16").subnets(new_prefix=24))
    for cidr in cidrs[: contract.MAX_SERVICES]:
        small.add_service(cidr)
    with pytest.raises(MapFullError, match="kmesh_svcs4 is full"):
        small.add_service(cidrs[contract.MAX_SERVICES])


def test_two_hundred_thousand_pods_of_each_family_are_written_and_read_back_fast(root):
    opened = Maps(ensure_loaded(root, Settings()).maps)
    everything = {}
    for first in FIRST.values():
        wanted = {first + number: READY if number % 3 else PodFlags.LOCAL for number in range(MANY)}
        everything |= wanted
        start = time.perf_counter()
        opened.set_pods(wanted)
        written = time.perf_counter()
        found = opened.pods()
        read = time.perf_counter()
        assert found == everything
        print(
            f"{MANY} IPv{first.version} pods written in {written - start:.2f} s, {len(found)} read in {read - written:.2f} s"
        )
        assert read - written < PATIENCE_SECONDS


@pytest.mark.parametrize("refusal", [-errno.EINVAL, -bpf.ENOTSUPP])
def test_kernels_without_batch_operations_are_served_entry_by_entry(small, monkeypatch, refusal):
    monkeypatch.setattr(bpf, "map_update_batch", lambda *_: refusal)
    monkeypatch.setattr(bpf, "map_lookup_batch", lambda *_: (refusal, 0))
    wanted = {FIRST[4] + number: PodFlags.LOCAL for number in range(4)}
    small.set_pods(wanted)
    assert small.pods() == wanted
    with pytest.raises(MapFullError):
        small.set_pods({FIRST[4] + 9: PodFlags.LOCAL})


def test_a_dump_that_breaks_off_is_an_error_and_not_a_smaller_answer(small, monkeypatch):
    small.set_pod(FIRST[4], PodFlags.LOCAL)
    monkeypatch.setattr(bpf, "map_lookup_batch", lambda *_: (-errno.EINTR, 0))
    with pytest.raises(KernelError, match=r"dump .*kmesh_pods4"):
        small.pods()


def test_nothing_pinned_half_of_it_and_another_layout_are_said_clearly(roots, root, small):
    with pytest.raises(UnsupportedError, match=r"a pinned map below .*is the daemon running"):
        open_maps(roots / "nowhere")
    (root / "older/maps-0-4").mkdir(parents=True)
    with pytest.raises(LayoutError, match=r"holds maps-0-4; this version reads maps-3"):
        open_maps(root / "older")
    opened = open_maps(root)
    assert opened.folder == small.folder
    (small.folder / "kmesh_peers4").unlink()
    with pytest.raises(UnsupportedError, match=r"some of the maps in .*maps-3-4"):
        open_maps(root)
    with pytest.raises(UnsupportedError, match=r"the pinned map .*kmesh_peers4"):
        Maps(small.folder)


def test_a_map_of_another_layout_is_refused_with_all_that_differs(root, small):
    other = root / "other"
    other.mkdir()
    exchanged = {"kmesh_pods4": "kmesh_peers6", "kmesh_self": "kmesh_counters"}
    for name in maps.NAMES:
        with bpf.opened(small.folder / exchanged.get(name, name)) as fd:
            bpf.pin(fd, other / name)
    with pytest.raises(LayoutError) as caught:
        Maps(other)
    text = str(caught.value)
    assert "kmesh_pods4: bytes of key 16, not 4; kmesh_pods4: bytes of value 32, not 4" in text
    assert "kmesh_self: type 6, not 2; kmesh_self: bytes of value 8, not 52" in text


def layout_in_bcc(type_):
    if hasattr(type_, "_fields_"):
        return [(name, getattr(type_, name).offset, layout_in_bcc(kind)) for name, kind in type_._fields_]
    return ctypes.sizeof(type_)


def layout_in_cffi(type_):
    if type_.kind == "struct":
        return [(name, field.offset, layout_in_cffi(field.type)) for name, field in type_.fields]
    return ffi.sizeof(type_)


def test_clang_under_bcc_and_cffi_see_the_same_layouts(root, tmp_path, monkeypatch):
    """The one place beside the loader that imports bcc: the loader has no use for its view of the structs."""
    seen = {}

    def look(sources, flags, unfinished):
        import bcc  # noqa: PLC0415 # it loads LLVM, for this test only

        bcc_loader.make_kernel_source(tmp_path / "linux", os.uname().machine, bcc_loader.HEADERS)
        monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path / "linux"))
        text = "\n".join((sources / name).read_text() for name in programs.SOURCES)
        built = bcc.BPF(text=text.encode(), cflags=[*flags, f"-I{sources / 'include'}"])
        for name in maps.NAMES:
            table = built[name.encode()]
            # Of a per-CPU map, Leaf is an array of one for each CPU.
            seen[name] = layout_in_bcc(table.Key), layout_in_bcc(getattr(table, "sLeaf", table.Leaf))

    monkeypatch.setattr(programs, "_compile", look)
    ensure_loaded(root, Settings(max_pods=4))
    for name in maps.NAMES:
        members = dict(ffi.typeof(f"struct {name}").fields)
        assert seen[name] == (layout_in_cffi(members["key"].type), layout_in_cffi(members["value"].type)), name


@pytest.mark.parametrize("incarnation", ["b" * 40, "b" * 1000, "\u00fc", "\ud800"])
def test_an_incarnation_that_does_not_fit_is_refused_and_the_one_before_stays(small, incarnation):
    small.set_identity("b" * 39, 0)
    with pytest.raises(EncodeError, match=f"an incarnation of {len(incarnation)} characters cannot be kept"):
        small.set_identity(incarnation, 0)
    assert small.identity() == "b" * 39


def test_an_incarnation_that_somebody_wrote_over_is_an_error_of_ours(small):
    value = small._self()
    value.incarnation = b"\xff" * 40
    small._maps["kmesh_self"].set(maps._index(0), bytes(ffi.buffer(value)))
    with pytest.raises(DecodeError, match="is no text"):
        small.identity()

# SPDX-License-Identifier: Apache-2.0
"""New maps take over from those in use: of another capacity, or of the version before, as its programs left them."""

import struct
import subprocess
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi
from kmesh_bpf.core.state import PeerEntry, PodFlags, Program
from kmesh_bpf.errors import MapFullError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.map_folders import find_maps
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.programs import Settings, ensure_loaded, remove_stale
from tests.bpf.model import SHOT
from tests.bpf.node import READY
from tests.bpf.packets import frame

PODS = {
    ip_address("10.244.1.1"): PodFlags.LOCAL,
    ip_address("10.244.2.1"): READY,
    ip_address("fd00::1"): PodFlags.REMOTE,
}
PEERS = {
    ip_address("fd00::2"): PeerEntry(3, 0x300000, 2, 99, 1, 5),
    ip_address("fd00::3"): PeerEntry(4, 0x400000, 3, 98, 2, 6),
    ip_address("10.9.0.3"): PeerEntry(4, 0x400000, 3, 2**64 - 1, 2, 6),
}
SERVICE = ip_network("10.96.0.0/12")
SOURCES, DEVICES, FORMERS = {ip_address("10.244.1.1"): 7}, frozenset({7}), {2**64 - 1: 3}
THRESHOLDS = (32, 32, 128, 128)
INCARNATION = "6c8f8b1e-3a0a-4d52-9b7e-1f6a2c3d4e5f"
MASK = contract.NODE_MARK_MASK


def fill(maps):
    maps.set_pods(PODS)
    for address, entry in PEERS.items():
        maps.set_peer(address, entry)
    maps.add_service(SERVICE)


def fill_what_is_new(maps):
    for address, ifindex in SOURCES.items():
        maps.set_source(address, ifindex)
    for ifindex in DEVICES:
        maps.add_pod_device(ifindex)
    for pair, spi in FORMERS.items():
        maps.set_former(pair, spi)
    maps.set_thresholds(THRESHOLDS)


def held(maps):
    found = maps.pods(), maps.peers(), maps.services(), maps.sources(), maps.pod_devices(), maps.formers()
    return *found, maps.thresholds(), maps.identity(), maps.node_mark_mask()


EVERYTHING = (PODS, PEERS, {SERVICE}, SOURCES, DEVICES, FORMERS, THRESHOLDS, INCARNATION, MASK)
NOTHING = ({}, {}, frozenset(), {}, frozenset(), {}, None, None, 0)


# Version 1's maps, by its header: name, type, bytes of key and value, entries (0: as many as pods), flags.
FIRST = [
    ("kmesh_pods4", "hash", 4, 4, 0, 1),
    ("kmesh_pods6", "hash", 16, 4, 0, 1),
    ("kmesh_peers4", "hash", 4, 24, 131072, 1),
    ("kmesh_peers6", "hash", 16, 24, 131072, 1),
    ("kmesh_svcs4", "lpm_trie", 8, 4, 64, 1),
    ("kmesh_svcs6", "lpm_trie", 20, 4, 64, 1),
    ("kmesh_counters", "percpu_array", 4, 8, 9, 0),
    ("kmesh_self", "array", 4, 48, 1, 0),
]


def write(path, key, value):
    with bpf.opened(path) as fd:
        bpf.check(bpf.map_update(fd, ffi.from_buffer(key), ffi.from_buffer(value)), "write", path)


def second_version(root, capacity):
    """Make the maps of version 2, which lie as they do now but for their folder, with all there is; give their folder."""
    folder = root / f"maps-2-{capacity}"
    build = ensure_loaded(root, Settings(max_pods=capacity))
    with closing(Maps(build.maps)) as maps:
        fill(maps)
        fill_what_is_new(maps)
        maps.set_identity(INCARNATION, MASK)
    build.maps.rename(folder)
    return folder


def first_version(root, capacity, incarnation=INCARNATION):
    """Make the maps of version 1, with what its daemon would have written, byte by byte; give their folder."""
    folder = root / f"maps-1-{capacity}"
    folder.mkdir(parents=True)
    for name, kind, key, value, entries, flags in FIRST:
        command = ["bpftool", "map", "create", folder / name, "type", kind, "key", key, "value", value]
        command += ["entries", entries or capacity, "name", name, "flags", flags]
        subprocess.run([str(one) for one in command], check=True)
    for address, flags in PODS.items():
        write(folder / f"kmesh_pods{address.version}", address.packed, struct.pack("=I", flags))
    for address, entry in PEERS.items():
        value = struct.pack("=IIIIQ", entry.node_id, entry.node_mark, entry.spi, 0, entry.incarnations)
        write(folder / f"kmesh_peers{address.version}", address.packed, value)
    write(folder / "kmesh_svcs4", struct.pack("=I", 12) + SERVICE.network_address.packed, bytes(4))
    write(folder / "kmesh_self", bytes(4), struct.pack("=II40s", 1, MASK, incarnation.encode()))
    return folder


def test_maps_of_another_capacity_take_over_what_the_old_ones_hold(root):
    old = Maps(ensure_loaded(root, Settings(max_pods=8)).maps)
    fill(old)
    fill_what_is_new(old)
    old.set_identity(INCARNATION, MASK)
    assert held(old) == EVERYTHING
    larger = ensure_loaded(root, Settings(max_pods=16))
    assert find_maps(root) == larger.maps
    new = Maps(larger.maps)
    assert held(new) == EVERYTHING
    # What happened since is not undone by what the old ones, still there, say.
    for address in PODS:
        new.delete_pod(address)
    assert ensure_loaded(root, Settings(max_pods=16, strict=False)).compiled
    assert new.pods() == {}
    remove_stale(root, larger)
    assert [path.name for path in root.glob("maps-*")] == [larger.maps.name]


@pytest.mark.parametrize("capacity", [8, 16])
def test_an_upgrade_from_version_2_keeps_everything(root, capacity):
    second_version(root, 8)
    build = ensure_loaded(root, Settings(max_pods=capacity))
    with closing(Maps(build.maps)) as new:
        assert held(new) == EVERYTHING
    remove_stale(root, build)
    assert [path.name for path in root.glob("maps-*")] == [build.maps.name]


def test_of_several_versions_the_newest_that_is_filled_counts(root):
    first_version(root, 8, "a former life")
    second_version(root, 8)
    with closing(Maps(ensure_loaded(root, Settings(max_pods=8)).maps)) as new:
        assert held(new) == EVERYTHING


@pytest.mark.parametrize("capacity", [8, 16])
def test_an_upgrade_from_version_1_keeps_identity_peers_and_pods_and_loses_no_packet(root, capacity):
    first_version(root, 8)
    build = ensure_loaded(root, Settings(max_pods=capacity))
    with closing(Maps(build.maps)) as new:
        without_more = {address: replace(entry, retired=0, pair=0) for address, entry in PEERS.items()}
        assert held(new) == (PODS, without_more, {SERVICE}, {}, frozenset(), {}, None, INCARNATION, MASK)
        # Each program finds them from its first packet on: the old ones run until these take their places.
        clear = bpf.test_run(build.path(Program.LEAK_GUARD), frame(4, "10.244.1.1", "10.244.2.1"))
        assert (clear.verdict, new.counters()["dropped_by_guard"]) == (SHOT, 1)
        for address in PEERS:
            new.delete_peer(address)
        assert ensure_loaded(root, Settings(max_pods=capacity, strict=False)).compiled
        assert new.peers() == {}
    remove_stale(root, build)
    assert [path.name for path in root.glob("maps-*")] == [build.maps.name]


def test_filled_maps_of_this_version_go_before_those_of_version_1_and_empty_ones_do_not(root):
    first_version(root, 8, "a former life")
    with closing(Maps(ensure_loaded(root, Settings(max_pods=4)).maps)) as second:
        assert second.identity() == "a former life"
        second.set_identity(INCARNATION, MASK)
    with closing(Maps(ensure_loaded(root, Settings(max_pods=16)).maps)) as third:
        assert third.identity() == INCARNATION


def test_where_nothing_is_remembered_nothing_is_taken_over(root):
    first_version(root, 8, "")
    with closing(Maps(ensure_loaded(root, Settings(max_pods=8)).maps)) as new:
        assert held(new) == NOTHING


def test_version_1_broken_off_before_all_was_pinned_is_not_taken_over(root):
    (first_version(root, 8) / "kmesh_peers6").unlink()
    with closing(Maps(ensure_loaded(root, Settings(max_pods=8)).maps)) as new:
        assert held(new) == NOTHING


@pytest.mark.parametrize("version", [1, contract.VERSION])
def test_maps_too_small_for_what_the_old_ones_hold_are_refused_by_name(root, version):
    if version == 1:
        first_version(root, 8)
    else:
        old = Maps(ensure_loaded(root, Settings(max_pods=8)).maps)
        fill(old)
        old.set_identity(INCARNATION, MASK)
    with pytest.raises(MapFullError, match=r"kmesh_pods4 is full \(1 entries\)"):
        ensure_loaded(root, Settings(max_pods=1))
    # Nothing is half carried over: what has room is filled whole, though the small ones, without identity, are there.
    with closing(Maps(ensure_loaded(root, Settings(max_pods=8)).maps)) as again:
        assert (again.pods(), again.identity()) == (PODS, INCARNATION)

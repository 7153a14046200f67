"""The pinned maps, typed: without BCC, without the daemon. Layouts come from the contract header."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.core.view import Address, Network
from kmesh_bpf.errors import KernelError, LayoutError, MapFullError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.programs import find_maps

NAMES = (
    "kmesh_pods4",
    "kmesh_pods6",
    "kmesh_peers4",
    "kmesh_peers6",
    "kmesh_svcs4",
    "kmesh_svcs6",
    "kmesh_counters",
    "kmesh_self",
)
BATCH_ENTRIES = 65536
CPUS = Path("/sys/devices/system/cpu/possible")


def open_maps(pin_root: Path) -> Maps:
    """Open the maps below a pin root.

    Raises:
        UnsupportedError: nothing is pinned there.
        LayoutError: what is pinned is another version's.

    """
    folder = find_maps(pin_root)
    if folder is None:
        others = sorted(path.name for path in pin_root.glob("maps-*"))
        if others:
            raise LayoutError(f"{pin_root} holds {others[0]}; this version reads maps-{contract.VERSION}-*")
        raise UnsupportedError(
            f"a pinned map below {pin_root}", "is the daemon running there, and is this its pin root?"
        )
    return Maps(folder)


def possible_cpus() -> int:
    """Give how many values a per-CPU map has for a key."""
    return int(CPUS.read_text().strip().split("-")[-1].split(",")[-1]) + 1


class _Map:
    """One pinned map; its key and value types are the members of the contract's struct of the same name."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        members = dict(ffi.typeof(f"struct {name}").fields)
        self.key_type, self.value_type = members["key"].type, members["value"].type
        self.fd = bpf.open_pinned(self.path)
        self.info = bpf.map_info(self.fd, self.path)
        wanted = (ffi.sizeof(self.key_type), ffi.sizeof(self.value_type))
        if (self.info.key_size, self.info.value_size) != wanted:
            os.close(self.fd)
            raise LayoutError(
                f"{self.path}: key and value of {self.info.key_size} and {self.info.value_size} bytes, "
                f"this version's have {wanted[0]} and {wanted[1]}"
            )

    def set(self, key: Any, value: Any) -> None:
        answer = lib.kmesh_map_update(self.fd, key, value)
        if answer in (-errno.E2BIG, -errno.ENOSPC):
            raise MapFullError("write", str(self.path), self.path.name, self.info.max_entries)
        bpf.check(answer, "write", self.path)

    def delete(self, key: Any) -> None:
        answer = lib.kmesh_map_delete(self.fd, key)
        if answer != -errno.ENOENT:
            bpf.check(answer, "delete from", self.path)

    def get(self, key: Any) -> Any:
        value = ffi.new(ffi.getctype(self.value_type, "*"))
        bpf.check(lib.kmesh_map_lookup(self.fd, key, value), "read", self.path)
        return value

    def new_key(self) -> Any:
        return ffi.new(ffi.getctype(self.key_type, "*"))

    def new_value(self) -> Any:
        return ffi.new(ffi.getctype(self.value_type, "*"))

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Give (key, value) of all entries, in batches: 200,000 take a fraction of a second."""
        room = min(self.info.max_entries, BATCH_ENTRIES)
        keys = ffi.new(ffi.getctype(self.key_type, "[]"), room)
        values = ffi.new(ffi.getctype(self.value_type, "[]"), room)
        token, count = ffi.new("char[]", max(8, self.info.key_size)), ffi.new("uint32_t *")
        start = ffi.NULL
        while True:
            count[0] = room
            answer = lib.kmesh_map_lookup_batch(self.fd, start, token, keys, values, count)
            if answer < 0 and answer != -errno.ENOENT:
                raise KernelError("dump", str(self.path), -answer)
            for index in range(count[0]):
                yield keys[index], values[index]
            if answer == -errno.ENOENT:
                return
            start = token

    def keys(self) -> Iterator[Any]:
        """Give all keys one by one, for tries: their batch operations came late (6.0)."""
        key, following = ffi.NULL, self.new_key()
        while lib.kmesh_map_next_key(self.fd, key, following) == 0:
            yield following
            key, following = following, self.new_key()


class Maps:
    """All maps of one pin root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps = {name: _Map(folder, name) for name in NAMES}

    def close(self) -> None:
        """Close the descriptors."""
        for one in self._maps.values():
            os.close(one.fd)

    def pods(self) -> dict[Address, PodFlags]:
        """Give who is managed."""
        return {address: PodFlags(value.flags) for address, value in self._by_address("kmesh_pods")}

    def set_pod(self, address: Address, flags: PodFlags) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        one, key = self._at("kmesh_pods", address)
        value = one.new_value()
        value.flags = int(flags)
        one.set(key, value)

    def delete_pod(self, address: Address) -> None:
        """Remove an entry, if there."""
        one, key = self._at("kmesh_pods", address)
        one.delete(key)

    def peers(self) -> dict[Address, PeerEntry]:
        """Give the peers by outer address."""
        return {
            address: PeerEntry(value.node_id, value.node_mark, value.spi, value.incarnations)
            for address, value in self._by_address("kmesh_peers")
        }

    def set_peer(self, address: Address, entry: PeerEntry) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        one, key = self._at("kmesh_peers", address)
        value = one.new_value()
        value.node_id, value.node_mark, value.spi = entry.node_id, entry.node_mark, entry.spi
        value.incarnations = entry.incarnations
        one.set(key, value)

    def delete_peer(self, address: Address) -> None:
        """Remove an entry, if there."""
        one, key = self._at("kmesh_peers", address)
        one.delete(key)

    def services(self) -> frozenset[Network]:
        """Give the Service CIDRs."""
        found = set()
        for name in ("kmesh_svcs4", "kmesh_svcs6"):
            for key in self._maps[name].keys():  # noqa: SIM118 # a method of ours: _Map is no dict
                address = ip_address(bytes(ffi.buffer(ffi.addressof(key[0], "address"))))
                found.add(ip_network((address.packed, key.prefix_length)))
        return frozenset(found)

    def add_service(self, cidr: Network) -> None:
        """Write a prefix.

        Raises:
            MapFullError: there is no room.

        """
        one, key = self._trie_at(cidr)
        one.set(key, one.new_value())

    def delete_service(self, cidr: Network) -> None:
        """Remove a prefix, if there."""
        one, key = self._trie_at(cidr)
        one.delete(key)

    def counters(self) -> dict[str, int]:
        """Give the counters by name, summed over the CPUs."""
        one = self._maps["kmesh_counters"]
        values = ffi.new("uint64_t[]", possible_cpus())
        found = {}
        for index, name in enumerate(contract.COUNTERS):
            key = ffi.new("uint32_t *", index)
            bpf.check(lib.kmesh_map_lookup(one.fd, key, values), "read", one.path)
            found[name] = sum(values)
        return found

    def identity(self) -> str | None:
        """Give the incarnation remembered; None: none yet."""
        one = self._maps["kmesh_self"]
        text = bytes(ffi.buffer(one.get(ffi.new("uint32_t *", 0)).incarnation)).rstrip(b"\0").decode()
        return text or None

    def set_identity(self, incarnation: str, node_mark_mask: int) -> None:
        """Remember an incarnation."""
        one = self._maps["kmesh_self"]
        value = one.new_value()
        value.contract_version, value.node_mark_mask = contract.VERSION, node_mark_mask
        text = incarnation.encode()[: ffi.sizeof(value.incarnation) - 1]
        ffi.memmove(value.incarnation, text, len(text))
        one.set(ffi.new("uint32_t *", 0), value)

    def capacity(self, name: str) -> int:
        """Give how many entries a map has room for."""
        return self._maps[name].info.max_entries

    def _at(self, family: str, address: Address) -> tuple[_Map, Any]:
        one = self._maps[f"{family}{address.version}"]
        key = one.new_key()
        ffi.memmove(key, address.packed, len(address.packed))
        return one, key

    def _trie_at(self, cidr: Network) -> tuple[_Map, Any]:
        one = self._maps[f"kmesh_svcs{cidr.version}"]
        key = one.new_key()
        key.prefix_length = cidr.prefixlen
        ffi.memmove(ffi.addressof(key[0], "address"), cidr.network_address.packed, len(cidr.network_address.packed))
        return one, key

    def _by_address(self, family: str) -> Iterator[tuple[Address, Any]]:
        for key, value in self._maps[f"{family}4"].entries():
            yield IPv4Address(bytes(ffi.buffer(ffi.addressof(key)))), value
        for key, value in self._maps[f"{family}6"].entries():
            yield IPv6Address(bytes(ffi.buffer(ffi.addressof(key)))), value

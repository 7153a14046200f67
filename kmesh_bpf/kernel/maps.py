"""The pinned maps, typed: without BCC, without the daemon. Layouts come from the contract header."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.core.view import Address, Network
from kmesh_bpf.errors import DecodeError, EncodeError, KernelError, LayoutError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.pinned_map import PinnedMap

TYPES = {
    "kmesh_pods4": lib.BPF_MAP_TYPE_HASH,
    "kmesh_pods6": lib.BPF_MAP_TYPE_HASH,
    "kmesh_peers4": lib.BPF_MAP_TYPE_HASH,
    "kmesh_peers6": lib.BPF_MAP_TYPE_HASH,
    "kmesh_svcs4": lib.BPF_MAP_TYPE_LPM_TRIE,
    "kmesh_svcs6": lib.BPF_MAP_TYPE_LPM_TRIE,
    "kmesh_srcs4": lib.BPF_MAP_TYPE_HASH,
    "kmesh_srcs6": lib.BPF_MAP_TYPE_HASH,
    "kmesh_devices": lib.BPF_MAP_TYPE_HASH,
    "kmesh_formers": lib.BPF_MAP_TYPE_HASH,
    "kmesh_counters": lib.BPF_MAP_TYPE_PERCPU_ARRAY,
    "kmesh_self": lib.BPF_MAP_TYPE_ARRAY,
}
NAMES = tuple(TYPES)
START_THE_DAEMON = "is the daemon running there, and is this its pin root?"
Thresholds = tuple[int, int, int, int]
"""Of the policy hash: local and remote prefix length of IPv4, then of IPv6."""
FOUND = ("found_local4", "found_remote4", "found_local6", "found_remote6")
"""Their members in kmesh_self, each plus 1."""
CPUS = Path("/sys/devices/system/cpu/possible")


def maps_folder(pin_root: Path, max_pods: int) -> Path:
    """Give the folder of the maps of this version's layout and of a capacity."""
    return pin_root / f"maps-{contract.VERSION}-{max_pods}"


def map_folders(pin_root: Path) -> list[Path]:
    """Give the folders of all maps below a pin root, of whatever version."""
    return sorted(pin_root.glob("maps-[0-9]*-[0-9]*"))


def is_complete(folder: Path, names: Iterable[str] = NAMES) -> bool:
    """Tell whether all maps are pinned there."""
    return all((folder / name).exists() for name in names)


def newest_first(folders: Iterable[Path]) -> list[Path]:
    """Sort folders by when something was pinned in them last."""
    return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


def find_maps(pin_root: Path) -> Path | None:
    """Give the newest complete maps folder of this version's layout below a pin root; None: there is none."""
    found = newest_first(folder for folder in pin_root.glob(f"maps-{contract.VERSION}-*") if is_complete(folder))
    return next(iter(found), None)


def open_maps(pin_root: Path) -> Maps:
    """Open the maps below a pin root.

    Raises:
        UnsupportedError: nothing is pinned there, or not all of it.
        LayoutError: what is pinned is another version's.

    """
    folder = find_maps(pin_root)
    if folder:
        return Maps(folder)
    names = [folder.name for folder in map_folders(pin_root)]
    others = [name for name in names if not name.startswith(f"maps-{contract.VERSION}-")]
    if others and others == names:
        raise LayoutError(f"{pin_root} holds {others[0]}; this version reads maps-{contract.VERSION}-*")
    what = f"some of the maps in {pin_root / names[-1]}" if names else f"a pinned map below {pin_root}"
    raise UnsupportedError(what, START_THE_DAEMON)


def possible_cpus() -> int:
    """Give how many values a per-CPU map has for a key: CPUs in a list like ``0-3,8-11``."""
    ends = (part.split("-") for part in CPUS.read_text().strip().split(","))
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


class Maps:
    """All maps of one folder.

    ``names`` are those of this version; ``value_sizes``, in bytes, for what is not as the contract header has it.

    Raises:
        KernelError, UnsupportedError: a map cannot be opened.
        LayoutError: a map has another type or other sizes than the contract header says; all that differ are named.

    """

    names: ClassVar[tuple[str, ...]] = NAMES
    value_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({})

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: dict[str, PinnedMap] = {}
        try:
            for name in self.names:
                self._maps[name] = PinnedMap(folder / name)
            differences = [
                difference
                for name, one in self._maps.items()
                for difference in one.differences(TYPES[name], self.value_sizes.get(name))
            ]
            if differences:
                raise LayoutError(f"maps in {folder} differ from this version's: {'; '.join(differences)}")
        except KernelError as error:
            self.close()
            if error.errno == errno.ENOENT:
                raise UnsupportedError(f"the pinned map {error.target}", START_THE_DAEMON) from error
            raise
        except LayoutError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors."""
        for one in self._maps.values():
            os.close(one.fd)
        self._maps.clear()

    def fingerprint(self) -> tuple[object, ...]:
        """Give what is another one once an entry of ours has come, gone or changed; counters aside.

        Raises:
            KernelError: a dump broke off.

        """
        hashes = (one.fingerprint() for name, one in self._maps.items() if TYPES[name] == lib.BPF_MAP_TYPE_HASH)
        return *hashes, self.services(), self.identity()

    def complete(self) -> bool:
        """Tell whether all are still pinned."""
        return is_complete(self.folder)

    def restore(self) -> None:
        """Pin again what somebody has unpinned.

        Raises:
            KernelError: the kernel refused.

        """
        for one in self._maps.values():
            if not one.path.exists():
                one.path.parent.mkdir(parents=True, exist_ok=True)
                bpf.pin(one.fd, one.path)

    def pods(self) -> dict[Address, PodFlags]:
        """Give who is managed."""
        flags = cache(PodFlags)
        return {address: flags(value.flags) for address, value in self._by_address("kmesh_pods")}

    def pod(self, address: Address) -> PodFlags:
        """Give what is said of one address; nothing where it has no entry."""
        value = self._of("kmesh_pods", address).find(address.packed)
        return PodFlags(value.flags if value is not None else 0)

    def set_pod(self, address: Address, flags: PodFlags) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        self._of("kmesh_pods", address).set(address.packed, [int(flags)])

    def set_pods(self, pods: Mapping[Address, PodFlags]) -> None:
        """Write many entries with few system calls.

        Raises:
            MapFullError: there is no room; some were written, and which ones is unknown.

        """
        for version in (4, 6):
            own = {address.packed: [int(flags)] for address, flags in pods.items() if address.version == version}
            self._maps[f"kmesh_pods{version}"].set_many(own)

    def delete_pod(self, address: Address) -> None:
        """Remove an entry, if there."""
        self._of("kmesh_pods", address).delete(address.packed)

    def peers(self) -> dict[Address, PeerEntry]:
        """Give the peers by outer address."""
        return {address: _peer(value) for address, value in self._by_address("kmesh_peers")}

    def peer(self, address: Address) -> PeerEntry | None:
        """Give the peer at an outer address; None: there is no entry."""
        value = self._of("kmesh_peers", address).find(address.packed)
        return _peer(value) if value is not None else None

    def set_peer(self, address: Address, entry: PeerEntry) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        value = {
            "node_id": entry.node_id,
            "node_mark": entry.node_mark,
            "spi": entry.spi,
            "incarnations": entry.incarnations,
            "retired": entry.retired,
            "pair": entry.pair,
        }
        self._of("kmesh_peers", address).set(address.packed, value)

    def delete_peer(self, address: Address) -> None:
        """Remove an entry, if there."""
        self._of("kmesh_peers", address).delete(address.packed)

    def sources(self) -> dict[Address, int]:
        """Give the device (ifindex) of each managed pod's address of this node."""
        return {address: value.ifindex for address, value in self._by_address("kmesh_srcs")}

    def source(self, address: Address) -> int | None:
        """Give the device that an address is bound to; None: there is no entry."""
        value = self._of("kmesh_srcs", address).find(address.packed)
        return int(value.ifindex) if value is not None else None

    def set_source(self, address: Address, ifindex: int) -> None:
        """Bind an address to a device.

        Raises:
            MapFullError: there is no room.

        """
        self._of("kmesh_srcs", address).set(address.packed, [ifindex])

    def delete_source(self, address: Address) -> None:
        """Release an address, if there."""
        self._of("kmesh_srcs", address).delete(address.packed)

    def pod_devices(self) -> frozenset[int]:
        """Give the devices (ifindex) that carry no source but those bound to them."""
        return frozenset(int.from_bytes(key, sys.byteorder) for key, _ in self._maps["kmesh_devices"].entries())

    def add_pod_device(self, ifindex: int) -> None:
        """Let a device carry bound sources only.

        Raises:
            MapFullError: there is no room.

        """
        self._maps["kmesh_devices"].set(_index(ifindex), [0])

    def delete_pod_device(self, ifindex: int) -> None:
        """Let a device carry any source, if it was bound."""
        self._maps["kmesh_devices"].delete(_index(ifindex))

    def formers(self) -> dict[int, int]:
        """Give the tunnels (PeerEntry.pair) whose SAs are gone, and the highest key version that was in use."""
        entries = self._maps["kmesh_formers"].entries()
        return {int.from_bytes(key, sys.byteorder): value.spi for key, value in entries}

    def former(self, pair: int) -> int | None:
        """Give the highest key version that was in use by a tunnel; None: there is no entry."""
        value = self._maps["kmesh_formers"].find(pair.to_bytes(8, sys.byteorder))
        return int(value.spi) if value is not None else None

    def set_former(self, pair: int, spi: int) -> None:
        """Remember a tunnel.

        Raises:
            MapFullError: there is no room.

        """
        self._maps["kmesh_formers"].set(pair.to_bytes(8, sys.byteorder), [spi])

    def delete_former(self, pair: int) -> None:
        """Forget a pair, if there."""
        self._maps["kmesh_formers"].delete(pair.to_bytes(8, sys.byteorder))

    def services(self) -> frozenset[Network]:
        """Give the Service CIDRs."""
        found: set[Network] = set()
        for version in (4, 6):
            for key in self._maps[f"kmesh_svcs{version}"].each_key():
                cidr = ffi.from_buffer(f"struct kmesh_cidr{version} *", key)
                found.add(ip_network((bytes(ffi.buffer(ffi.addressof(cidr, "address"))), cidr.prefix_length)))
        return frozenset(found)

    def add_service(self, cidr: Network) -> None:
        """Write a prefix.

        Raises:
            MapFullError: there is no room.

        """
        self._of("kmesh_svcs", cidr).set(_trie_key(cidr), [0])

    def delete_service(self, cidr: Network) -> None:
        """Remove a prefix, if there."""
        self._of("kmesh_svcs", cidr).delete(_trie_key(cidr))

    def counters(self) -> dict[str, int]:
        """Give the counters by name, summed over the CPUs."""
        return {name: sum(values) for name, values in self.counters_per_cpu().items()}

    def counters_per_cpu(self) -> dict[str, tuple[int, ...]]:
        """Give the counters by name, a number for each possible CPU."""
        one, cpus = self._maps["kmesh_counters"], possible_cpus()
        return {name: one.get_per_cpu(_index(number), cpus) for number, name in enumerate(contract.COUNTERS)}

    def identity(self) -> str | None:
        """Give the incarnation remembered; None: none yet.

        Raises:
            DecodeError: somebody else wrote into the map.

        """
        try:
            return ffi.string(self._self().incarnation).decode("ascii") or None
        except UnicodeDecodeError as error:
            raise DecodeError(f"the incarnation in {self.folder / 'kmesh_self'} is no text") from error

    def node_mark_mask(self) -> int:
        """Give the node mark mask that was remembered with the incarnation; 0: none yet."""
        return int(self._self().node_mark_mask)

    def set_identity(self, incarnation: str, node_mark_mask: int) -> None:
        """Remember an incarnation: up to 39 characters of ASCII.

        Raises:
            EncodeError: it is longer, or something else.

        """
        value = self._self()
        if not incarnation.isascii() or len(incarnation) >= ffi.sizeof(value.incarnation):
            raise EncodeError(f"an incarnation of {len(incarnation)} characters cannot be kept")
        value.contract_version = contract.VERSION
        value.node_mark_mask = node_mark_mask
        value.incarnation = incarnation.encode().ljust(ffi.sizeof(value.incarnation), b"\0")
        self._maps["kmesh_self"].set(_index(0), value[0])

    def thresholds(self) -> Thresholds | None:
        """Give the policy hash thresholds that were found before we lowered them; None: we have not."""
        value = self._self()
        local4, remote4, local6, remote6 = (getattr(value, name) - 1 for name in FOUND)
        return None if min(local4, remote4, local6, remote6) < 0 else (local4, remote4, local6, remote6)

    def set_thresholds(self, found: Thresholds | None) -> None:
        """Remember the thresholds found, or that they were put back."""
        value = self._self()
        for name, bits in zip(FOUND, found or (-1,) * len(FOUND), strict=True):
            setattr(value, name, bits + 1)
        self._maps["kmesh_self"].set(_index(0), value[0])

    def capacity(self, name: str) -> int:
        """Give how many entries a map has room for."""
        return self._maps[name].info.max_entries

    def count(self, name: str) -> int:
        """Give how many entries a hash has."""
        return sum(1 for _ in self._maps[name].entries())

    def _self(self) -> Any:
        return self._maps["kmesh_self"].get(_index(0))

    def _of(self, family: str, address: Address | Network) -> PinnedMap:
        return self._maps[f"{family}{address.version}"]

    def _by_address(self, family: str) -> Iterator[tuple[Address, Any]]:
        for key, value in self._maps[f"{family}4"].entries():
            yield IPv4Address(key), value
        for key, value in self._maps[f"{family}6"].entries():
            yield IPv6Address(key), value


def _peer(value: Any) -> PeerEntry:
    return PeerEntry(value.node_id, value.node_mark, value.spi, value.incarnations, value.retired, value.pair)


def _index(number: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("__u32 *", number)))


def _trie_key(cidr: Network) -> bytes:
    key = ffi.new(f"struct kmesh_cidr{cidr.version} *")
    key.prefix_length = cidr.prefixlen
    ffi.buffer(ffi.addressof(key, "address"))[:] = cidr.network_address.packed
    return bytes(ffi.buffer(key))

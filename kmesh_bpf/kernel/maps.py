# SPDX-License-Identifier: Apache-2.0
"""The pinned maps, typed: without BCC, without the daemon. Layouts come from the contract header."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi
from kmesh_bpf.core import entries
from kmesh_bpf.core.entries import HASHES, Entry
from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.core.view import Address, Network
from kmesh_bpf.errors import DecodeError, EncodeError, KernelError, LayoutError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.map_folders import NAMES, TYPES, find_maps, is_complete, map_folders
from kmesh_bpf.kernel.pinned_map import AUDIT_ENTRIES, BATCH_ENTRIES, PinnedMap

START_THE_DAEMON = "is the daemon running there, and is this its pin root?"
Thresholds = tuple[int, int, int, int]
"""Of the policy hash: local and remote prefix length of IPv4, then of IPv6."""
FOUND = ("found_local4", "found_remote4", "found_local6", "found_remote6")
"""Their members in kmesh_self, each plus 1."""
ENTRIES: Mapping[str, Callable[[Address], Entry]] = MappingProxyType(
    {"pods": entries.pod, "peers": entries.peer, "sources": entries.source}
)
CPUS = Path("/sys/devices/system/cpu/possible")


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

    def look(self, mapping: str) -> Iterator[bool]:
        """Look, in steps of a millisecond or two, whether anybody but us has written into the hashes of a mapping.

        ``mapping``: a key of HASHES. See :meth:`kmesh_bpf.kernel.pinned_map.PinnedMap.look`.

        Raises:
            KernelError: a dump broke off.

        """
        for name in HASHES[mapping]:
            yield from self._maps[name].look()

    def pieces(self, mapping: str, room: int = AUDIT_ENTRIES) -> Iterator[dict[Any, Any]]:
        """Give what a mapping holds, so many entries a step; what others write meanwhile is in there or not.

        ``mapping``: a key of HASHES; what comes are parts of what the method of that name gives.

        Raises:
            KernelError: a dump broke off.

        """
        value_of = entries.VALUE_OF[mapping]
        for name in HASHES[mapping]:
            key_of = entries.key_of(name)
            for piece in self._maps[name].pieces(room):
                yield {key_of(key): value_of(value) for key, value in piece}

    def all_of(self, mapping: str) -> dict[Any, Any]:
        """Give all that a mapping holds; ``mapping``: a key of HASHES.

        Raises:
            KernelError: a dump broke off.

        """
        found: dict[Any, Any] = {}
        for piece in self.pieces(mapping, BATCH_ENTRIES):
            found |= piece
        return found

    def some_of(self, mapping: str, keys: Iterable[Any]) -> dict[Any, Any]:
        """Give what a mapping holds under some keys; ``mapping``: a key of HASHES."""
        value_of = entries.VALUE_OF[mapping]
        found = ((key, self._find(mapping, key)) for key in keys)
        return {key: value_of(value) for key, value in found if value is not None}

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
        return self.all_of("pods")

    def pod(self, address: Address) -> PodFlags:
        """Give what is said of one address; nothing where it has no entry."""
        value = self._find("pods", address)
        return PodFlags(value.flags if value is not None else 0)

    def set_pod(self, address: Address, flags: PodFlags) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        self._write(entries.pod(address, flags))

    def set_pods(self, pods: Mapping[Address, PodFlags]) -> None:
        """Write many entries with few system calls.

        Raises:
            MapFullError: there is no room; some were written, and which ones is unknown.

        """
        for version in (4, 6):
            own = (entries.pod(address, flags) for address, flags in pods.items() if address.version == version)
            self._maps[f"kmesh_pods{version}"].set_many({entry.key: entry.value for entry in own})

    def delete_pod(self, address: Address) -> None:
        """Remove an entry, if there."""
        self._remove(entries.pod(address))

    def peers(self) -> dict[Address, PeerEntry]:
        """Give the peers by outer address."""
        return self.all_of("peers")

    def peer(self, address: Address) -> PeerEntry | None:
        """Give the peer at an outer address; None: there is no entry."""
        return self.some_of("peers", (address,)).get(address)

    def set_peer(self, address: Address, entry: PeerEntry) -> None:
        """Write an entry.

        Raises:
            MapFullError: there is no room.

        """
        self._write(entries.peer(address, entry))

    def delete_peer(self, address: Address) -> None:
        """Remove an entry, if there."""
        self._remove(entries.peer(address))

    def sources(self) -> dict[Address, int]:
        """Give the device (ifindex) of each managed pod's address of this node."""
        return self.all_of("sources")

    def set_source(self, address: Address, ifindex: int) -> None:
        """Bind an address to a device.

        Raises:
            MapFullError: there is no room.

        """
        self._write(entries.source(address, ifindex))

    def delete_source(self, address: Address) -> None:
        """Release an address, if there."""
        self._remove(entries.source(address))

    def pod_devices(self) -> frozenset[int]:
        """Give the devices (ifindex) that carry no source but those bound to them."""
        return frozenset(entries.number_of(key) for key, _ in self._maps["kmesh_devices"].entries())

    def add_pod_device(self, ifindex: int) -> None:
        """Let a device carry bound sources only.

        Raises:
            MapFullError: there is no room.

        """
        self._write(entries.pod_device(ifindex))

    def delete_pod_device(self, ifindex: int) -> None:
        """Let a device carry any source, if it was bound."""
        self._remove(entries.pod_device(ifindex))

    def formers(self) -> dict[int, int]:
        """Give the tunnels (PeerEntry.pair) whose SAs are gone, and the highest key version that was in use."""
        return self.all_of("formers")

    def set_former(self, pair: int, spi: int) -> None:
        """Remember a tunnel.

        Raises:
            MapFullError: there is no room.

        """
        self._write(entries.former(pair, spi))

    def delete_former(self, pair: int) -> None:
        """Forget a pair, if there."""
        self._remove(entries.former(pair))

    def services(self) -> frozenset[Network]:
        """Give the Service CIDRs."""
        names = ("kmesh_svcs4", "kmesh_svcs6")
        return frozenset(entries.service_of(name, key) for name in names for key in self._maps[name].each_key())

    def add_service(self, cidr: Network) -> None:
        """Write a prefix.

        Raises:
            MapFullError: there is no room.

        """
        self._write(entries.service(cidr))

    def delete_service(self, cidr: Network) -> None:
        """Remove a prefix, if there."""
        self._remove(entries.service(cidr))

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
        self._maps["kmesh_self"].set(_index(0), contract.raw(value))

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
        self._maps["kmesh_self"].set(_index(0), contract.raw(value))

    def capacity(self, name: str) -> int:
        """Give how many entries a map has room for."""
        return self._maps[name].info.max_entries

    def count(self, name: str) -> int:
        """Give how many entries a hash has."""
        return sum(1 for _ in self._maps[name].entries())

    def _self(self) -> Any:
        return self._maps["kmesh_self"].get(_index(0))

    def _find(self, mapping: str, key: Address | int) -> Any:
        """Give a pointer to a copy of the value that a mapping has under a key; None: there is no such entry."""
        entry = entries.former(key) if isinstance(key, int) else ENTRIES[mapping](key)
        return self._maps[entry.map].find(entry.key)

    def _write(self, entry: Entry) -> None:
        self._maps[entry.map].set(entry.key, entry.value)

    def _remove(self, entry: Entry) -> None:
        self._maps[entry.map].delete(entry.key)


def _index(number: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("__u32 *", number)))

# SPDX-License-Identifier: Apache-2.0
"""What new maps take over from those that were in use: of another capacity, or of a version before.

Of version 2 all is taken over as it is: it made the pairs of peers and formers otherwise, of the incarnations alone,
and what it left counts by that (:mod:`kmesh_bpf.core.formers`). The first pass makes those of peers anew.

Of version 1, whose pods and services lie as they do now: it had no sources, devices and formers, did not keep the
policy hash thresholds (kmesh_self was shorter), and of a peer neither what was retired nor the pair (its entries were
shorter): the first pass fills the pair in for peers that are there, whom it knows by their fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from kmesh_bpf import contract
from kmesh_bpf.core.view import Address
from kmesh_bpf.kernel.map_folders import NAMES, is_complete, newest_first
from kmesh_bpf.kernel.maps import Maps

FIRST_NAMES = tuple(name for name in NAMES if not name.startswith(("kmesh_srcs", "kmesh_devices", "kmesh_formers")))
FIRST_SIZES = {"kmesh_self": 48, "kmesh_peers4": 24, "kmesh_peers6": 24}
"""Bytes of the values that have become longer; each is the beginning of what it is now."""


class FirstMaps(Maps):
    """The maps of a folder that version 1 has made."""

    names: ClassVar[tuple[str, ...]] = FIRST_NAMES
    value_sizes: ClassVar[Mapping[str, int]] = MappingProxyType(FIRST_SIZES)

    def sources(self) -> dict[Address, int]:
        """Give none."""
        return {}

    def pod_devices(self) -> frozenset[int]:
        """Give none."""
        return frozenset()

    def formers(self) -> dict[int, int]:
        """Give none."""
        return {}


def carry_over(pin_root: Path, folder: Path) -> None:
    """Fill new maps from the complete ones that were in use below a pin root; counters restart.

    Goes by the identity, which is written last: where it stands, the maps are filled. Of several the newest ones count,
    and of an older version only where none of a newer one are filled.

    Raises:
        MapFullError: the new maps have not enough room.

    """
    with closing(Maps(folder)) as new:
        if new.identity() is None and (source := _filled(pin_root, folder)):
            with closing(source) as old:
                _copy(old, new)


def _filled(pin_root: Path, besides: Path) -> Maps | None:
    kinds: dict[int, type[Maps]] = {contract.VERSION: Maps, 2: Maps, 1: FirstMaps}
    for version, kind in kinds.items():
        folders = (one for one in pin_root.glob(f"maps-{version}-*") if one != besides)
        for folder in newest_first(one for one in folders if is_complete(one, kind.names)):
            maps = kind(folder)
            if maps.identity() is not None:
                return maps
            maps.close()
    return None


def _copy(old: Maps, new: Maps) -> None:
    new.set_pods(old.pods())
    for address, entry in old.peers().items():
        new.set_peer(address, entry)
    for cidr in old.services():
        new.add_service(cidr)
    for address, ifindex in old.sources().items():
        new.set_source(address, ifindex)
    for ifindex in old.pod_devices():
        new.add_pod_device(ifindex)
    for pair, spi in old.formers().items():
        new.set_former(pair, spi)
    new.set_thresholds(old.thresholds())
    new.set_identity(old.identity() or "", old.node_mark_mask())

# SPDX-License-Identifier: Apache-2.0
"""Which maps there are, and the folders below a pin root that they are pinned in: one for each layout and capacity."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kmesh_bpf import contract
from kmesh_bpf._abi import lib

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

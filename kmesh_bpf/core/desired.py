# SPDX-License-Identifier: Apache-2.0
"""The objects that a plan calls for: the sum of its parts, kept as they change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kmesh_bpf.core.mirror import MAPPINGS, Keys
from kmesh_bpf.core.state import KernelState, PodFlags
from kmesh_bpf.core.view import Address


class Desired:
    """The mappings of a KernelState, in parts that have no key in common; ``changed``: what no diff has looked at yet.

    Below the pod maps of the parts lies what holds of an address that none of them names.
    """

    def __init__(self) -> None:
        self.mappings: dict[str, dict[Any, Any]] = {name: {} for name in MAPPINGS}
        self.changed = Keys()
        self._below: Mapping[Address, PodFlags] = {}
        self._shown: set[Address] = set()
        """Addresses that no part names."""

    def put(self, replaced: Iterable[tuple[KernelState, KernelState]]) -> None:
        """Put parts in the place of former ones, all at once: what one of them gives up another may have taken over."""
        pairs = tuple(pair for pair in replaced if pair[0] is not pair[1])
        for name in MAPPINGS:
            mapping, changed = self.mappings[name], getattr(self.changed, name)
            gone: dict[Any, None] = {}
            for old, _ in pairs:
                gone.update(dict.fromkeys(getattr(old, name)))
            for _, new in pairs:
                content = getattr(new, name)
                for key, value in content.items():
                    gone.pop(key, None)
                    if mapping.get(key) != value:
                        mapping[key] = value
                        changed[key] = None
            if name == "pods":
                for _, new in pairs:
                    self._shown.difference_update(new.pods)
            for key in gone:
                mapping.pop(key, None)
                changed[key] = None
            if name == "pods":
                self._show(gone)

    def lay(self, pods: Mapping[Address, PodFlags]) -> None:
        """Take in what lies below the parts."""
        mapping = self.mappings["pods"]
        for address in self._shown - pods.keys():
            del mapping[address]
            self.changed.pods[address] = None
            self._shown.discard(address)
        self._below = pods
        self._show(pods)

    def _show(self, addresses: Iterable[Address]) -> None:
        """Let what lies below be seen where no part names an address."""
        mapping = self.mappings["pods"]
        for address in addresses:
            flags = self._below.get(address)
            if flags is None or (address in mapping and address not in self._shown) or mapping.get(address) == flags:
                continue
            mapping[address] = flags
            self._shown.add(address)
            self.changed.pods[address] = None

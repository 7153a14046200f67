# SPDX-License-Identifier: Apache-2.0
"""What keeps our objects alive while a daemon runs: a descriptor of each, from which pins are made again."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.pin_root import RUNNING, claim_again, need_bpffs
from kmesh_bpf.kernel.programs import PIN_NAMES, LoadedPrograms
from kmesh_bpf.kernel.tc import TcAttacher


def allow_descriptors() -> None:
    """Raise the limit of open files to what the process may have: a node of 250 pods takes 700 for links alone."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Pins:
    """The pins of one build below one pin root, whoever removes them.

    Raises:
        KernelError: one of them cannot be opened.

    """

    def __init__(self, pin_root: Path, build: LoadedPrograms, maps: Maps, attacher: TcAttacher) -> None:
        self._pin_root = pin_root
        self._build = build
        self._maps = maps
        self._attacher = attacher
        self._held = {name: bpf.open_pinned(build.programs / name) for name in PIN_NAMES}
        self._claimed = _number(pin_root / RUNNING)
        self._claim: int | None = None

    def close(self) -> None:
        """Let go of all but what the maps and the attacher hold."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def restore(self) -> bool:
        """Make again what is gone of maps and programs, and with it all the rest; tell whether anything was.

        Nothing is compiled, and no packet passes meanwhile that would not have: what runs is held, pinned or not.

        Raises:
            ConflictError: the pin root was removed, and another daemon has claimed it since.
            UnsupportedError: there is no bpffs any more.
            KernelError: the kernel refused.

        """
        gone = [name for name in PIN_NAMES if not (self._build.programs / name).exists()]
        unclaimed = self._claimed is not None and self._claimed != _number(self._pin_root / RUNNING)
        if not gone and not unclaimed and self._maps.complete():
            return False
        need_bpffs(self._pin_root)
        if unclaimed:
            self._claim_again()
        self._maps.restore()
        for name in gone:
            self._build.programs.mkdir(parents=True, exist_ok=True)
            bpf.pin(self._held[name], self._build.programs / name)
        self._attacher.restore()
        return True

    def _claim_again(self) -> None:
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None
        self._claim = claim_again(self._pin_root)
        self._claimed = _number(self._pin_root / RUNNING)


def _number(folder: Path) -> int | None:
    """Give what tells a folder from another one that is made in its place; None: there is none."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None

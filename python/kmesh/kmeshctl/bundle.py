# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl bundle``: one archive for a bug report, with all that may matter and no key."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

from kmesh import unexpected
from kmesh.errors import ClusterError
from kmesh.kmeshctl import opening
from kmesh.kmeshctl.scrubbing import Scrubber
from kmesh.text import one_line
from kmesh_bpf import ConfigError, __version__

NOT_THERE = "what-is-missing.txt"
TELL_SECONDS = 2.0
"""After so long it is said what is being collected."""


class Archive:
    """What was collected, and what could not be had; nothing goes in that was not scrubbed."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.members: dict[str, bytes] = {}
        self.missing: dict[str, str] = {}
        self.materials: list[bytes] = []
        self._told = told

    def add(self, name: str, read: Callable[[], bytes | str]) -> None:
        """Add a file, or that it is missing."""
        self._told(name)
        try:
            found = read()
        except Exception as error:  # noqa: BLE001 # whatever one file's trouble is, the others are worth having
            self.missing[name] = unexpected.sentence(error)
        else:
            self.members[name] = found.encode() if isinstance(found, str) else found

    def write(self, file: Path, now: float) -> None:
        """Write it, for its owner's eyes only.

        Raises:
            ConfigError: it cannot be written.

        """
        scrub = Scrubber(self.materials)
        lines = "".join(f"{name}: {why}\n" for name, why in sorted(self.missing.items()))
        members = {**self.members, NOT_THERE: (lines or "nothing: all that was asked for is here\n").encode()}
        folder = file.name.removesuffix(".gz").removesuffix(".tar")
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
                for name, content in sorted(members.items()):
                    scrubbed = scrub(content)
                    member = tarfile.TarInfo(f"{folder}/{name}")
                    member.size, member.mtime, member.mode = len(scrubbed), int(now), 0o600
                    archive.addfile(member, io.BytesIO(scrubbed))
        except OSError as error:
            raise ConfigError(f"{one_line(str(file))} cannot be written: {error.strerror}") from error


def run(
    flags: argparse.Namespace,
    environment: Mapping[str, str],
    stdout: TextIO,
    stderr: TextIO,
    pin_root: Path | None = None,
) -> int:
    """Collect and write; give the exit status.

    Raises:
        ConfigError: the archive cannot be written.

    """
    now = time.time()
    file = flags.file or Path(time.strftime("kmesh-bundle-%Y%m%d-%H%M%S.tar.gz", time.gmtime(now)))
    archive = Archive(_teller(stderr))
    archive.add("versions/kmeshctl.txt", _versions)
    try:
        with closing(opening.cluster(flags, environment)) as source:
            from kmesh.kmeshctl import cluster_facts  # noqa: PLC0415 # brings all that judges a cluster

            cluster_facts.collect(archive, source, now)
    except (ConfigError, ClusterError) as error:
        archive.missing["cluster/"] = one_line(str(error))
    pin_root = pin_root or _pin_root()
    if pin_root is None:
        archive.missing["node/"] = "this is no Linux, and so no node"
    elif flags.node or _exists(pin_root):
        from kmesh.kmeshctl import node_facts  # noqa: PLC0415 # a laptop needs none of it

        archive.materials += node_facts.keys_here()
        for fact in node_facts.facts(pin_root):
            archive.add(f"node/{fact.name}", fact.read)
    else:
        archive.missing["node/"] = (
            f"no maps of this project are pinned in {pin_root}: this is no node; --node asks it anyway"
        )
    archive.write(file, now)
    print(f"{file}: {len(archive.members)} files, {file.stat().st_size // 1024 + 1} KiB; no key is in it", file=stdout)
    for name, why in sorted(archive.missing.items()):
        print(f"not had: {name}: {why}", file=stdout)
    return 0


def _pin_root() -> Path | None:
    """Give where the daemon pins its maps, on a system that has such."""
    if sys.platform != "linux":
        return None
    from kmesh_bpf import DEFAULT_PIN_ROOT  # noqa: PLC0415 # speaks to the kernel

    return DEFAULT_PIN_ROOT


def _exists(pin_root: Path) -> bool:
    try:
        return pin_root.is_dir()
    except OSError:  # whoever is not root may not look
        return False


def _teller(stderr: TextIO) -> Callable[[str], None]:
    """Give what tells, every few seconds, what is being collected."""
    last = time.monotonic()

    def tell(name: str) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            print(f"kmeshctl: collecting {name} …", file=stderr, flush=True)

    return tell


def _versions() -> str:
    import platform  # noqa: PLC0415 # of no other use

    return (
        f"kmeshctl {__version__}\nPython {platform.python_version()}\n"
        f"{platform.system()} {platform.release()} {platform.machine()}\n"
    )


def pairs_apart(reports: Mapping[str, Any], ready: Callable[[str], bool], most: int) -> Iterator[tuple[str, str]]:
    """Give pairs of nodes of which one cannot send to the other, or does not report, ``most`` at most."""
    found: dict[frozenset[str], tuple[str, str]] = {}
    for name, report in sorted(reports.items()):
        for peer in report.peers:
            if peer.name != name and (not peer.ready or not ready(peer.name)):
                found.setdefault(frozenset((name, peer.name)), (name, peer.name))
    yield from list(found.values())[:most]

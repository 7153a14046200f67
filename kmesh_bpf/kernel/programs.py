# SPDX-License-Identifier: Apache-2.0
"""The programs: compiled by a child process, pinned, and reused as long as sources and settings are the same.

Below the pin root (a folder in bpffs)::

    maps-<contract version>-<capacity>/<map>     shared by all builds of one layout: kmesh_bpf.kernel.map_folders
    programs/<digest of sources and settings>/<program>, and the maps of kmesh_bpf.kernel.events
    links/…, clsact/…                            kmesh_bpf.kernel.tc
    running/                                     locked by the daemon: kmesh_bpf.kernel.pin_root
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from kmesh_bpf import contract
from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import LoadError, UnsupportedError
from kmesh_bpf.kernel import map_folders
from kmesh_bpf.kernel.carry_over import carry_over
from kmesh_bpf.kernel.pin_root import RUNNING, locked, need_bpffs

PROGRAM_NAMES = tuple(program.value for program in Program)
RING, SAMPLING = "kmesh_events", "kmesh_monitor"
PIN_NAMES = (*PROGRAM_NAMES, RING, SAMPLING)
"""What a build is pinned as: its programs, and the maps that only they share."""
SOURCES = ("lookups.c", "tc_mark_encrypt.c", "tc_mark_decrypt.c", "tc_leak_guard.c", "tc_pod_guard.c")
# Run by its path, not as a module: it needs nothing of the package, and the package takes time to import.
LOADER = Path(__file__).with_name("bcc_loader.py")
OWN_FOLDERS = ("programs", "links", "clsact", RUNNING)
DIGEST_DIGITS = 16
UNFINISHED = "unfinished-"
LOAD_SECONDS = 300
"""Time limit of the child; it takes about a second, and up to a minute and a half under emulation on a busy host."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compiled into the programs.

    ``mark_mask``: bits of the low byte of marks that are ours; ``max_pods``: entries that a pod map has room for.
    """

    strict: bool = True
    node_mark_mask: int = contract.NODE_MARK_MASK
    mark_mask: int = contract.MARK_MASK
    max_pods: int = contract.MAX_PODS


@dataclass(frozen=True, slots=True)
class LoadedPrograms:
    """Where they are pinned; ``compiled`` tells whether that took a compilation."""

    programs: Path
    maps: Path
    compiled: bool

    def path(self, program: Program) -> Path:
        """Give the pin of a program."""
        return self.programs / program.value


def source_folder() -> Path:
    """Give the folder of the C sources, as shipped."""
    return Path(str(resources.files("kmesh_bpf.csrc")))


def expected(pin_root: Path, settings: Settings, sources: Path | None = None) -> LoadedPrograms:
    """Give where the programs and maps for these sources and settings belong, be they there or not."""
    sources = sources or source_folder()
    folder = map_folders.maps_folder(pin_root, settings.max_pods)
    return LoadedPrograms(
        pin_root / "programs" / _digest(_compiler_flags(settings, folder), sources), folder, compiled=False
    )


def ensure_loaded(
    pin_root: Path, settings: Settings, sources: Path | None = None, former: Sequence[Path] = ()
) -> LoadedPrograms:
    """Find the programs pinned for these sources and settings, or compile, load and pin them.

    New maps, of another capacity or layout than before, get the entries of the old ones. Of two processes that call
    this for one pin root the second waits, and finds what the first has made.

    Raises:
        LoadError: BCC failed; ``log`` holds all it said.
        MapFullError: the new maps have not enough room for the entries of the old ones.
        UnsupportedError: BCC, the UAPI headers or bpffs are missing.

    """
    sources = sources or source_folder()
    need_bpffs(pin_root)
    wanted = expected(pin_root, settings, sources)
    programs, folder = wanted.programs, wanted.maps
    with locked(pin_root):
        for stale in map_folders.map_folders(pin_root) if former else ():
            _remove(stale, [pin.name for pin in stale.iterdir()])
        if _is_complete(programs) and map_folders.is_complete(folder):
            return wanted
        # Under a name that is never looked for, then renamed: a crash half way leaves nothing that looks complete.
        for left_over in programs.parent.glob(f"{UNFINISHED}*"):
            _remove(left_over, PIN_NAMES)
        for made in (programs.parent, folder):
            made.mkdir(exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=programs.parent))
        try:
            _compile(sources, _compiler_flags(settings, folder), unfinished)
            for root in (pin_root, *former):
                carry_over(root, folder)
            _remove(programs, PIN_NAMES)
            unfinished.rename(programs)
        finally:
            for left in (unfinished, programs.parent, folder):
                _remove(left, PIN_NAMES if left == unfinished else ())
    return LoadedPrograms(programs, folder, compiled=True)


def find_build(pin_root: Path) -> Path | None:
    """Give the folder of the newest build below a pin root that is pinned whole; None: there is none."""
    return next(iter(map_folders.newest_first(filter(_is_complete, pin_root.glob("programs/*")))), None)


def remove_stale(pin_root: Path, keep: LoadedPrograms) -> None:
    """Unpin the programs and maps of other builds; called when no device runs them any more."""
    for folder in pin_root.glob("programs/*"):
        if folder != keep.programs:
            _remove(folder, PIN_NAMES)
    for folder in map_folders.map_folders(pin_root):
        if folder != keep.maps:
            _remove(folder, map_folders.NAMES)


def remove_all(pin_root: Path) -> None:
    """Unpin all programs and maps of ours, and remove the folders that are empty then, the root among them.

    By our names only: a pin root may be a folder that others pin into as well. Maps of former versions may have had
    other names; their folder's name is ours.
    """
    for folder in pin_root.glob("programs/*"):
        _remove(folder, PIN_NAMES)
    for folder in map_folders.map_folders(pin_root):
        _remove(folder, [pin.name for pin in folder.iterdir()])
    for folder in (*(pin_root / name for name in OWN_FOLDERS), pin_root):
        _remove(folder, ())


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove the pins of these names, and the folder if nothing else is in it."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _is_complete(programs: Path) -> bool:
    return all((programs / name).exists() for name in PIN_NAMES)


def _compiler_flags(settings: Settings, folder: Path) -> list[str]:
    return [
        f"-DKMESH_SETTING_STRICT={int(settings.strict)}",
        f"-DKMESH_SETTING_NODE_MARK_MASK={settings.node_mark_mask:#x}",
        f"-DKMESH_SETTING_MARK_MASK={settings.mark_mask:#x}",
        f"-DKMESH_SETTING_MAX_PODS={settings.max_pods}",
        f'-DKMESH_PIN(name)="{folder}/" #name',
    ]


def _digest(flags: list[str], sources: Path) -> str:
    """Fingerprint of everything that a build depends on, BCC's version (its package's, without importing it) too."""
    try:
        compiler = metadata.version("bcc")
    except metadata.PackageNotFoundError:
        compiler = "unknown"
    digest = hashlib.sha256("\0".join([compiler, *flags]).encode())
    for path in sorted(sources.rglob("*.[ch]")):
        digest.update(f"\0{path.relative_to(sources)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:DIGEST_DIGITS]


def _compile(sources: Path, flags: list[str], programs: Path) -> None:
    """Have the child compile all programs as one text, in which BCC rewrites map accesses, and pin them."""
    job = {
        "text": "\n".join(f'#line 1 "{name}"\n{(sources / name).read_text()}' for name in SOURCES),
        "cflags": [*flags, f"-I{sources / 'include'}"],
        "programs": {name: str(programs / name) for name in PROGRAM_NAMES},
        "maps": {name: str(programs / name) for name in (RING, SAMPLING)},
    }
    # -P: the script's folder holds modules of common names, which must not hide those that BCC imports.
    command = [sys.executable, "-P", str(LOADER)]
    with _scratch() as scratch:
        text = json.dumps(job | {"kernel_source": f"{scratch}/linux"})
        try:
            child = subprocess.run(
                command, input=text, capture_output=True, text=True, errors="replace", timeout=LOAD_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LoadError(f"the compiler process failed: {error}") from error
    try:
        answer = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise LoadError(f"the compiler process died with status {child.returncode}", child.stderr) from error
    if "unsupported" in answer:
        raise UnsupportedError(*answer["unsupported"])
    if "error" in answer:
        raise LoadError(f"BCC: {answer['error']}{_reason(child.stderr)}", child.stderr)


@contextmanager
def _scratch() -> Iterator[str]:
    """Make a folder for the child, and remove it.

    Raises:
        LoadError: there is no place for one.

    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="kmesh-bcc-", ignore_cleanup_errors=True)
    except OSError as error:
        remedy = "make /tmp writable, or name another folder in TMPDIR"
        raise LoadError(f"there is no folder for temporary files ({error.strerror}): {remedy}") from error
    with folder as path:
        yield path


def _reason(log: str) -> str:
    """Give the line that tells why: the compiler's first error, else the verifier's last word before its statistics."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    last_words = [line for line in lines if not line.startswith(("processed ", "HINT:"))][-1:]
    return "".join(f" ({line})" for line in (errors or last_words)[:1])

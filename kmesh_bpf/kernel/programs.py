"""The programs: compiled by a child process, pinned, and reused as long as sources and settings are the same.

Below the pin root (a folder in bpffs)::

    maps-<contract version>-<capacity>/<map>     shared by all builds of one layout
    programs/<digest of sources and settings>/<program>
    links/…                                      kmesh_bpf.kernel.tc
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from kmesh_bpf import contract
from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import LoadError, UnsupportedError

DEFAULT_PIN_ROOT = Path("/sys/fs/bpf/kmesh-ipsec")
SOURCES = ("lookups.c", *(f"{program.value}.c" for program in Program))
# Run by its path, not as a module: it needs nothing of the package, and the package takes time to import.
LOADER = Path(__file__).with_name("bcc_loader.py")
OWN_FOLDERS = ("programs", "links", "clsact")
DIGEST_DIGITS = 16
LOAD_SECONDS = 300
"""Time limit of the child; it takes 0.4 s, and ten times that under emulation."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compiled into the programs. ``max_pods``: entries of each pod map."""

    strict: bool = True
    node_mark_mask: int = contract.NODE_MARK_MASK
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


def ensure_loaded(pin_root: Path, settings: Settings, sources: Path | None = None) -> LoadedPrograms:
    """Find the programs pinned for these sources and settings, or compile, load and pin them.

    Raises:
        LoadError: BCC failed; ``log`` holds all it said.
        UnsupportedError: BCC, the UAPI headers or bpffs are missing.

    """
    sources = sources or source_folder()
    _need_bpffs(pin_root)
    maps = pin_root / f"maps-{contract.VERSION}-{settings.max_pods}"
    flags = [
        f"-DKMESH_SETTING_STRICT={int(settings.strict)}",
        f"-DKMESH_SETTING_NODE_MARK_MASK={settings.node_mark_mask:#x}",
        f"-DKMESH_SETTING_MAX_PODS={settings.max_pods}",
        f'-DKMESH_PIN(name)="{maps}/" #name',
    ]
    digest = hashlib.sha256("\0".join(flags).encode())
    for path in sorted(sources.rglob("*.[ch]")):
        digest.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes())
    programs = pin_root / "programs" / digest.hexdigest()[:DIGEST_DIGITS]
    if programs.is_dir() and maps.is_dir():
        return LoadedPrograms(programs, maps, compiled=False)
    # Under a name that is never looked for, then renamed: a crash half way leaves nothing that looks complete.
    unfinished = programs.with_name("unfinished")
    _remove(unfinished)
    for folder in (unfinished, maps):
        folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f'#line 1 "{name}"\n{(sources / name).read_text()}' for name in SOURCES)
    _run_child(text, [*flags, f"-I{sources / 'include'}"], unfinished)
    unfinished.rename(programs)
    return LoadedPrograms(programs, maps, compiled=True)


def find_maps(pin_root: Path) -> Path | None:
    """Give the maps folder of the present layout below a pin root, whatever its capacity; None: nothing pinned."""
    found = sorted(pin_root.glob(f"maps-{contract.VERSION}-*"))
    return found[-1] if found else None


def remove_stale(pin_root: Path, keep: LoadedPrograms) -> None:
    """Unpin the programs and maps of other builds; called when no device runs them any more."""
    for folder in (*pin_root.glob("programs/*"), *pin_root.glob("maps-*")):
        if folder not in (keep.programs, keep.maps):
            _remove(folder)


def remove_all(pin_root: Path) -> None:
    """Unpin what is ours below a pin root; the root goes too if nothing else is in it."""
    for folder in (*pin_root.glob("maps-[0-9]*-[0-9]*"), *(pin_root / name for name in OWN_FOLDERS)):
        _remove(folder)
    with suppress(OSError):  # not there, or not empty: somebody else's pins stay
        pin_root.rmdir()


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _need_bpffs(pin_root: Path) -> None:
    try:
        pin_root.mkdir(parents=True, exist_ok=True)
        kind = subprocess.run(["stat", "-f", "-c", "%T", pin_root], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnsupportedError(f"the pin root {pin_root}", "run as root, with bpffs mounted there") from error
    if kind.stdout.strip() != "bpf_fs":
        raise UnsupportedError(f"bpffs at {pin_root}", "mount it: mount -t bpf bpf /sys/fs/bpf")


def _run_child(text: str, cflags: list[str], programs: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kmesh-bcc-") as folder:
        job = {"text": text, "cflags": cflags, "programs": str(programs), "kernel_source": f"{folder}/linux"}
        try:
            child = subprocess.run(
                [sys.executable, str(LOADER)],
                input=json.dumps(job),
                capture_output=True,
                text=True,
                timeout=LOAD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LoadError(f"the compiler process failed: {error}") from error
    try:
        answer = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise LoadError(f"the compiler process died with status {child.returncode}", child.stderr) from error
    if "missing" in answer:
        remedy = "install Debian's python3-bpfcc and make the virtual environment with --system-site-packages"
        raise UnsupportedError(f"BCC for Python (module {answer['missing']})", remedy)
    if "error" in answer:
        raise LoadError(f"BCC: {answer['error']}{_first_error(child.stderr)}", child.stderr)


def _first_error(log: str) -> str:
    """Give the line that tells why, of a log that may have thousands."""
    found = next((line for line in log.splitlines() if "error:" in line or "invalid" in line), "")
    return f" ({found.strip()})" if found else ""

# SPDX-License-Identifier: Apache-2.0
"""The pin root: a folder in bpffs that is ours alone, made, checked and claimed.

What stands in it: :mod:`kmesh_bpf.kernel.programs`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kmesh_bpf.errors import ConfigError, ConflictError, UnsupportedError
from kmesh_bpf.kernel import bpf

DEFAULT_PIN_ROOT = Path("/sys/fs/bpf/kmesh-ipsec")
RUNNING = "running"
"""A folder whose lock the daemon holds: bpffs has no room for files."""
FOLDER_MODE = 0o755
OTHER_ROOT = "remove it, or name another one with --pin-root"


@contextmanager
def claim(pin_root: Path) -> Iterator[None]:
    """Be the only one who keeps the objects of a pin root, for the length of the block or until the process ends.

    Where nothing was pinned meanwhile, nothing of it is left.

    Raises:
        ConfigError: it is somebody else's.
        ConflictError: another process is (EBUSY).
        UnsupportedError: there is no bpffs.

    """
    need_bpffs(pin_root)
    (pin_root / RUNNING).mkdir(exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(pin_root / RUNNING, fcntl.LOCK_NB))
        except BlockingIOError as error:
            remedy = "a daemon keeps it; stop that one first"
            raise ConflictError("claim", str(pin_root), errno.EBUSY, remedy) from error
        try:
            yield
        finally:
            with suppress(OSError):
                if [path.name for path in pin_root.iterdir()] == [RUNNING]:
                    _remove_empty([pin_root, pin_root / RUNNING])


def claim_again(pin_root: Path) -> int:
    """Claim a pin root that was removed under the one who had claimed it; give the descriptor to hold.

    Raises:
        ConflictError: another process was faster (EBUSY).

    """
    folder = pin_root / RUNNING
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConflictError("claim", str(pin_root), errno.EBUSY, "a second daemon keeps it: stop one") from error
    return descriptor


def need_bpffs(pin_root: Path) -> None:
    """Make a folder in bpffs, for nobody else to write into.

    Raises:
        ConfigError: it is somebody else's.
        UnsupportedError: there is no bpffs, or it may not be written into.

    """
    check_owner(pin_root)
    made = []
    try:
        for folder in (*reversed(pin_root.parents), pin_root):
            if folder == pin_root or not folder.exists():
                made += [] if folder.exists() else [folder]
                folder.mkdir(FOLDER_MODE, exist_ok=True)
    except OSError as error:
        _remove_empty(made)
        remedy = f"run as root, with bpffs mounted there ({error.strerror})"
        raise UnsupportedError(f"the pin root {pin_root}", remedy) from error
    if not bpf.is_bpffs(pin_root):
        _remove_empty(made)
        raise UnsupportedError(f"bpffs at {pin_root}", "mount it: mount -t bpf bpf /sys/fs/bpf")
    check_owner(pin_root)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the last one first, as long as nothing is in them."""
    with suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


def check_name(pin_root: Path) -> None:
    """Refuse what cannot stand in the C source, where maps are pinned by their path.

    Raises:
        ConfigError: names the pin root.

    """
    text = str(pin_root)
    if not text.isprintable() or {'"', "\\"} & set(text):
        raise ConfigError(f"the pin root {text!a} holds characters that no path of a map may have")


def check_owner(pin_root: Path) -> None:
    """Refuse a pin root that others could put something into, be it there already or not.

    Everybody may make folders in bpffs (its mode is 1777), and whoever owns one of ours, or one that ours stands in,
    could give us maps and programs of his own, or have us remove what his links lead to.

    Raises:
        ConfigError: it is somebody else's, or open to all.

    """
    check_name(pin_root)
    allowed = {0, os.geteuid()}
    for start in dict.fromkeys((pin_root, pin_root.resolve())):
        for path in (start, *start.parents):
            try:
                found = path.lstat()
            except OSError:
                continue  # not there yet
            link = stat.S_ISLNK(found.st_mode)
            if not link and (path.is_mount() or not bpf.is_bpffs(path)):
                break
            if found.st_uid not in allowed:
                raise ConfigError(f"the pin root {path} belongs to {_user(found.st_uid)}, not to root: {OTHER_ROOT}")
            if found.st_mode & stat.S_IWOTH and not link:
                raise ConfigError(f"into the pin root {path} everybody may write: {OTHER_ROOT}")


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


@contextmanager
def locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Hold the lock of a folder; ``how``: LOCK_NB, to be told by a BlockingIOError instead of waiting for it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)

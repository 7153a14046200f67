# SPDX-License-Identifier: Apache-2.0
"""The guard of kmesh_bpf.core.boot_guard: kept in a file that outlives a boot, loaded, removed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kmesh_bpf.core import boot_guard
from kmesh_bpf.core.view import Address
from kmesh_bpf.errors import ConfigError, KernelError, UnsupportedError
from kmesh_bpf.kernel import nft

FILE = "boot-guard.nft"
TARGET = f"nft table inet {boot_guard.TABLE}"


def keep(folder: Path, remote: Iterable[Address]) -> None:
    """Write the file, whole or not at all.

    Raises:
        ConfigError: the folder cannot be written into, or is somebody else's.

    """
    _check_owner(folder)
    path = folder / FILE
    unfinished = path.with_suffix(".unfinished")
    try:
        folder.mkdir(0o755, parents=True, exist_ok=True)
        unfinished.touch(0o644)  # whatever the umask: nobody else may write it
        with unfinished.open("w") as file:
            file.write(boot_guard.installation(remote))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise ConfigError(
            f"--state-dir={folder}: {error.strerror}; nothing guards the next boot of this node"
        ) from error


def forget(folder: Path) -> None:
    """Remove the file, and the folder if nothing else is in it; whether they are there or not.

    Raises:
        ConfigError: the file cannot be removed.

    """
    try:
        (folder / FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--state-dir={folder}: {error.strerror}; remove {FILE} there by hand") from error
    with suppress(OSError):
        folder.rmdir()  # the one that a container has mounted stays


def install(folder: Path) -> bool:
    """Load the file; False: there is none, for this node was never managed, or is permissive.

    Raises:
        ConfigError: the folder or the file is somebody else's, who could have anything loaded.
        UnsupportedError: there is no nft.
        KernelError: it could not be loaded.

    """
    _check_owner(folder)
    path = folder / FILE
    if not path.exists():
        return False
    nft.run("install", TARGET, ["-f", str(path)])
    return True


def remove() -> None:
    """Remove the guard, if there; where there is no nft, or no nf_tables, there is none.

    Raises:
        UnsupportedError: nft is there, and cannot be started.
        KernelError: the kernel refused.

    """
    try:
        nft.run("remove", TARGET, ["-f", "-"], boot_guard.removal())
    except UnsupportedError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    except KernelError as error:
        if error.errno not in nft.UNSUPPORTED:
            raise


def _check_owner(folder: Path) -> None:
    for path in (folder, folder / FILE):
        try:
            found = path.lstat()
        except OSError:
            continue  # not there yet, and making it will tell
        if found.st_uid not in {0, os.geteuid()} or (found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode)):
            raise ConfigError(
                f"--state-dir={folder}: others than root may write {path}; remove it, or name another one"
            )

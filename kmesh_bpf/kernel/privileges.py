# SPDX-License-Identifier: Apache-2.0
"""What the kernel permits this process, asked before anything is touched: its own refusals come late, and half way."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from kmesh_bpf.errors import UnsupportedError

STATUS = Path("/proc/thread-self/status")
EFFECTIVE = "CapEff:"


class Capability(Enum):
    """What we need of the kernel: the bits of linux/capability.h that permit it, any of them, and what it is for."""

    NET_ADMIN = (1 << 12, "XFRM, TC and nftables")
    BPF = (1 << 39 | 1 << 21, "BPF programs and maps")  # SYS_ADMIN too, the only one before Linux 5.8


def need(*wanted: Capability) -> None:
    """Go on only where the kernel permits what is needed; where it does not say, it will when it is asked.

    Raises:
        UnsupportedError: one sentence with all that are missing.

    """
    held = _effective()
    missing = [one for one in wanted if held is not None and not held & one.value[0]]
    if missing:
        what = " and ".join(f"for {one.value[1]} (capability {one.name})" for one in missing)
        raise UnsupportedError(f"permission {what}", "run as root, or have it permitted to this process")


def _effective() -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.removeprefix(EFFECTIVE), 16) for line in lines if line.startswith(EFFECTIVE))
    except (OSError, ValueError, StopIteration):
        return None

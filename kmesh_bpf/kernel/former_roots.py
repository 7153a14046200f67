# SPDX-License-Identifier: Apache-2.0
"""Links that a daemon with another pin root has left behind: pinned there they run on, by maps that nobody keeps.

They are ours to take over: behind our programs theirs would wipe marks off, and drop what their maps do not know.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import KmeshBpfError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.pin_root import RUNNING, check_owner, locked

LINKS = "links"
PROGRAMS = {program.value: program for program in Program}


def place_of(pin: Path) -> tuple[int, Program] | None:
    """Give the device (ifindex) and the program that a pin of a link is named by; None: it is no such pin."""
    ifindex, _, name = pin.name.partition("-")
    return (int(ifindex), PROGRAMS[name]) if name in PROGRAMS and ifindex.isdecimal() else None


def left_links(pin_root: Path) -> Iterator[tuple[tuple[int, Program], Path, int]]:
    """Give (place, pin, descriptor) of links that run on devices of this network namespace without being ours.

    They are looked for in folders beside our pin root, root's, that no daemon keeps; a folder's lock is held meanwhile.
    The descriptor is the caller's.
    """
    with suppress(OSError):
        for folder in sorted(pin_root.parent.iterdir()):
            if folder != pin_root and (folder / LINKS).is_dir():
                with suppress(KmeshBpfError, OSError), ExitStack() as held:
                    check_owner(folder)
                    if (folder / RUNNING).exists():
                        held.enter_context(locked(folder / RUNNING, fcntl.LOCK_NB))
                    yield from _of(folder / LINKS)


def _of(links: Path) -> Iterator[tuple[tuple[int, Program], Path, int]]:
    for pin in sorted(links.iterdir()):
        place = place_of(pin)
        if place is None:
            continue
        fd = bpf.open_pinned(pin)
        with suppress(KmeshBpfError):
            info, wanted = bpf.link_info(fd, pin), (place[0], bpf.direction(place[1].egress))
            # An ifindex is one of many namespaces; a program that runs here runs here.
            if (info.ifindex, info.attach_type) == wanted and info.program_id in bpf.programs_on(*wanted):
                yield place, pin, fd
                continue
        os.close(fd)

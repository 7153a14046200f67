# SPDX-License-Identifier: Apache-2.0
"""Pin roots of daemons before, whose programs run on this namespace's devices though none of them keeps their maps.

Who comes with another pin root takes all of it over: what the maps say, before any program is replaced, then the links,
which would run on behind ours as long as they are pinned. The former root is removed, for what it says is soon not so.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import KmeshBpfError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.clsact import Clsact
from kmesh_bpf.kernel.pin_root import RUNNING, check_owner, locked

LINKS, CLSACT = "links", "clsact"
PROGRAMS = {program.value: program for program in Program}


def place_of(pin: Path) -> tuple[int, Program] | None:
    """Give the device (ifindex) and the program that a pin of a link is named by; None: it is no such pin."""
    ifindex, _, name = pin.name.partition("-")
    return (int(ifindex), PROGRAMS[name]) if name in PROGRAMS and ifindex.isdecimal() else None


def running_here(pin_root: Path) -> tuple[Path, ...]:
    """Give the folders beside a pin root, root's and kept by no daemon, whose programs run in this network namespace.

    Nothing if our pin root's own run: then it is the one that tells what is so.
    """
    with suppress(OSError, KmeshBpfError):
        running = _running(pin_root)
        if running and not _runs(pin_root, running):
            folders = (one for one in sorted(pin_root.parent.iterdir()) if one != pin_root)
            return tuple(one for one in folders if _is_free(one) and _runs(one, running))
    return ()


def links_here(root: Path) -> Iterator[tuple[tuple[int, Program], Path, int]]:
    """Give (place, pin, descriptor) of a pin root's links on devices of this namespace; the caller closes those."""
    pins = sorted((root / LINKS).iterdir()) if (root / LINKS).is_dir() else ()
    for pin in pins:
        place = place_of(pin)
        if place is None:
            continue
        fd = bpf.open_pinned(pin)
        info, wanted = bpf.link_info(fd, pin), (place[0], bpf.direction(place[1].egress))
        if (info.ifindex, info.attach_type) == wanted and info.program_id in bpf.programs_on(*wanted):
            yield place, pin, fd
        else:
            os.close(fd)


def _running(pin_root: Path) -> frozenset[int]:
    """Give the kernel's numbers of all programs that may be ours on devices of this namespace."""
    places = [(index, bpf.direction(egress)) for index, _ in socket.if_nameindex() for egress in (False, True)]
    chains = (number for place in places for number in bpf.programs_on(*place))
    return frozenset((*chains, *Clsact(pin_root / CLSACT).attached().values()))


def _runs(root: Path, running: frozenset[int]) -> bool:
    pins = (pin for pin in root.glob("programs/*/*") if pin.name in PROGRAMS)
    return any(bpf.program_id(pin) in running for pin in pins)


def _is_free(root: Path) -> bool:
    with suppress(KmeshBpfError, OSError):
        if not (root / "programs").is_dir():
            return False
        check_owner(root)
        if (root / RUNNING).exists():
            with locked(root / RUNNING, fcntl.LOCK_NB):
                return True
        return True
    return False

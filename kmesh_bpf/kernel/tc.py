# SPDX-License-Identifier: Apache-2.0
"""Programs on devices: TCX links where the kernel has them (6.6), else filters of a clsact qdisc.

TCX links go to the head of the chain. A program of another CNI that ends the chain (TC_ACT_OK, a redirect) must not get
round encryption or the guard; ours answer TC_ACT_UNSPEC, so all behind them still run. Whoever attaches at the head
later is found ahead at the next look, and ours go ahead of it again: for the microseconds that it takes one of them is
not there, and the others hold. A filter of clsact cannot: all of TCX comes before it, and that is told.

A link lives as long as its pin, ``links/<ifindex>-<program>`` below the pin root, or a descriptor of it: one is held
for each, so that whoever removes a pin detaches nothing, and the pin is made again. A pin root belongs to one network
namespace: the kernel tells a link's ifindex, not the namespace that it counts in.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.errors import ConflictError, KernelError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.clsact import Clsact
from kmesh_bpf.kernel.former_roots import LINKS, left_links, place_of
from kmesh_bpf.kernel.interface import AttachMode
from kmesh_bpf.kernel.programs import LoadedPrograms

NO_DEVICE = 0x7FFFFFFF
"""An ifindex that no device has: the kernel counts up from 1."""

Place = tuple[int, Program]
"""Where a program sits: ifindex, and which of ours it is."""


class TcAttacher:
    """Attaches, finds and detaches the programs of one pin root in the caller's network namespace."""

    def __init__(self, pin_root: Path, mode: AttachMode = "auto") -> None:
        self._pin_root, self._links = pin_root, pin_root / LINKS
        self._clsact = Clsact(pin_root / "clsact")
        self._mode = mode
        self._held: dict[Place, int] = {}  # descriptors
        self._filters = True  # whether any program of ours may be a filter of clsact

    def close(self) -> None:
        """Let go of the links; what is pinned goes on working."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def take_over(self) -> frozenset[Path]:
        """Take links over that a daemon with another pin root has left here, as they are; give those pin roots.

        Raises:
            KernelError: the kernel refused.

        """
        self._hold_pinned()
        roots = set()
        for place, pin, fd in left_links(self._pin_root):
            if place in self._held:
                bpf.detach_link(fd, pin)
                os.close(fd)
            else:
                self._held[place] = fd
                self._pin_again(place, fd)
            pin.unlink(missing_ok=True)
            roots.add(pin.parent.parent)
        return frozenset(roots)

    def attach(self, attachment: Attachment, program: Path) -> None:
        """Attach a pinned program, or put it in the place of an older one of ours without a gap.

        One that sits there in the other way (the mode was changed) goes after the new one has come.

        Raises:
            ConflictError: a filter that is not ours stands in its place, or a program ahead of all filters.
            UnsupportedError: the mode is ``tcx``, and the kernel has none.
            KernelError: the kernel refused.

        """
        with bpf.opened(program) as fd:
            if self._mode != "clsact" and self._attach_tcx(attachment, fd):
                if self._filters:
                    self._clsact.detach(attachment)
            else:
                self._clsact.attach(attachment, fd)
                self._filters = True
                self._let_go((attachment.ifindex, attachment.program))
                self._check_first(attachment, fd)

    def attached(self, links: tuple[Link, ...], build: LoadedPrograms | None) -> frozenset[Attachment]:
        """Give what of ours runs on these devices.

        Current is what runs this build's program (None: any will do), sits there in one way only, and is the first.
        Pins of links whose device is gone are removed on the way: they do nothing, and nobody else would ever ask.

        Raises:
            DecodeError, KernelError: it could not be found out.

        """
        self._hold_pinned()
        filters = self._clsact.attached()
        self._filters = bool(filters)
        return self._attachments(links, build, filters)

    def attached_links(self, links: tuple[Link, ...], build: LoadedPrograms | None) -> frozenset[Attachment] | None:
        """Give the same, cheaply, by the links that are held; None: not all of ours are links.

        Raises:
            KernelError: it could not be found out.

        """
        return None if self._filters else self._attachments(links, build, {})

    def detach(self, attachment: Attachment) -> None:
        """Take a program of ours off a device, if it is there; whatever is not ours stays.

        The kernel lets go of a link in a work queue: some milliseconds later.

        Raises:
            KernelError: the kernel refused.

        """
        self._let_go((attachment.ifindex, attachment.program))
        self._clsact.detach(attachment)

    def restore(self) -> None:
        """Make again what should be below a pin root that was removed.

        Raises:
            KernelError: the kernel refused.

        """
        for place, fd in self._held.items():
            self._pin_again(place, fd)
        self._clsact.restore()

    def _attachments(
        self, links: tuple[Link, ...], build: LoadedPrograms | None, filters: dict[Place, int]
    ) -> frozenset[Attachment]:
        names = {link.ifindex: link.name for link in links}
        wanted = {program: bpf.program_id(build.path(program)) for program in Program} if build else {}
        linked = dict(self._linked())
        found = set()
        for place, program_id in {**filters, **linked}.items():
            ifindex, program = place
            if ifindex in names:
                twice = place in linked and place in filters
                first = bpf.first_program(ifindex, _direction(program)) in ((program_id,) if place in linked else (0,))
                current = first and not twice and wanted.get(program, program_id) == program_id
                found.add(Attachment(ifindex, names[ifindex], program, current))
        return frozenset(found)

    def _pin(self, place: Place) -> Path:
        return self._links / f"{place[0]}-{place[1].value}"

    def _linked(self) -> Iterator[tuple[Place, int]]:
        """Give (place, the kernel's number of the program that runs) of links still attached; let go of the others.

        Whoever has the right may detach a link by force; then it is of no device, as if that were gone.
        """
        for place, fd in list(self._held.items()):
            info = bpf.link_info(fd, self._pin(place))
            if info.ifindex == place[0]:
                self._pin_again(place, fd)
                yield place, info.program_id
            else:
                self._let_go(place)

    def _pin_again(self, place: Place, fd: int) -> None:
        path = self._pin(place)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            bpf.pin(fd, path)

    def _hold_pinned(self) -> None:
        """Take hold of what a former process has pinned."""
        for path in self._links.iterdir() if self._links.is_dir() else ():
            if (place := place_of(path)) is not None:
                self._hold(place)

    def _hold(self, place: Place) -> int | None:
        """Give the descriptor of the link in a place; None: there is none."""
        if place not in self._held and self._pin(place).exists():
            self._held[place] = bpf.open_pinned(self._pin(place))
        return self._held.get(place)

    def _let_go(self, place: Place) -> None:
        self._pin(place).unlink(missing_ok=True)
        fd = self._held.pop(place, None)
        if fd is not None:
            os.close(fd)

    def _check_first(self, attachment: Attachment, program: int) -> None:
        target = f"{attachment.program.value} to {attachment.device} (clsact)"
        ahead = bpf.first_program(attachment.ifindex, _direction(attachment.program))
        # Of a link of ours that has just been let go the program may be there for some milliseconds.
        if ahead not in (0, bpf.program_number(program, target)):
            detail = f"program {ahead}, which is not ours, runs ahead of all filters (TCX): take it off, or do not ask"
            raise ConflictError("attach", target, errno.EEXIST, f"{detail} for --tc-attach=clsact")

    def _attach_tcx(self, attachment: Attachment, program: int) -> bool:
        """Give False if this kernel has no TCX, and another way may be taken."""
        place = (attachment.ifindex, attachment.program)
        attach_type = _direction(attachment.program)
        held = self._hold(place)
        if held is not None:
            info = bpf.link_info(held, self._pin(place))
            if (info.ifindex, info.attach_type) == (attachment.ifindex, attach_type):
                if bpf.first_program(attachment.ifindex, attach_type) == info.program_id:
                    bpf.update_link(held, program, self._pin(place))
                    self._pin_again(place, held)
                    return True
                bpf.detach_link(held, self._pin(place))  # a program can be in a chain once only
            self._let_go(place)  # or its device is gone, and the number was given to another
        link = bpf.create_link(program, attachment.ifindex, attach_type)
        # An attach type that is not known and much else are EINVAL; of a device that is not there only TCX complains.
        if link == -errno.EINVAL and bpf.create_link(program, NO_DEVICE, attach_type) != -errno.ENODEV:
            if self._mode == "tcx":
                raise UnsupportedError("TCX", "it needs Linux 6.6; the mode clsact works on older kernels")
            return False
        if link < 0:
            raise KernelError("attach", f"{attachment.program.value} to {attachment.device} (TCX)", -link)
        self._held[place] = link
        self._pin_again(place, link)
        return True


def _direction(program: Program) -> int:
    return bpf.direction(program.egress)

"""Programs on devices: TCX links where the kernel has them (6.6), else filters of a clsact qdisc.

TCX links go to the head of the chain. A program of another CNI that ends the chain (TC_ACT_OK, a redirect) must not get
round encryption or the guard; ours answer TC_ACT_UNSPEC, so all behind them still run. Whoever attaches at the head
later stands before us again: the order among two that both want to be first is the order of their coming.

A link lives as long as its pin, ``links/<ifindex>-<program>`` below the pin root. A pin root belongs to one network
namespace: the kernel tells a link's ifindex, not the namespace that it counts in.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.errors import KernelError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.clsact import Clsact
from kmesh_bpf.kernel.interface import AttachMode
from kmesh_bpf.kernel.programs import LoadedPrograms

PROGRAMS = {program.value: program for program in Program}
NO_DEVICE = 0x7FFFFFFF
"""An ifindex that no device has: the kernel counts up from 1."""


class TcAttacher:
    """Attaches, finds and detaches the programs of one pin root in the caller's network namespace."""

    def __init__(self, pin_root: Path, mode: AttachMode = "auto") -> None:
        self._links = pin_root / "links"
        self._clsact = Clsact(pin_root / "clsact")
        self._mode = mode

    def attach(self, attachment: Attachment, program: Path) -> None:
        """Attach a pinned program, or put it in the place of an older one of ours without a gap.

        One that sits there in the other way (the mode was changed) goes after the new one has come.

        Raises:
            ConflictError: a filter that is not ours stands in its place.
            UnsupportedError: the mode is ``tcx``, and the kernel has none.
            KernelError: the kernel refused.

        """
        with bpf.opened(program) as fd:
            if self._mode != "clsact" and self._attach_tcx(attachment, fd):
                self._clsact.detach(attachment)
            else:
                self._clsact.attach(attachment, fd)
                self._pin(attachment).unlink(missing_ok=True)

    def attached(self, links: tuple[Link, ...], build: LoadedPrograms | None) -> frozenset[Attachment]:
        """Give what of ours runs on these devices.

        Current is what runs this build's program (None: any will do), and sits there in one way only.
        Pins of links whose device is gone are removed on the way: they do nothing, and nobody else would ever ask.

        Raises:
            DecodeError, KernelError: it could not be found out.

        """
        names = {link.ifindex: link.name for link in links}
        wanted = {program: bpf.program_id(build.path(program)) for program in Program} if build else {}
        pinned, filters = dict(self._pinned()), self._clsact.attached()
        found = set()
        for place, program_id in {**filters, **pinned}.items():
            ifindex, program = place
            if ifindex in names:
                twice = place in pinned and place in filters
                current = not twice and wanted.get(program, program_id) == program_id
                found.add(Attachment(ifindex, names[ifindex], program, current))
        return frozenset(found)

    def detach(self, attachment: Attachment) -> None:
        """Take a program of ours off a device, if it is there; whatever is not ours stays.

        The kernel lets go of a link without a pin in a work queue: some milliseconds later.

        Raises:
            KernelError: the kernel refused.

        """
        self._pin(attachment).unlink(missing_ok=True)
        self._clsact.detach(attachment)

    def _pin(self, attachment: Attachment) -> Path:
        return self._links / f"{attachment.ifindex}-{attachment.program.value}"

    def _pinned(self) -> Iterator[tuple[tuple[int, Program], int]]:
        """Give ((ifindex, program), the kernel's number of the program that runs) of links that are still attached."""
        for path in self._links.iterdir() if self._links.is_dir() else ():
            ifindex, _, name = path.name.partition("-")
            if name not in PROGRAMS:
                continue
            info = bpf.link_info(path)
            if info.ifindex == 0:
                path.unlink()
            elif str(info.ifindex) == ifindex:
                yield (info.ifindex, PROGRAMS[name]), info.program_id

    def _attach_tcx(self, attachment: Attachment, program: int) -> bool:
        """Give False if this kernel has no TCX, and another way may be taken."""
        path = self._pin(attachment)
        attach_type = bpf.TCX_EGRESS if attachment.program.egress else bpf.TCX_INGRESS
        if path.exists():
            info = bpf.link_info(path)
            if (info.ifindex, info.attach_type) == (attachment.ifindex, attach_type):
                with bpf.opened(path) as link:
                    bpf.update_link(link, program, path)
                return True
            path.unlink()  # its device is gone, and the number was given to another
        link = bpf.create_link(program, attachment.ifindex, attach_type)
        # An attach type that is not known and much else are EINVAL; of a device that is not there only TCX complains.
        if link == -errno.EINVAL and bpf.create_link(program, NO_DEVICE, attach_type) != -errno.ENODEV:
            if self._mode == "tcx":
                raise UnsupportedError("TCX", "it needs Linux 6.6; the mode clsact works on older kernels")
            return False
        if link < 0:
            raise KernelError("attach", f"{attachment.program.value} to {attachment.device} (TCX)", -link)
        try:
            path.parent.mkdir(exist_ok=True)
            bpf.pin(link, path)
        finally:
            os.close(link)
        return True

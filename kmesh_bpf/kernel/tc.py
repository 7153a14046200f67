"""Programs on devices: TCX links where the kernel has them (6.6), else filters of a clsact qdisc.

Ours go to the head of the chain. A program of another CNI that ends the chain (TC_ACT_OK, a redirect) must not get
round encryption or the guard; ours answer TC_ACT_UNSPEC, so all behind them still run.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmesh_bpf import contract
from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.errors import ConflictError, KernelError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.interface import AttachMode
from kmesh_bpf.kernel.programs import LoadedPrograms

CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MIN_INGRESS, TC_H_MIN_EGRESS of linux/pkt_sched.h
CLSACT = 0xFFFF0000
ETH_P_ALL = 3
# A filter is named PROGRAM:BUILD, for pyroute2 does not decode the program's number (TCA_BPF_ID).
# What BPF_LINK_CREATE answers to an attach type it does not know.
NO_TCX = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def _parent(program: Program) -> int:
    return CLSACT_EGRESS if program.egress else CLSACT_INGRESS


class TcAttacher:
    """Attaches, finds and detaches the programs of one pin root in the caller's network namespace."""

    def __init__(self, ip: IPRoute, pin_root: Path, mode: AttachMode = "auto") -> None:
        self._ip = ip
        self._links = pin_root / "links"
        self._qdiscs = pin_root / "clsact"
        self._mode = mode

    def attach(self, attachment: Attachment, program: Path) -> None:
        """Attach a pinned program, or put it in the place of an older one of ours without a gap.

        Raises:
            ConflictError: a filter that is not ours stands in its place.
            KernelError: the kernel refused.

        """
        if self._mode != "clsact" and self._attach_tcx(attachment, program):
            self._delete_filter(attachment)  # of a time before TCX
            return
        self._attach_clsact(attachment, program)
        self._unpin(attachment)

    def attached(self, links: tuple[Link, ...], build: LoadedPrograms | None) -> frozenset[Attachment]:
        """Give what of ours is attached to these devices; current: as this build has it (None: any will do)."""
        names = {link.ifindex: link.name for link in links}
        found: set[Attachment] = set()
        for ifindex, name in names.items():
            for program in Program:
                path = self._pin(ifindex, program)
                if path.exists() and (info := bpf.link_info(path)).ifindex == ifindex:
                    current = build is None or info.program_id == bpf.program_id(build.path(program))
                    found.add(Attachment(ifindex, name, program, current))
        places = {(one.ifindex, one.program) for one in found}
        for ifindex in self._devices_with_clsact() & names.keys():
            for program in Program:
                version = self._filter(ifindex, program)
                if version is not None and (ifindex, program) not in places:
                    current = build is None or version == build.programs.name
                    found.add(Attachment(ifindex, names[ifindex], program, current))
        return frozenset(found)

    def detach(self, attachment: Attachment) -> None:
        """Take a program of ours off a device; whatever is not ours stays."""
        self._unpin(attachment)
        self._delete_filter(attachment)

    def _pin(self, ifindex: int, program: Program) -> Path:
        return self._links / f"{ifindex}-{program.value}"

    def _unpin(self, attachment: Attachment) -> None:
        self._pin(attachment.ifindex, attachment.program).unlink(missing_ok=True)

    def _attach_tcx(self, attachment: Attachment, program: Path) -> bool:
        path = self._pin(attachment.ifindex, attachment.program)
        with bpf.opened(program) as fd:
            if path.exists():
                if bpf.link_info(path).ifindex == attachment.ifindex:
                    with bpf.opened(path) as link:
                        bpf.update_link(link, fd, path)
                    return True
                path.unlink()  # its device is gone, and the number was given to another
            attach_type = bpf.TCX_EGRESS if attachment.program.egress else bpf.TCX_INGRESS
            link = bpf.create_link(fd, attachment.ifindex, attach_type)
            if link < 0:
                if -link in NO_TCX and self._mode == "auto":
                    return False
                raise KernelError("attach", f"{attachment.program.value} to {attachment.device} (TCX)", -link)
            try:
                path.parent.mkdir(exist_ok=True)
                bpf.pin(link, path)
            finally:
                os.close(link)
            return True

    def _attach_clsact(self, attachment: Attachment, program: Path) -> None:
        target = f"{attachment.program.value} to {attachment.device} (clsact)"
        foreign = [
            name
            for handle, name in self._filters_at(attachment.ifindex, attachment.program)
            if handle == contract.TC_HANDLE and name.partition(":")[0] not in {one.value for one in Program}
        ]
        if foreign:
            raise ConflictError("attach", target, errno.EEXIST, f"filter {foreign[0]!r} of somebody else is there")
        try:
            if attachment.ifindex not in self._devices_with_clsact():
                self._ip.tc("add", "clsact", attachment.ifindex)
                (self._qdiscs / str(attachment.ifindex)).mkdir(parents=True, exist_ok=True)
            with bpf.opened(program) as fd:
                self._ip.tc(
                    "replace-filter",
                    "bpf",
                    attachment.ifindex,
                    contract.TC_HANDLE,
                    parent=_parent(attachment.program),
                    prio=contract.TC_PRIORITY,
                    protocol=ETH_P_ALL,
                    fd=fd,
                    name=f"{attachment.program.value}:{program.parent.name}",
                    direct_action=True,
                )
        except NetlinkError as error:
            raise KernelError("attach", target, error.code or 0, str(error)) from error

    def _devices_with_clsact(self) -> set[int]:
        return {found["index"] for found in self._ip.get_qdiscs() if found.get_attr("TCA_KIND") == "clsact"}

    def _filter_messages(self, ifindex: int, parent: int) -> list[Any]:
        return list(self._ip.get_filters(index=ifindex, parent=parent))

    def _filters_at(self, ifindex: int, program: Program) -> list[tuple[int, str]]:
        """Give (handle, name) of the bpf filters of our priority where a program belongs."""
        if ifindex not in self._devices_with_clsact():
            return []
        found = []
        for one in self._filter_messages(ifindex, _parent(program)):
            options = one.get_attr("TCA_OPTIONS")
            if one.get_attr("TCA_KIND") == "bpf" and options and one["info"] >> 16 == contract.TC_PRIORITY:
                found.append((one["handle"], options.get_attr("TCA_BPF_NAME") or ""))
        return found

    def _filter(self, ifindex: int, program: Program) -> str | None:
        """Give the build that our filter's program is of; None: no such filter."""
        for handle, name in self._filters_at(ifindex, program):
            if handle == contract.TC_HANDLE and name.partition(":")[0] == program.value:
                return name.partition(":")[2]
        return None

    def _delete_filter(self, attachment: Attachment) -> None:
        """Delete our filter, and the qdisc if we made it and nobody else uses it."""
        ifindex = attachment.ifindex
        if ifindex not in self._devices_with_clsact():
            return
        try:
            if self._filter(ifindex, attachment.program) is not None:
                self._ip.tc(
                    "del-filter",
                    "bpf",
                    ifindex,
                    contract.TC_HANDLE,
                    parent=_parent(attachment.program),
                    prio=contract.TC_PRIORITY,
                    protocol=ETH_P_ALL,
                )
            marker = self._qdiscs / str(ifindex)
            left = [self._filter_messages(ifindex, parent) for parent in (CLSACT_INGRESS, CLSACT_EGRESS)]
            if marker.exists() and not any(left):
                self._ip.tc("del", "clsact", ifindex)
                marker.rmdir()
        except NetlinkError as error:
            target = f"{attachment.program.value} from {attachment.device} (clsact)"
            raise KernelError("detach", target, error.code or 0, str(error)) from error

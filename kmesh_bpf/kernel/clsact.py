# SPDX-License-Identifier: Apache-2.0
"""Programs on devices by a clsact qdisc and its filters: for kernels without TCX (before 6.6).

On our own netlink transport, because pyroute2 does not decode which program a filter runs (TCA_BPF_ID).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.state import Attachment, Program
from kmesh_bpf.errors import ConflictError, DecodeError, KernelError
from kmesh_bpf.kernel.netlink import NetlinkSocket, align, attribute, attributes, message

HEADER = align(ffi.sizeof("struct tcmsg"))
OUR_NAMES = frozenset(program.value for program in Program)
PRIORITY_SHIFT = 16  # tcm_info: priority in the upper half, protocol (network byte order) in the lower
OUR_INFO = contract.TC_PRIORITY << PRIORITY_SHIFT | socket.htons(lib.ETH_P_ALL)


@dataclass(frozen=True, slots=True)
class Filter:
    """A TC filter. ``info`` holds priority and protocol; ``program_id`` is 0 for one that is no BPF program.

    Handle 0 stands for all filters of a priority and chain: they are of one kind and protocol.
    """

    kind: str
    handle: int
    info: int
    chain: int
    name: str
    program_id: int

    @property
    def program_name(self) -> str:
        """The program's name: tc, attaching a pinned program, adds ``:[*fsobj]`` to it."""
        return self.name.partition(":")[0]

    @property
    def is_ours(self) -> bool:
        """Whether it sits at our place under a name of ours."""
        place = (self.kind, self.chain, self.info, self.handle)
        return place == ("bpf", 0, OUR_INFO, contract.TC_HANDLE) and self.program_name in OUR_NAMES

    @property
    def is_in_our_way(self) -> bool:
        """Whether ours cannot be installed as long as it is there."""
        if self.chain or self.info >> PRIORITY_SHIFT != contract.TC_PRIORITY:
            return False
        other_sort = self.kind != "bpf" or self.info != OUR_INFO
        return other_sort or (self.handle == contract.TC_HANDLE and not self.is_ours)


class Clsact:
    """Our filters in the caller's network namespace.

    ``made`` is a folder in bpffs: a folder in it, named by the device's ifindex, says that its qdisc is of our making.
    """

    def __init__(self, made: Path) -> None:
        self._made = made
        self._ours: set[int] = set()  # what the folder said when it was last looked at, should somebody remove it

    def attach(self, attachment: Attachment, fd: int) -> None:
        """Run a program (a descriptor) on a device, in place of an older one of ours, without a gap.

        Raises:
            ConflictError: a filter or an ingress qdisc that is not ours stands in its place.
            KernelError: the kernel refused.

        """
        ifindex, program = attachment.ifindex, attachment.program
        target = f"{program.value} to {attachment.device} (clsact)"
        with NetlinkSocket(lib.NETLINK_ROUTE) as sock:
            self._need_qdisc(sock, ifindex, target)
            foreign = next((one for one in _filters(sock, ifindex, program) if one.is_in_our_way), None)
            if foreign:
                detail = f"a {foreign.kind} filter {foreign.name!r} is at priority {contract.TC_PRIORITY}"
                raise ConflictError("attach", target, errno.EEXIST, detail)
            options = (
                attribute(lib.TCA_BPF_FD, _u32(fd))
                + attribute(lib.TCA_BPF_NAME, program.value.encode() + b"\0")
                + attribute(lib.TCA_BPF_FLAGS, _u32(lib.TCA_BPF_FLAG_ACT_DIRECT))
            )
            body = _our_filter(ifindex, program) + attribute(lib.TCA_OPTIONS, options)
            # Without NLM_F_EXCL the kernel swaps the program of a filter that is there.
            try:
                _do(sock, message(lib.RTM_NEWTFILTER, lib.NLM_F_CREATE, body), "attach", target)
            except KernelError:
                self._remove_qdisc_if_unused(sock, ifindex)
                raise

    def attached(self) -> dict[tuple[int, Program], int]:
        """Give (ifindex, program) -> the kernel's number of the program, for all devices.

        Marks of qdiscs that have gone with their device are removed on the way.
        """
        found: dict[tuple[int, Program], int] = {}
        with NetlinkSocket(lib.NETLINK_ROUTE) as sock:
            devices = {ifindex for ifindex, kind in _qdiscs(sock).items() if kind == "clsact"}
            for ifindex in devices:
                for direction in (Program.MARK_DECRYPT, Program.LEAK_GUARD):  # shows the filters of its whole direction
                    for one in _filters(sock, ifindex, direction):
                        if one.is_ours and Program(one.program_name).egress is direction.egress:
                            found[ifindex, Program(one.program_name)] = one.program_id
        marks = {mark for mark in self._made.iterdir() if mark.name.isdecimal()} if self._made.is_dir() else set()
        self._ours = {int(mark.name) for mark in marks} & devices
        for mark in marks:
            if int(mark.name) not in devices:
                mark.rmdir()
        return found

    def restore(self) -> None:
        """Make the folder again that says which qdiscs are of our making, after somebody has removed it."""
        for ifindex in self._ours:
            (self._made / str(ifindex)).mkdir(parents=True, exist_ok=True)

    def detach(self, attachment: Attachment) -> None:
        """Delete our filter, if it is there, and the qdisc if it is of our making and nobody else uses it.

        Raises:
            KernelError: the kernel refused.

        """
        ifindex, program = attachment.ifindex, attachment.program
        target = f"{program.value} from {attachment.device} (clsact)"
        with NetlinkSocket(lib.NETLINK_ROUTE) as sock:
            if _qdiscs(sock).get(ifindex) != "clsact":
                return
            if any(one.is_ours and one.program_name == program.value for one in _filters(sock, ifindex, program)):
                _do(sock, message(lib.RTM_DELTFILTER, 0, _our_filter(ifindex, program)), "detach", target)
            self._remove_qdisc_if_unused(sock, ifindex)

    def _need_qdisc(self, sock: NetlinkSocket, ifindex: int, target: str) -> None:
        kind = _qdiscs(sock).get(ifindex)
        if kind == "clsact":
            return
        if kind is not None:
            # An ingress qdisc takes egress filters too, and runs them on ingress.
            raise ConflictError("attach", target, errno.EEXIST, f"the device has an {kind} qdisc, which is not ours")
        _do(sock, message(lib.RTM_NEWQDISC, lib.NLM_F_CREATE | lib.NLM_F_EXCL, _qdisc(ifindex)), "attach", target)
        self._ours.add(ifindex)
        self.restore()

    def _remove_qdisc_if_unused(self, sock: NetlinkSocket, ifindex: int) -> None:
        mark = self._made / str(ifindex)
        # One program of each direction shows the filters of both.
        left = [one for each in (Program.MARK_DECRYPT, Program.LEAK_GUARD) for one in _filters(sock, ifindex, each)]
        if mark.is_dir() and not left:
            _do(sock, message(lib.RTM_DELQDISC, 0, _qdisc(ifindex)), "remove clsact qdisc", f"of device {ifindex}")
            mark.rmdir()
            self._ours.discard(ifindex)


def names_by_device() -> dict[int, tuple[str, ...]]:
    """Give ifindex -> the names of all filters on a device's clsact qdisc, whosesoever they are.

    Raises:
        DecodeError, KernelError: the kernel did not answer.

    """
    with NetlinkSocket(lib.NETLINK_ROUTE) as sock:
        devices = [ifindex for ifindex, kind in _qdiscs(sock).items() if kind == "clsact"]
        ways = (Program.MARK_DECRYPT, Program.LEAK_GUARD)
        return {one: tuple(found.name for way in ways for found in _filters(sock, one, way)) for one in devices}


def _direction(program: Program) -> int:
    minor = lib.TC_H_MIN_EGRESS if program.egress else lib.TC_H_MIN_INGRESS
    return int(lib.TC_H_CLSACT & lib.TC_H_MAJ_MASK | minor)


def tcmsg(ifindex: int, handle: int, parent: int, info: int = 0) -> bytes:
    """Give the header of a request about qdiscs or filters."""
    header = ffi.new("struct tcmsg *")
    header.tcm_ifindex, header.tcm_handle, header.tcm_parent, header.tcm_info = ifindex, handle, parent, info
    return bytes(ffi.buffer(header))


def _qdisc(ifindex: int) -> bytes:
    handle = lib.TC_H_CLSACT & lib.TC_H_MAJ_MASK
    return tcmsg(ifindex, handle, lib.TC_H_CLSACT) + attribute(lib.TCA_KIND, b"clsact\0")


def _our_filter(ifindex: int, program: Program) -> bytes:
    header = tcmsg(ifindex, contract.TC_HANDLE, _direction(program), OUR_INFO)
    return header + attribute(lib.TCA_KIND, b"bpf\0")


def _u32(number: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("__u32 *", number)))


def _do(sock: NetlinkSocket, request: bytes, operation: str, target: str) -> None:
    (ack,) = sock.execute([request])
    if ack.errno:
        kind = ConflictError if ack.errno == errno.EEXIST else KernelError
        raise kind(operation, target, ack.errno, ack.detail)


def tc_messages(sock: NetlinkSocket, request: bytes) -> Iterator[tuple[Any, dict[int, bytes]]]:
    """Give (struct tcmsg, attributes by number) of each answer.

    Raises:
        DecodeError, KernelError: the kernel did not answer, or not as a whole.

    """
    for _, body in sock.dump(request):
        if len(body) < HEADER:
            raise DecodeError(f"TC message of {len(body)} bytes")
        yield ffi.from_buffer("struct tcmsg *", body[:HEADER]), dict(attributes(body[HEADER:]))


def text(payload: bytes) -> str:
    """Give a NUL-padded text of the kernel's."""
    return payload.rstrip(b"\0").decode(errors="replace")


def number(payload: bytes) -> int:
    """Give a __u32; 0 for anything else."""
    return int(ffi.from_buffer("__u32 *", payload)[0]) if len(payload) == ffi.sizeof("__u32") else 0


def _qdiscs(sock: NetlinkSocket) -> dict[int, str]:
    """Give ifindex -> clsact or ingress, for the devices that have one of the two: they exclude each other."""
    return {
        int(header.tcm_ifindex): text(found.get(lib.TCA_KIND, b""))
        for header, found in tc_messages(sock, message(lib.RTM_GETQDISC, 0, tcmsg(0, 0, 0)))
        if header.tcm_parent == lib.TC_H_CLSACT
    }


def _filters(sock: NetlinkSocket, ifindex: int, program: Program) -> list[Filter]:
    """Give all filters of a device in the direction of a program."""
    found = []
    request = message(lib.RTM_GETTFILTER, 0, tcmsg(ifindex, 0, _direction(program)))
    for header, own in tc_messages(sock, request):
        kind = text(own.get(lib.TCA_KIND, b""))
        options = dict(attributes(own.get(lib.TCA_OPTIONS, b""))) if kind == "bpf" else {}
        found.append(
            Filter(
                kind,
                int(header.tcm_handle),
                int(header.tcm_info),
                number(own.get(lib.TCA_CHAIN, b"")),
                text(options.get(lib.TCA_BPF_NAME, b"")),
                number(options.get(lib.TCA_BPF_ID, b"")),
            )
        )
    return found

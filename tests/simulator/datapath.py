# SPDX-License-Identifier: Apache-2.0
"""The programs on TC over one node's maps: :mod:`tests.bpf.model`, asked with what the maps say of a packet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from kmesh_bpf.core.state import Attachment, Program
from kmesh_bpf.core.view import Address
from tests.bpf.model import SHOT, Case, expected

if TYPE_CHECKING:
    from tests.simulator.kernel import NodeKernel

LOOPBACK = 1


class Seen(NamedTuple):
    """What the programs made of a packet: its mark, and where one dropped it the counter that it raised."""

    mark: int
    counter: str = ""
    dropped: bool = False


class Datapath:
    """Runs programs where they are attached; where none is, a packet passes as it came."""

    def __init__(self, kernel: NodeKernel) -> None:
        self._kernel = kernel
        self._found = -1
        self._attached: dict[tuple[int, bool], list[tuple[Program, bool]]] = {}

    def _place(self, attachment: Attachment) -> tuple[int, str]:
        """Give where it stands: a TCX link goes to the head of its chain."""
        return -self._kernel.came.get(replace(attachment, current=True), 0), attachment.program.value

    def run(
        self,
        ifindex: int,
        src: Address,
        dst: Address,
        mark: int,
        *,
        egress: bool,
        esp: bool = False,
        decrypted_here: bool = False,
    ) -> Seen:
        """Run what is on one side of a device over a packet, and count."""
        kernel = self._kernel
        if kernel.stamp("attachments") != self._found:
            self._found = kernel.stamp("attachments")
            self._attached = {}
            for one in sorted(kernel.attachments, key=self._place):
                self._attached.setdefault((one.ifindex, one.program.egress), []).append((one.program, one.current))
        for program, current in self._attached.get((ifindex, egress), ()):
            settings = kernel.settings if current else kernel.former
            peer = kernel.peers.get(src) if esp else None
            bound = kernel.sources.get(src)
            verdict, mark, counter = expected(
                Case(
                    program,
                    strict=settings.strict,
                    mark_mask=settings.mark_mask,
                    node_mark_mask=settings.node_mark_mask,
                    mark=mark,
                    esp=esp,
                    source=kernel.pods.get(src),
                    destination=kernel.pods.get(dst),
                    peer_mark=peer.node_mark if peer else None,
                    to_service=any(dst in cidr for cidr in kernel.services if cidr.version == dst.version),
                    bound=None if bound is None else "here" if bound == ifindex else "elsewhere",
                    pod_device=ifindex in kernel.pod_devices,
                    local_scope=src.is_link_local or src.is_unspecified,
                    on_lo=ifindex == LOOPBACK,
                    decrypted_here=decrypted_here,
                )
            )
            if counter:
                kernel.numbers[counter] += 1
            if verdict == SHOT:
                return Seen(mark, counter, dropped=True)
        return Seen(mark)

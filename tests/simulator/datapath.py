# SPDX-License-Identifier: Apache-2.0
"""The programs on TC over one node's maps: :mod:`tests.bpf.model`, asked with what the maps say of a packet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from kmesh_bpf.core.state import Attachment, PodFlags, Program
from kmesh_bpf.core.view import Address
from tests.bpf.model import PROGRAMS, SHOT, Case

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
        self._services = -1
        self._of_services: dict[Address, bool] = {}

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
            verdict, mark, counter = _outcome(
                PROGRAMS[program],
                program,
                settings.strict,
                settings.mark_mask,
                settings.node_mark_mask,
                mark,
                esp,
                kernel.pods.get(src),
                kernel.pods.get(dst),
                peer.node_mark if peer else None,
                self._to_service(dst),
                None if bound is None else "here" if bound == ifindex else "elsewhere",
                ifindex in kernel.pod_devices,
                _local_scope(src),
                ifindex == LOOPBACK,
                decrypted_here,
            )
            if counter:
                kernel.numbers[counter] += 1
            if verdict == SHOT:
                return Seen(mark, counter, dropped=True)
        return Seen(mark)

    def _to_service(self, dst: Address) -> bool:
        """Tell whether an address is of a Service CIDR in the map."""
        kernel = self._kernel
        if kernel.stamp("services") != self._services:
            self._services, self._of_services = kernel.stamp("services"), {}
        found = self._of_services.get(dst)
        if found is None:
            found = any(dst in cidr for cidr in kernel.services if cidr.version == dst.version)
            self._of_services[dst] = found
        return found


@lru_cache(1 << 16)
def _outcome(
    run: Callable[[Case], tuple[int, int, str | None]],
    program: Program,
    strict: bool,
    mark_mask: int,
    node_mark_mask: int,
    mark: int,
    esp: bool,
    source: PodFlags | None,
    destination: PodFlags | None,
    peer_mark: int | None,
    to_service: bool,
    bound: str | None,
    pod_device: bool,
    local_scope: bool,
    on_lo: bool,
    decrypted_here: bool,
) -> tuple[int, int, str | None]:
    """Give what the model says, once for each case: of a million packets a few thousand differ in what it goes by.

    ``run``: the program's model as it is now (:mod:`tests.simulator.mistakes` puts others in its place).
    """
    return run(
        Case(
            program,
            strict=strict,
            mark_mask=mark_mask,
            node_mark_mask=node_mark_mask,
            mark=mark,
            esp=esp,
            source=source,
            destination=destination,
            peer_mark=peer_mark,
            to_service=to_service,
            bound=bound,
            pod_device=pod_device,
            local_scope=local_scope,
            on_lo=on_lo,
            decrypted_here=decrypted_here,
        )
    )


@lru_cache(1 << 16)
def _local_scope(address: Address) -> bool:
    return address.is_link_local or address.is_unspecified

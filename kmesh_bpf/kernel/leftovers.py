# SPDX-License-Identifier: Apache-2.0
"""Reads what Go Kmesh's IPsec has made on this node, rarely: its SAs and policies come before ours, or keep ours out.

By the form in which it makes them (its pkg/controller/encryption/ipsec and pkg/utils/tc.go), which differs from ours.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.interference import Leftovers, suspect_of_go
from kmesh_bpf.core.state import Link, Suspect
from kmesh_bpf.errors import KmeshBpfError
from kmesh_bpf.kernel import clsact
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.netlink import NetlinkSocket, attributes
from kmesh_bpf.kernel.rules import RARELY, SOON

GO_REQID = 1
GO_MARKS = frozenset({contract.MARK_ENCRYPT, contract.MARK_DECRYPTED})
WHOLE = 0xFFFFFFFF
GO_FILTERS = ("tc_ingress-", "tc_egress-")
"""How the names of its filters begin; the device's name follows."""
GO_PINS = (Path("/sys/fs/bpf/bpf_kmesh"), Path("/sys/fs/bpf/bpf_kmesh_workload"))
SA_HEADER, POLICY_HEADER = (
    (ffi.sizeof(f"struct {one}") + 3) & ~3 for one in ("xfrm_usersa_info", "xfrm_userpolicy_info")
)
"""Bytes, aligned as netlink does."""


class GoKmesh:
    """What it left, read again as rarely as rules of others are. ``clock``: seconds that only grow.

    ``xfrm``: a socket to ask the kernel by.
    """

    def __init__(self, xfrm: NetlinkSocket, clock: Callable[[], float] = time.monotonic) -> None:
        self._xfrm, self._clock = xfrm, clock
        self._due = -math.inf
        self._found: tuple[Suspect, ...] = ()

    def suspects(self, devices: tuple[Link, ...]) -> tuple[Suspect, ...]:
        """Give what it left as one suspect; nothing where that cannot be read: it is only advice."""
        now = self._clock()
        if now < self._due:
            return self._found
        self._due = now + RARELY
        with suppress(KmeshBpfError, OSError):
            self._found = suspect_of_go(self._read(devices))
            self._due = now + (SOON if self._found else RARELY)
        return self._found

    def _read(self, devices: tuple[Link, ...]) -> Leftovers:
        sas = [body for number, body in self._xfrm.dump(wire.encode_dump_sas()) if number == lib.XFRM_MSG_NEWSA]
        dump = self._xfrm.dump(wire.encode_dump_policies())
        policies = [body for number, body in dump if number == lib.XFRM_MSG_NEWPOLICY]
        filters = clsact.names_by_device()
        return Leftovers(
            sas=sum(map(_is_sa, sas)),
            policies=sum(map(_is_policy, policies)),
            devices=tuple(
                link.name
                for link in devices
                if any(name.startswith(GO_FILTERS) for name in filters.get(link.ifindex, ()))
            ),
            pins=tuple(str(one) for one in GO_PINS if one.exists()),
        )


def _is_sa(body: bytes) -> bool:
    if len(body) < SA_HEADER:
        return False
    info, found = ffi.from_buffer("struct xfrm_usersa_info *", body[:SA_HEADER]), dict(attributes(body[SA_HEADER:]))
    mark = _number(found, lib.XFRMA_SET_MARK)
    return (
        info.reqid == GO_REQID
        and info.id.proto == socket.IPPROTO_ESP
        and mark == contract.MARK_DECRYPTED
        and lib.XFRMA_MARK not in found
    )


def _is_policy(body: bytes) -> bool:
    if len(body) < POLICY_HEADER:
        return False
    found = dict(attributes(body[POLICY_HEADER:]))
    mark, template = found.get(lib.XFRMA_MARK, b""), found.get(lib.XFRMA_TMPL, b"")
    if len(mark) != ffi.sizeof("struct xfrm_mark") or len(template) < ffi.sizeof("struct xfrm_user_tmpl"):
        return False
    meant = ffi.from_buffer("struct xfrm_mark *", mark)
    reqid = ffi.from_buffer("struct xfrm_user_tmpl *", template[: ffi.sizeof("struct xfrm_user_tmpl")]).reqid
    return reqid == GO_REQID and meant.v in GO_MARKS and meant.m == WHOLE


def _number(found: Mapping[int, bytes], attribute: int) -> int:
    return int.from_bytes(found.get(attribute, b""), sys.byteorder)

# SPDX-License-Identifier: Apache-2.0
"""Reads, rarely, what others do with packets: TC filters that redirect or change them, routing by their marks."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core import detours
from kmesh_bpf.core.marks import ALL_BITS
from kmesh_bpf.core.state import Detour, Link
from kmesh_bpf.errors import DecodeError, KmeshBpfError
from kmesh_bpf.kernel.clsact import PRIORITY_SHIFT, number, tc_messages, tcmsg, text
from kmesh_bpf.kernel.netlink import NetlinkSocket, align, attributes, message
from kmesh_bpf.kernel.rules import RARELY, SOON, TIMES

ACTIONS = {
    "basic": lib.TCA_BASIC_ACT,
    "bpf": lib.TCA_BPF_ACT,
    "cgroup": lib.TCA_CGROUP_ACT,
    "flow": lib.TCA_FLOW_ACT,
    "flower": lib.TCA_FLOWER_ACT,
    "fw": lib.TCA_FW_ACT,
    "matchall": lib.TCA_MATCHALL_ACT,
    "route": lib.TCA_ROUTE4_ACT,
    "u32": lib.TCA_U32_ACT,
}
"""Classifiers, and the number of the attribute that holds their actions."""
WAYS = {
    lib.TC_H_CLSACT & lib.TC_H_MAJ_MASK | lib.TC_H_MIN_INGRESS: "ingress",
    lib.TC_H_CLSACT & lib.TC_H_MAJ_MASK | lib.TC_H_MIN_EGRESS: "egress",
}
"""The two blocks of a clsact qdisc; an ingress qdisc has the first of them twice."""
CHANGING = {
    "nat": ("it changes packets' addresses", 0),
    "pedit": ("it changes packets", 0),
    "connmark": ("it sets packets' marks", ALL_BITS),
    "ctinfo": ("it sets packets' marks", ALL_BITS),
}
"""Actions that change packets whatever their options are: in words, and which bits of marks."""
USUAL_TABLES = frozenset({lib.RT_TABLE_DEFAULT, lib.RT_TABLE_MAIN, lib.RT_TABLE_LOCAL})
REDIRECTS = (lib.TCA_EGRESS_REDIR, lib.TCA_INGRESS_REDIR)


class Detours:
    """Detours by TC and by rules of routing, read again after some time: the rarer, the longer it takes.

    ``clock``: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = self._soonest = -math.inf
        self._found: tuple[Detour, ...] = ()

    def tell(self) -> None:
        """Say that filters or rules have changed: they are read again as soon as that may cost something."""
        self._due = min(self._due, self._soonest)

    def found(self, links: tuple[Link, ...]) -> tuple[Detour, ...]:
        """Give what filters do on these devices; what was known where it cannot be read: it is only advice."""
        began = self._clock()
        if began < self._due:
            return self._found
        names = {link.ifindex: link.name for link in links}
        with suppress(KmeshBpfError, OSError), NetlinkSocket(lib.NETLINK_ROUTE) as sock:
            self._found = tuple(dict.fromkeys((*_read(sock, names), *_rules(sock))))
        ended = self._clock()
        self._soonest = ended + TIMES * (ended - began)
        self._due = ended + (SOON if self._found else min(max(SOON, TIMES * (ended - began)), RARELY))
        return self._found


def _read(sock: NetlinkSocket, names: Mapping[int, str]) -> Iterator[Detour]:
    for header, found in list(tc_messages(sock, message(lib.RTM_GETQDISC, 0, tcmsg(0, 0, 0)))):
        ifindex, handle = int(header.tcm_ifindex), int(header.tcm_handle)
        if ifindex not in names or not handle:  # one without a handle takes no filters
            continue
        clsact = header.tcm_parent == lib.TC_H_CLSACT
        both = clsact and text(found.get(lib.TCA_KIND, b"")) == "clsact"
        for parent in (tuple(WAYS) if both else tuple(WAYS)[:1]) if clsact else (handle,):
            yield from _filters(sock, names, ifindex, parent)


def _rules(sock: NetlinkSocket) -> Iterator[Detour]:
    size = align(ffi.sizeof("struct fib_rule_hdr"))
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        asked = ffi.new("struct fib_rule_hdr *", {"family": family})
        for _, body in sock.dump(message(lib.RTM_GETRULE, 0, bytes(ffi.buffer(asked)))):
            if len(body) < size:
                raise DecodeError(f"struct fib_rule_hdr of {len(body)} bytes instead of {size}")
            header, found = ffi.from_buffer("struct fib_rule_hdr *", body[:size]), dict(attributes(body[size:]))
            mark, mask, table, priority = (
                number(found.get(one, b"")) for one in (lib.FRA_FWMARK, lib.FRA_FWMASK, lib.FRA_TABLE, lib.FRA_PRIORITY)
            )
            # The tables that everybody's packets are looked up in are no other way.
            one = detours.of_rule(priority, mark, mask, version, inverted=bool(header.flags & lib.FIB_RULE_INVERT))
            if one is not None and table not in USUAL_TABLES:
                yield one


def _filters(sock: NetlinkSocket, names: Mapping[int, str], ifindex: int, parent: int) -> Iterator[Detour]:
    way = WAYS.get(parent, f"parent {parent >> 16:x}:")
    for header, found in tc_messages(sock, message(lib.RTM_GETTFILTER, 0, tcmsg(ifindex, 0, parent))):
        kind = ACTIONS.get(text(found.get(lib.TCA_KIND, b"")))
        options = dict(attributes(found.get(lib.TCA_OPTIONS, b""))) if kind else {}
        priority, device = int(header.tcm_info) >> PRIORITY_SHIFT, names[ifindex]
        for _, action in attributes(options.get(kind, b"")) if kind else ():
            what = dict(attributes(action))
            one = _what(text(what.get(lib.TCA_ACT_KIND, b"")), dict(attributes(what.get(lib.TCA_ACT_OPTIONS, b""))))
            if one is not None:
                words, to, lost = one
                words += f" to {names.get(to, f'device {to}')} (mirred)" if to else ""
                undo = f"tc filter del dev {device} {way} pref {priority}"
                where = f"tc filter on {device}, {way}, priority {priority}"
                yield Detour(where, words, undo, device, names.get(to, ""), lost)


def _what(kind: str, options: Mapping[int, bytes]) -> tuple[str, int, int] | None:
    """Give what an action does in words, the ifindex that it leads to, and the bits of marks that it changes."""
    if kind == "mirred":
        size = ffi.sizeof("struct tc_mirred")
        parameters = options.get(lib.TCA_MIRRED_PARMS, b"")
        if len(parameters) < size:
            return None
        given = ffi.from_buffer("struct tc_mirred *", parameters[:size])
        return ("it redirects packets", int(given.ifindex), 0) if given.eaction in REDIRECTS else None
    if kind == "skbedit":
        mask = number(options[lib.TCA_SKBEDIT_MASK]) if lib.TCA_SKBEDIT_MASK in options else ALL_BITS
        return ("it sets packets' marks (skbedit)", 0, mask) if lib.TCA_SKBEDIT_MARK in options else None
    if kind == "ct":
        asked = int.from_bytes(options.get(lib.TCA_CT_ACTION, b"")[:2], sys.byteorder)
        return ("it changes packets' addresses (ct nat)", 0, 0) if asked & lib.TCA_CT_ACT_NAT else None
    if kind in CHANGING:
        words, lost = CHANGING[kind]
        return f"{words} ({kind})", 0, lost
    return None

# SPDX-License-Identifier: Apache-2.0
"""The nft tables of kmesh_bpf.core.masquerade: installed, compared with what nft lists, removed."""

from __future__ import annotations

import errno
import json
import math
import socket
import time
from collections.abc import Callable

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core import masquerade
from kmesh_bpf.core.masquerade import FAMILIES, TABLE, Json
from kmesh_bpf.errors import DecodeError, KernelError, UnsupportedError
from kmesh_bpf.kernel import nft
from kmesh_bpf.kernel.netlink import NetlinkSocket, attributes, message


def install(mark_mask: int = contract.MARK_MASK) -> None:
    """Install the tables, or put them in the place of ours that differ, in one transaction.

    Raises:
        UnsupportedError: nft is missing, or the kernel's part of it.
        KernelError: the kernel refused, or lists something else than was written.

    """
    try:
        _transact("install", masquerade.installation(mark_mask))
    except KernelError as error:
        if error.errno in nft.UNSUPPORTED:
            remedy = "it needs nf_tables, nft_chain_nat, nft_nat and nft_rt: masquerade rules would undo encryption"
            raise UnsupportedError(f"NAT by nftables ({error.detail})", remedy) from error
        raise
    if not installed(mark_mask):
        # Else each pass would see a difference, and install them again, for ever.
        raise KernelError("install", _target(), errno.EPROTO, "nft lists other rules than were written")


def remove() -> None:
    """Remove the tables, if there.

    Raises:
        UnsupportedError: nft is missing.
        KernelError: the kernel refused.

    """
    _transact("remove", masquerade.removal())


def installed(mark_mask: int = contract.MARK_MASK) -> bool:
    """Tell whether both tables are there and hold what we write, and nothing else.

    False too where nft or the kernel's part of it is missing: all else does without, and :func:`install` says so.

    Raises:
        KernelError: the kernel did not answer.
        DecodeError: nft's answer is not what its manual says.

    """
    try:
        return all(_listed(family) == masquerade.contents(family, mark_mask) for family in FAMILIES)
    except UnsupportedError:
        return False


class Tables:
    """Our tables, listed again only when the rule set of the namespace has changed: nft takes two processes.

    ``mark_mask``: the bits of marks that are ours; ``clock``: seconds that only grow. An nft that hung is not started
    again for a while: what is asked of it meanwhile fails at once, as it would have.
    """

    def __init__(self, mark_mask: int = contract.MARK_MASK, clock: Callable[[], float] = time.monotonic) -> None:
        self._mark_mask, self._clock = mark_mask, clock
        self._left_alone_until = -math.inf
        self._whole_in: int | None = None
        self._events: NetlinkSocket | None = None

    def close(self) -> None:
        """Stop listening."""
        if self._events:
            self._events.close()

    def subscribe(self) -> int | None:
        """Start to listen to changes of the rule set; give the descriptor to wait for, None where nobody tells them."""
        try:
            self._events = NetlinkSocket(lib.NETLINK_NETFILTER, 1 << (lib.NFNLGRP_NFTABLES - 1))
        except OSError:  # a kernel without netfilter
            return None
        return self._events.fileno()

    def changed(self) -> bool:
        """Take the notifications waiting; tell whether somebody else changed a table of ours.

        A node's proxy may write ten thousand rules at a time, so they are not decoded: a message about our table, or
        anything in it, holds its name.
        """
        waiting = self._events.waiting() if self._events else []
        return any(data is None or TABLE.encode() in data for data in waiting)

    def install(self) -> None:
        """Do as :func:`install`; whoever then wants to know what somebody else did meanwhile asks :meth:`installed`.

        Raises:
            UnsupportedError, KernelError: as there.

        """
        if self._clock() < self._left_alone_until:
            raise nft.hung("install", _target())
        try:
            install(self._mark_mask)
        except KernelError as error:
            self._heed(error)
            raise
        self.changed()  # by us

    def installed(self) -> bool:
        """Tell the same as :func:`installed`; what nft does not say in time counts as not there.

        Raises:
            KernelError, DecodeError: as there.

        """
        before = generation()
        if before is not None and before == self._whole_in:
            return True
        if self._clock() < self._left_alone_until:
            return False
        try:
            whole = installed(self._mark_mask)
        except KernelError as error:
            if not self._heed(error):
                raise
            whole = False  # the rest of the pass must not wait for that, and install will say so
        self._whole_in = before if whole else None
        return whole

    def _heed(self, error: KernelError) -> bool:
        """Tell whether nft hung, and leave it alone then."""
        if error.errno != errno.ETIMEDOUT:
            return False
        self._left_alone_until = self._clock() + nft.PAUSE
        return True


def generation() -> int | None:
    """Give the number of the rule set's generation, which each change by anybody makes another; None: not to be had.

    linux/netfilter/nf_tables.h, NFT_MSG_GETGEN.

    Raises:
        DecodeError: the kernel's answer is not what that header says.

    """
    body = bytes(ffi.buffer(ffi.new("struct nfgenmsg *", (socket.AF_UNSPEC, lib.NFNETLINK_V0, 0))))
    request = message(lib.NFNL_SUBSYS_NFTABLES << 8 | lib.NFT_MSG_GETGEN, 0, body)
    try:
        with NetlinkSocket(lib.NETLINK_NETFILTER) as sock:
            answer = sock.get(request)
    except (KernelError, OSError):  # a kernel without nf_tables, or without netfilter at all: nft will say so
        return None
    found = dict(attributes(answer[len(body) :])).get(lib.NFTA_GEN_ID)
    if found is None:
        raise DecodeError("the kernel's answer to NFT_MSG_GETGEN holds no generation")
    return int.from_bytes(found, "big")


def _target() -> str:
    return f"nft tables {' and '.join(FAMILIES)} {TABLE}"


def _listed(family: str) -> list[Json] | None:
    """Give the contents of a table in the form that we write them; None: there is none, or cannot be."""
    try:
        text = _nft("list", ["list", "table", family, TABLE])
    except KernelError as error:
        if error.errno in nft.UNSUPPORTED:
            return None
        raise
    try:
        items: list[Json] = json.loads(text)["nftables"]
        return [_canonical(item) for item in items if "metainfo" not in item and "table" not in item]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DecodeError(f"nft's listing of table {family} {TABLE} is not what its manual says") from error


def _canonical(item: Json) -> Json:
    """Drop the handle; give the protocol as number, for nft prints its name where /etc/protocols knows it."""
    ((kind, body),) = item.items()
    for expression in body.get("expr", ()):
        match = expression.get("match", {})
        if match.get("right") == "esp":
            match["right"] = socket.IPPROTO_ESP
    return {kind: {key: value for key, value in body.items() if key != "handle"}}


def _transact(operation: str, transaction: str) -> None:
    _nft(operation, ["-f", "-"], transaction)


def _nft(operation: str, arguments: list[str], script: str = "") -> str:
    return nft.run(operation, _target(), ["-j", *arguments], script)

# SPDX-License-Identifier: Apache-2.0
"""The policy hash thresholds: which policies the kernel finds by hash, and which by walking a list (XFRM_MSG_*SPDINFO).

A policy is hashed if its prefixes, the node's own side's and the other side's, are at least so long. They hold for the
whole network namespace, so they are only ever lowered, and put back as found.
"""

from __future__ import annotations

import errno
from typing import Protocol

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.errors import DecodeError, KernelError, UnsupportedError
from kmesh_bpf.kernel.maps import Thresholds
from kmesh_bpf.kernel.netlink import NetlinkSocket, attribute, attributes, message

WANTED: Thresholds = (0, 32, 0, 128)
FLAGS = b"\xff" * 4
"""The struct of these messages: a number of 32 bits, unused; ip says this."""
ABSENT = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Memory(Protocol):
    """Where the thresholds found are kept as long as ours are in force (:class:`kmesh_bpf.kernel.maps.Maps`)."""

    def thresholds(self) -> Thresholds | None:
        """Give those found; None: ours are not in force."""

    def set_thresholds(self, found: Thresholds | None) -> None:
        """Keep them, or forget them."""


def encode_get() -> bytes:
    """XFRM_MSG_GETSPDINFO."""
    return message(lib.XFRM_MSG_GETSPDINFO, 0, FLAGS)


def encode_set(wanted: Thresholds) -> bytes:
    """XFRM_MSG_NEWSPDINFO with both families' thresholds."""
    four = attribute(lib.XFRMA_SPD_IPV4_HTHRESH, bytes(wanted[:2]))
    six = attribute(lib.XFRMA_SPD_IPV6_HTHRESH, bytes(wanted[2:]))
    return message(lib.XFRM_MSG_NEWSPDINFO, 0, FLAGS + four + six)


def decode(body: bytes) -> Thresholds | None:
    """Read the body of an XFRM_MSG_NEWSPDINFO; None: the kernel has no thresholds (before Linux 3.18).

    Raises:
        DecodeError: it is cut short.

    """
    if len(body) < len(FLAGS):
        raise DecodeError(f"SPD info of {len(body)} bytes")
    found = dict(attributes(body[len(FLAGS) :]))
    pairs = [found.get(number) for number in (lib.XFRMA_SPD_IPV4_HTHRESH, lib.XFRMA_SPD_IPV6_HTHRESH)]
    if None in pairs:
        return None
    four, six = (pair for pair in pairs if pair is not None)
    if len(four) != ffi.sizeof("struct xfrmu_spdhthresh") or len(six) != len(four):
        raise DecodeError(f"SPD hash thresholds of {len(four)} and {len(six)} bytes")
    return (four[0], four[1], six[0], six[1])


def lowered(found: Thresholds) -> Thresholds:
    """Give what is wanted of these, nobody's raised."""
    return (0, min(found[1], WANTED[1]), 0, min(found[3], WANTED[3]))


def to_remember(found: Thresholds, before: Thresholds | None) -> Thresholds:
    """Give what to put back one day: what is found, but for a family that we have lowered before."""
    if before is None:
        return found
    four = before[:2] if found[:2] == lowered(found)[:2] else found[:2]
    six = before[2:] if found[2:] == lowered(found)[2:] else found[2:]
    return (four[0], four[1], six[0], six[1])


class HashThresholds:
    """The thresholds of the namespace that the socket lives in."""

    def __init__(self, socket: NetlinkSocket) -> None:
        self._socket = socket

    def found(self) -> Thresholds | None:
        """Give them; None: the kernel has none."""
        try:
            return decode(self._socket.get(encode_get()))
        except KernelError as error:
            if error.errno in ABSENT:
                return None
            raise

    def lower(self, memory: Memory) -> None:
        """Lower them, what was found being kept first, so that a crash in between loses nothing.

        Raises:
            KernelError: the kernel refused.
            UnsupportedError: it has none.

        """
        found = self.found()
        if found is None:
            raise UnsupportedError("a policy hash threshold", "use Linux 3.18 or newer")
        memory.set_thresholds(to_remember(found, memory.thresholds()))
        self._set(lowered(found))

    def restore(self, memory: Memory) -> None:
        """Put them back as found, if it was us who lowered them.

        Raises:
            KernelError: the kernel refused.

        """
        before = memory.thresholds()
        if before is not None:
            self._set(before)
            memory.set_thresholds(None)

    def _set(self, wanted: Thresholds) -> None:
        (ack,) = self._socket.execute([encode_set(wanted)])
        if ack.errno:
            raise KernelError("set", "policy hash thresholds", ack.errno, ack.detail)

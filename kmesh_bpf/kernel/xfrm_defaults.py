# SPDX-License-Identifier: Apache-2.0
"""What XFRM does with packets that no policy selects: lets them pass or, where somebody asked for that, drops them."""

from __future__ import annotations

import errno

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.state import Direction
from kmesh_bpf.errors import DecodeError, KernelError
from kmesh_bpf.kernel.netlink import NetlinkSocket, message

DEFAULT = "struct xfrm_userpolicy_default"


def refusing(socket: NetlinkSocket) -> frozenset[Direction]:
    """Give the directions in which it drops them, in the namespace that the socket lives in.

    Raises:
        DecodeError, KernelError: the kernel did not tell.

    """
    try:
        return decode(socket.get(encode_get()))
    except KernelError as error:
        if error.errno == errno.EINVAL:  # before Linux 5.15, which drops nothing
            return frozenset()
        raise


def encode_get() -> bytes:
    """XFRM_MSG_GETDEFAULT."""
    return message(lib.XFRM_MSG_GETDEFAULT, 0, bytes(ffi.sizeof(DEFAULT)))


def decode(body: bytes) -> frozenset[Direction]:
    """Read the body of an XFRM_MSG_GETDEFAULT that the kernel sends.

    Raises:
        DecodeError: it is cut short.

    """
    if len(body) < ffi.sizeof(DEFAULT):
        raise DecodeError(f"{DEFAULT} of {len(body)} bytes")
    found = ffi.from_buffer(f"{DEFAULT} *", body[: ffi.sizeof(DEFAULT)])
    actions = {Direction.IN: getattr(found, "in"), Direction.FWD: found.fwd, Direction.OUT: found.out}
    return frozenset(one for one, action in actions.items() if action == lib.XFRM_USERPOLICY_BLOCK)

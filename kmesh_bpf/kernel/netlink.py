# SPDX-License-Identifier: Apache-2.0
"""Netlink transport: many messages in one send, one acknowledgement each; dumps whole or not at all.

On the standard library's socket rather than pyroute2's: that one drops what it cannot decode and encodes 60 to 100
times slower. Message layout: RFC 3549, linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.errors import DecodeError, EncodeError, KernelError

if TYPE_CHECKING:
    from kmesh_bpf._abi import nlmsghdr

HEADER = ffi.sizeof("struct nlmsghdr")
ATTRIBUTE_HEADER = ffi.sizeof("struct nlattr")
ERROR_HEADER = ffi.sizeof("struct nlmsgerr")
DONE_BYTES = ffi.sizeof("int")
BATCH_MESSAGES = 100
"""Messages a send: their acknowledgements fit the receive buffer many times over."""
RECEIVE_BYTES = 1 << 20
BUFFER_BYTES = 4 << 20
TIMEOUT = 30.0
DUMP_TRIES = 5
NLA_TYPE_MASK = 0x3FFF
MAX_SEQUENCE = 0xFFFFFFFF
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32  # asm-generic/socket.h; the socket module does not name them


@dataclass(frozen=True, slots=True)
class Ack:
    """The kernel's answer to one message: ``errno`` 0 is success; ``detail`` its extended-ack text."""

    errno: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Notification:
    """What the kernel tells of its own accord. ``number``: the message's type, NLMSG_OVERRUN where some were lost.

    ``port_id``: of the socket by which it was brought about, 0: the kernel's own doing.
    """

    number: int
    port_id: int
    body: bytes


def align(length: int) -> int:
    """Round up to netlink's 4 bytes."""
    return (length + 3) & ~3


def attribute(number: int, payload: bytes) -> bytes:
    """Encode an attribute, padded."""
    length = ATTRIBUTE_HEADER + len(payload)
    if length > 0xFFFF:
        raise EncodeError(f"attribute {number} of {length} bytes does not fit into netlink's 16-bit length")
    header = ffi.new("struct nlattr *", (length, number))
    return bytes(ffi.buffer(header)) + payload + bytes(align(length) - length)


def message(number: int, flags: int, body: bytes) -> bytes:
    """Encode a request; the transport fills in sequence number and the wish for an acknowledgement."""
    header = ffi.new("struct nlmsghdr *", (HEADER + len(body), number, flags | lib.NLM_F_REQUEST, 0, 0))
    return bytes(ffi.buffer(header)) + body


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give (number, payload) of each attribute.

    Raises:
        DecodeError: a length points outside the data.

    """
    offset = 0
    while offset < len(data):
        if offset + ATTRIBUTE_HEADER > len(data):
            raise DecodeError(f"{len(data) - offset} bytes after the last netlink attribute")
        header = ffi.from_buffer("struct nlattr *", data[offset : offset + ATTRIBUTE_HEADER])
        length = header.nla_len
        if length < ATTRIBUTE_HEADER or offset + length > len(data):
            raise DecodeError(f"netlink attribute {header.nla_type & NLA_TYPE_MASK} of impossible length {length}")
        yield header.nla_type & NLA_TYPE_MASK, data[offset + ATTRIBUTE_HEADER : offset + length]
        offset += align(length)


def messages(data: bytes) -> Iterator[tuple[nlmsghdr, bytes]]:
    """Give (struct nlmsghdr, body) of each message of a datagram.

    Raises:
        DecodeError: a length points outside the data.

    """
    offset = 0
    while offset < len(data):
        if offset + HEADER > len(data):
            raise DecodeError(f"{len(data) - offset} bytes after the last netlink message")
        header = ffi.from_buffer("struct nlmsghdr *", data[offset : offset + HEADER])
        if header.nlmsg_len < HEADER or offset + header.nlmsg_len > len(data):
            raise DecodeError(f"netlink message of impossible length {header.nlmsg_len}")
        yield header, data[offset + HEADER : offset + header.nlmsg_len]
        offset += align(header.nlmsg_len)


def _ack(header: nlmsghdr, body: bytes) -> Ack:
    if len(body) < ERROR_HEADER:
        raise DecodeError(f"netlink acknowledgement of {len(body)} bytes")
    error = ffi.from_buffer("struct nlmsgerr *", body[:ERROR_HEADER])
    detail = ""
    if header.nlmsg_flags & lib.NLM_F_ACK_TLVS:
        # Unless capped, the whole request stands between the error and the attributes.
        skip = ERROR_HEADER if header.nlmsg_flags & lib.NLM_F_CAPPED else ERROR_HEADER - HEADER + error.msg.nlmsg_len
        for number, payload in attributes(body[align(skip) :]):
            if number == lib.NLMSGERR_ATTR_MSG:
                detail = payload.rstrip(b"\0").decode(errors="replace")
    return Ack(-error.error, detail)


class NetlinkSocket:
    """A netlink socket of the caller's network namespace. ``sock`` is for tests.

    ``port_id`` is its address: notifications of its own changes carry it.
    """

    def __init__(self, protocol: int = lib.NETLINK_XFRM, groups: int = 0, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            # CAP_ACK: a refusal does not bring the request back, which may hold a key.
            for wish in (lib.NETLINK_EXT_ACK, lib.NETLINK_CAP_ACK):
                sock.setsockopt(lib.SOL_NETLINK, wish, 1)
            for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            sock.bind((0, groups))
        sock.settimeout(TIMEOUT)
        self._socket = sock
        self._sequence = 0
        self.port_id = int(sock.getsockname()[0])

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Give the descriptor, for ``selectors``."""
        return self._socket.fileno()

    def be_strict(self) -> None:
        """Have the kernel check, and heed, what requests for dumps ask for; before 4.20 it cannot."""
        with suppress(OSError):
            self._socket.setsockopt(lib.SOL_NETLINK, lib.NETLINK_GET_STRICT_CHK, 1)

    def execute(self, requests: Sequence[bytes]) -> list[Ack]:
        """Send requests, a batch a send; give their acknowledgements in order.

        Raises:
            KernelError: the kernel did not answer, or the socket failed.

        """
        acks: list[Ack] = []
        for start in range(0, len(requests), BATCH_MESSAGES):
            acks.extend(self._execute_batch(requests[start : start + BATCH_MESSAGES]))
        return acks

    def get(self, request: bytes) -> bytes:
        """Give the body of the one message that answers a request.

        Raises:
            DecodeError: there was none.
            KernelError: the kernel refused.

        """
        self._send(self._next(request, lib.NLM_F_ACK))
        found: bytes | None = None
        while True:
            for header, body in self._receive():
                if header.nlmsg_seq != self._sequence:
                    continue
                if header.nlmsg_type != lib.NLMSG_ERROR:
                    found = body
                    continue
                ack = _ack(header, body)
                if ack.errno:
                    raise KernelError("get", "netlink object", ack.errno, ack.detail)
                if found is None:
                    raise DecodeError("the kernel acknowledged a request that it did not answer")
                return found

    def dump(self, request: bytes) -> list[tuple[int, bytes]]:
        """Give (type, body) of each message of a dump.

        Raises:
            DecodeError: it changed under way, each time it was tried.
            KernelError: the kernel refused.

        """
        found: list[tuple[int, bytes]] = []
        for piece in self.dump_pieces(request):
            if piece is None:
                found.clear()
            else:
                found.extend(piece)
        return found

    def dump_pieces(self, request: bytes) -> Iterator[list[tuple[int, bytes]] | None]:
        """Give (type, body) of the messages of a dump as they come, a few dozen a step; None: it begins anew.

        The kernel writes no more of it than was asked for; so it may be left off for as long as one likes, on a socket
        that is used for nothing else meanwhile.

        Raises:
            DecodeError, KernelError: as of :meth:`dump`.

        """
        for _ in range(DUMP_TRIES):
            torn = False
            for piece in self._dump_once(request):
                torn = torn or piece is None
                if piece:
                    yield piece
            if not torn:
                return
            yield None
        raise DecodeError(f"the kernel's objects changed during each of {DUMP_TRIES} dumps")

    def notifications(self) -> list[Notification]:
        """Give all notifications waiting.

        Raises:
            DecodeError: one of them is no netlink message.
            KernelError: the socket failed.

        """
        found: list[Notification] = []
        for data in self.waiting():
            if data is None:
                found.append(Notification(int(lib.NLMSG_OVERRUN), 0, b""))
            else:
                heads = messages(data)
                found.extend(Notification(int(one.nlmsg_type), int(one.nlmsg_pid), body) for one, body in heads)
        return found

    def waiting(self) -> list[bytes | None]:
        """Give all datagrams waiting, as they are; None for an overrun."""
        found: list[bytes | None] = []
        self._socket.setblocking(False)
        try:
            while True:
                try:
                    found.append(self._socket.recv(RECEIVE_BYTES))
                except BlockingIOError:
                    return found
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise KernelError("receive", "netlink notifications", error.errno or 0) from error
                    found.append(None)
        finally:
            self._socket.settimeout(TIMEOUT)

    def _next(self, request: bytes, flags: int) -> bytes:
        self._sequence = (self._sequence + 1) & MAX_SEQUENCE
        copy = bytearray(request)
        header = ffi.from_buffer("struct nlmsghdr *", copy, require_writable=True)
        header.nlmsg_seq = self._sequence
        header.nlmsg_flags |= flags
        header.nlmsg_pid = self.port_id  # XFRM copies it into the notifications of this change
        return bytes(copy) + bytes(align(len(copy)) - len(copy))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError("send", "netlink request", error.errno or 0) from error

    def _receive(self) -> Iterator[tuple[nlmsghdr, bytes]]:
        try:
            data, _, flags, _ = self._socket.recvmsg(RECEIVE_BYTES)
        except OSError as error:
            number = error.errno or errno.ETIMEDOUT
            raise KernelError("receive", "netlink answer", number, os.strerror(number)) from error
        if flags & socket.MSG_TRUNC:
            raise DecodeError("a netlink datagram was longer than the receive buffer")
        return messages(data)

    def _execute_batch(self, requests: Sequence[bytes]) -> list[Ack]:
        numbered = [self._next(request, lib.NLM_F_ACK) for request in requests]
        first = self._sequence - len(requests) + 1  # below 1 where the numbers have wrapped
        acks: dict[int, Ack] = {}
        self._send(b"".join(numbered))
        while len(acks) < len(requests):
            for header, body in self._receive():
                index = (header.nlmsg_seq - first) & MAX_SEQUENCE
                if header.nlmsg_type == lib.NLMSG_ERROR and index < len(requests):
                    acks[index] = _ack(header, body)
        return [acks[index] for index in range(len(requests))]

    def _dump_once(self, request: bytes) -> Iterator[list[tuple[int, bytes]] | None]:
        """Give the messages of one dump, receipt by receipt; None, among them or last, if they are not of one state."""
        self._send(self._next(request, lib.NLM_F_DUMP))
        while True:
            found: list[tuple[int, bytes]] = []
            for header, body in self._receive():
                if header.nlmsg_seq != self._sequence:
                    continue
                if header.nlmsg_flags & lib.NLM_F_DUMP_INTR:
                    yield None
                if header.nlmsg_type == lib.NLMSG_ERROR:
                    ack = _ack(header, body)
                    raise KernelError("dump", "netlink objects", ack.errno, ack.detail)
                if header.nlmsg_type == lib.NLMSG_DONE:
                    # A dump that broke off says so in here, as a negative errno; older kernels send no number.
                    number = -int.from_bytes(body[:DONE_BYTES], sys.byteorder, signed=True)
                    if number > 0:
                        raise KernelError("dump", "netlink objects", number)
                    yield found
                    return
                found.append((int(header.nlmsg_type), body))
            yield found

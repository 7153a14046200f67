# SPDX-License-Identifier: Apache-2.0
"""The kernel's SAs and policies: dumps, and operations in batches."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence

from kmesh_bpf._abi import lib
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.state import Policy, PolicyId, Rival, Sa, SaId
from kmesh_bpf.errors import ConflictError, EncodeError, KernelError, KmeshBpfError, UnsupportedError
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.interface import Failure
from kmesh_bpf.kernel.netlink import Ack, NetlinkSocket
from kmesh_bpf.kernel.xfrm_messages import DecodedSa

XfrmOperation = ops.AddSa | ops.ReplaceSa | ops.DeleteSa | ops.SetPolicy | ops.DeletePolicy

GROUPS: int = lib.XFRMGRP_SA | lib.XFRMGRP_POLICY | lib.XFRMGRP_EXPIRE
"""Multicast groups that tell of every change of an SA or policy; of one that expires only the last one tells."""
NO_ESP = frozenset({errno.EPROTONOSUPPORT, errno.ENOSYS, errno.ENOENT})
"""What the kernel answers to an SA of ours where it lacks ESP (the type) or GCM (the algorithm; seen: ENOSYS)."""

ABSENT = frozenset({errno.ESRCH, errno.ENOENT})
"""What the kernel answers where there is no such SA, and no such policy."""


class Xfrm:
    """The XFRM of the namespace that the socket lives in."""

    def __init__(self, socket: NetlinkSocket) -> None:
        self._socket = socket
        self.rivals: tuple[Rival, ...] = ()
        """Policies of others that come before ours, as of the last dump."""

    def dump_sas(self) -> list[DecodedSa]:
        """Give all ESP SAs, whole or not at all."""
        bodies = self._socket.dump(wire.encode_dump_sas())
        decoded = (wire.decode_sa(body) for number, body in bodies if number == lib.XFRM_MSG_NEWSA)
        return [sa for sa in decoded if sa is not None]

    def dump_policies(self) -> list[Policy]:
        """Give the policies that are ours, whole or not at all; ``rivals`` are those of this dump then."""
        bodies = self._socket.dump(wire.encode_dump_policies())
        decoded = [wire.decode_policy(body) for number, body in bodies if number == lib.XFRM_MSG_NEWPOLICY]
        self.rivals = tuple(found.rival for found in decoded if found.rival is not None)
        return [found.policy for found in decoded if found.policy is not None]

    def sa_pieces(self) -> Iterator[list[DecodedSa] | None]:
        """Give the same, a few dozen a step; None: from the start once more. The socket must be of no other use."""
        for piece in self._socket.dump_pieces(wire.encode_dump_sas()):
            bodies = [body for number, body in piece or () if number == lib.XFRM_MSG_NEWSA]
            yield None if piece is None else [sa for sa in map(wire.decode_sa, bodies) if sa is not None]

    def policy_pieces(self) -> Iterator[list[Policy] | None]:
        """Give the policies that are ours in the same way; what others have is of no interest here."""
        for piece in self._socket.dump_pieces(wire.encode_dump_policies()):
            bodies = [body for number, body in piece or () if number == lib.XFRM_MSG_NEWPOLICY]
            found = [wire.decode_policy(body).policy for body in bodies]
            yield None if piece is None else [policy for policy in found if policy is not None]

    def find_sas(self, identities: Iterable[SaId]) -> list[DecodedSa]:
        """Give those of some SAs that are there."""
        bodies = (self._find(wire.encode_get_sa(one)) for one in identities)
        decoded = (wire.decode_sa(body) for body in bodies if body is not None)
        return [sa for sa in decoded if sa is not None]

    def find_policies(self, identities: Iterable[PolicyId]) -> list[Policy]:
        """Give those of some policies that are there and ours."""
        bodies = (self._find(wire.encode_get_policy(one)) for one in identities)
        decoded = (wire.decode_policy(body) for body in bodies if body is not None)
        return [found.policy for found in decoded if found.policy is not None]

    def _find(self, request: bytes) -> bytes | None:
        try:
            return self._socket.get(request)
        except KernelError as error:
            if error.errno in ABSENT:
                return None
            raise

    def apply(self, operations: Sequence[XfrmOperation]) -> tuple[Failure, ...]:
        """Carry out the operations in order, many in one send; give those that failed."""
        failures: list[Failure] = []
        requests: list[bytes] = []
        owners: list[tuple[XfrmOperation, str, Sa | Policy]] = []
        for operation in operations:
            try:
                encoded = _encode(operation)
            except EncodeError as error:
                failures.append(Failure(operation, error))
                continue
            for verb, what, request in encoded:
                requests.append(request)
                owners.append((operation, verb, what))
        for ack, (operation, verb, what) in zip(self._socket.execute(requests), owners, strict=True):
            refusal = _error(ack, verb, what) if ack.errno else None
            # Of an operation of two messages the first refusal is the one that tells why.
            if refusal is not None and not (failures and failures[-1].operation is operation):
                failures.append(Failure(operation, refusal))
        return tuple(failures)


def _text(what: Sa | Policy) -> str:
    if isinstance(what, Policy):
        return f"{what.direction.value} {what.src} -> {what.dst} mark {what.mark}"
    mark = f" mark {what.mark}" if what.mark else ""
    return f"{what.src} -> {what.dst} spi {what.spi:#010x}{mark}"


def _encode(operation: XfrmOperation) -> list[tuple[str, Sa | Policy, bytes]]:
    """Give (verb, what it is about, request) of each message that an operation takes."""
    match operation:
        case ops.AddSa(sa):
            return [("add SA", sa, wire.encode_new_sa(sa))]
        case ops.ReplaceSa(old, new):
            # Neighbours in one send: what passes in between finds no SA, for microseconds; the key is another anyway.
            return [
                ("delete SA", old, wire.encode_delete_sa(old)),
                ("add SA", new, wire.encode_new_sa(new)),
            ]
        case ops.DeleteSa(sa):
            return [("delete SA", sa, wire.encode_delete_sa(sa))]
        case ops.SetPolicy(policy, replace):
            verb = "update policy" if replace else "add policy"
            return [(verb, policy, wire.encode_set_policy(policy, replace=replace))]
        case ops.DeletePolicy(policy):
            return [("delete policy", policy, wire.encode_delete_policy(policy))]


def _error(ack: Ack, verb: str, what: Sa | Policy) -> KmeshBpfError | None:
    target = _text(what)
    if verb.startswith("delete") and ack.errno in ABSENT:
        return None  # gone already: absent, as asked
    if ack.errno == errno.EEXIST:
        return ConflictError(verb, target, ack.errno, "something that is not ours stands in its place")
    if verb == "add SA" and ack.errno in NO_ESP:
        remedy = "load esp4, esp6 and gcm, or use a kernel with CONFIG_INET_ESP and CONFIG_CRYPTO_GCM"
        return UnsupportedError(f"ESP with {wire.AEAD_NAME.decode()} ({ack.detail or f'errno {ack.errno}'})", remedy)
    return KernelError(verb, target, ack.errno, ack.detail)

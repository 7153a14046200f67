# SPDX-License-Identifier: Apache-2.0
"""SAs and policies as netlink messages of linux/xfrm.h, both ways; no I/O.

Encoding is strict: what cannot be encoded raises. Decoding is strict for what is ours and lenient for what is not.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core import marks
from kmesh_bpf.core.state import ICV_BITS, Direction, Mark, Policy, PolicyId, Rival, Sa, SaId, SaUsage
from kmesh_bpf.core.view import KEY_BYTES, Address, Key
from kmesh_bpf.errors import ConfigError, DecodeError
from kmesh_bpf.kernel import xfrm_checks, xfrm_rivals
from kmesh_bpf.kernel import xfrm_structs as structs
from kmesh_bpf.kernel.netlink import attribute, attributes, message

AEAD_NAME = b"rfc4106(gcm(aes))"
DIRECTIONS = {
    Direction.IN: lib.XFRM_POLICY_IN,
    Direction.OUT: lib.XFRM_POLICY_OUT,
    Direction.FWD: lib.XFRM_POLICY_FWD,
}
BY_NUMBER = {number: direction for direction, number in DIRECTIONS.items()}
PASSING, PRIORITY, INDEX, LASTING = (
    ffi.offsetof("struct xfrm_userpolicy_info", name) for name in ("lft", "priority", "index", "dir")
)
ACTIONS = (lib.XFRM_POLICY_ALLOW, lib.XFRM_POLICY_BLOCK)
ALL_ALGORITHMS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class DecodedSa:
    """An SA found in the kernel; ``sa`` only where it is ours."""

    id: SaId
    usage: SaUsage
    sa: Sa | None

    @property
    def ours(self) -> bool:
        """Whether it carries our reqid and our marks."""
        return self.sa is not None


@dataclass(frozen=True, slots=True)
class DecodedPolicy:
    """A policy found in the kernel; ``policy`` only where it is ours, ``rival`` only where it comes before ours."""

    policy: Policy | None
    rival: Rival | None = None

    @property
    def ours(self) -> bool:
        """Whether it carries our reqid and our marks."""
        return self.policy is not None


def encode_new_sa(sa: Sa) -> bytes:
    """XFRM_MSG_NEWSA; the kernel refuses it (EEXIST) where the SAD holds one of the same identity.

    Raises:
        EncodeError: families differ, or the SPI, a mark or the window is out of range.

    """
    xfrm_checks.check_sa(sa)
    info = ffi.new("struct xfrm_usersa_info *")
    info.sel.family = 0 if sa.any_family else structs.FAMILIES[sa.src.version]
    structs.put_address(info.id.daddr, sa.dst)
    structs.put_address(info.saddr, sa.src)
    info.id.spi = socket.htonl(sa.spi)
    info.id.proto = socket.IPPROTO_ESP
    info.reqid = contract.REQID
    info.family = structs.FAMILIES[sa.src.version]
    info.mode = lib.XFRM_MODE_TUNNEL
    info.flags = (lib.XFRM_STATE_AF_UNSPEC if sa.any_family else 0) | (lib.XFRM_STATE_ESN if sa.replay_window else 0)
    _put_no_limits(info.lft)
    parts = [contract.raw(info), attribute(lib.XFRMA_ALG_AEAD, _aead(sa.key))]
    if sa.mark:
        parts.append(attribute(lib.XFRMA_MARK, structs.mark(sa.mark)))
    if sa.output_mark:
        parts.append(attribute(lib.XFRMA_SET_MARK, structs.u32(sa.output_mark.value)))
        parts.append(attribute(lib.XFRMA_SET_MARK_MASK, structs.u32(sa.output_mark.mask)))
    if sa.replay_window:
        words = -(-sa.replay_window // structs.WORD_BITS)
        esn = ffi.new("struct xfrm_replay_state_esn *", {"bmp_len": words, "replay_window": sa.replay_window})
        parts.append(attribute(lib.XFRMA_REPLAY_ESN_VAL, contract.raw(esn) + bytes(4 * words)))
    return message(lib.XFRM_MSG_NEWSA, lib.NLM_F_CREATE | lib.NLM_F_EXCL, b"".join(parts))


def encode_delete_sa(sa: Sa) -> bytes:
    """XFRM_MSG_DELSA by (destination, SPI, mark), as the SAD tells them apart."""
    xfrm_checks.check_sa(sa)
    return message(lib.XFRM_MSG_DELSA, 0, _sa_id(sa.id))


def encode_get_sa(identity: SaId) -> bytes:
    """XFRM_MSG_GETSA by (destination, SPI, mark)."""
    return message(lib.XFRM_MSG_GETSA, 0, _sa_id(identity))


def _sa_id(identity: SaId) -> bytes:
    info = ffi.new("struct xfrm_usersa_id *")
    structs.put_address(info.daddr, identity.dst)
    info.spi = socket.htonl(identity.spi)
    info.family = structs.FAMILIES[identity.dst.version]
    info.proto = socket.IPPROTO_ESP
    return contract.raw(info) + (attribute(lib.XFRMA_MARK, structs.mark(identity.mark)) if identity.mark else b"")


def encode_set_policy(policy: Policy, *, replace: bool) -> bytes:
    """XFRM_MSG_NEWPOLICY, refused where the identity is taken; with ``replace`` XFRM_MSG_UPDPOLICY, one step.

    Raises:
        EncodeError: families differ, or a number is out of range.

    """
    xfrm_checks.check_policy(policy)
    info = ffi.new("struct xfrm_userpolicy_info *")
    structs.put_selector(info.sel, policy)
    _put_no_limits(info.lft)
    info.priority = policy.priority
    info.dir = DIRECTIONS[policy.direction]
    info.action = lib.XFRM_POLICY_BLOCK if policy.block else lib.XFRM_POLICY_ALLOW
    body = contract.raw(info) + _template(policy.tunnel_src, policy.tunnel_dst, policy.spi) + _policy_mark(policy)
    return message(lib.XFRM_MSG_UPDPOLICY if replace else lib.XFRM_MSG_NEWPOLICY, 0, body)


def encode_delete_policy(policy: Policy) -> bytes:
    """XFRM_MSG_DELPOLICY by selector and mark."""
    xfrm_checks.check_policy(policy)
    return message(lib.XFRM_MSG_DELPOLICY, 0, _policy_id(policy.id))


def encode_get_policy(identity: PolicyId) -> bytes:
    """XFRM_MSG_GETPOLICY by selector and mark."""
    return message(lib.XFRM_MSG_GETPOLICY, 0, _policy_id(identity))


def _policy_id(identity: PolicyId) -> bytes:
    info = ffi.new("struct xfrm_userpolicy_id *")
    structs.put_selector(info.sel, identity)
    info.dir = DIRECTIONS[identity.direction]
    return contract.raw(info) + _policy_mark(identity)


def encode_dump_sas() -> bytes:
    """XFRM_MSG_GETSA for a dump."""
    return message(lib.XFRM_MSG_GETSA, 0, bytes(ffi.sizeof("struct xfrm_usersa_id")))


def encode_dump_policies() -> bytes:
    """XFRM_MSG_GETPOLICY for a dump."""
    return message(lib.XFRM_MSG_GETPOLICY, 0, bytes(ffi.sizeof("struct xfrm_userpolicy_id")))


def decode_sa(body: bytes) -> DecodedSa | None:
    """Read the body of an XFRM_MSG_NEWSA; None for a protocol other than ESP, and for a mere wish for an SA.

    Such a wish (SPI 0, the policy's reqid) the kernel keeps for minutes where a key manager of others listens.

    Raises:
        DecodeError: it is cut short, or it is ours and not of a shape we write.

    """
    info, rest = structs.take("struct xfrm_usersa_info", body)
    found = dict(attributes(rest))
    if info.id.proto != socket.IPPROTO_ESP or not info.id.spi:
        return None
    src, dst = structs.address(info.saddr, info.family), structs.address(info.id.daddr, info.family)
    mark = structs.read_mark(found.get(lib.XFRMA_MARK))
    identity = SaId(src, dst, socket.ntohl(info.id.spi), mark)
    esn = (
        structs.take("struct xfrm_replay_state_esn", found[lib.XFRMA_REPLAY_ESN_VAL])[0]
        if lib.XFRMA_REPLAY_ESN_VAL in found
        else None
    )
    last_used = int.from_bytes(found[lib.XFRMA_LASTUSED], sys.byteorder) if lib.XFRMA_LASTUSED in found else 0
    usage = SaUsage(
        added=info.curlft.add_time,
        last_used=max(last_used, info.curlft.use_time),
        packets=info.curlft.packets,
        bytes=info.curlft.bytes,
        sequence=_sequence(found, esn),
        replays=info.stats.replay_window + info.stats.replay,
        integrity_failures=info.stats.integrity_failed,
    )
    output = None
    if lib.XFRMA_SET_MARK in found:
        mask = found.get(lib.XFRMA_SET_MARK_MASK)
        output = Mark(
            structs.read_u32(found[lib.XFRMA_SET_MARK]), structs.read_u32(mask) if mask else xfrm_checks.MAX32
        )
    if info.reqid != contract.REQID or not marks.are_of_sa(mark, output):
        return DecodedSa(identity, usage, None)
    sa = Sa(
        src=src,
        dst=dst,
        spi=identity.spi,
        key=_read_key(found.get(lib.XFRMA_ALG_AEAD), identity),
        mark=mark,
        output_mark=output,
        replay_window=esn.replay_window if esn else 0,
        any_family=bool(info.flags & lib.XFRM_STATE_AF_UNSPEC),
    )
    if info.mode != lib.XFRM_MODE_TUNNEL or bool(info.flags & lib.XFRM_STATE_ESN) != bool(esn):
        raise DecodeError(f"SA {identity}: ours by reqid, but not in tunnel mode or with half of ESN")
    return DecodedSa(identity, usage, sa)


def decode_policy(body: bytes) -> DecodedPolicy:
    """Read the body of an XFRM_MSG_NEWPOLICY.

    Raises:
        DecodeError: it is cut short, or it is ours and not of a shape we write.

    """
    if len(body) < LASTING:
        raise DecodeError(f"struct xfrm_userpolicy_info of {len(body)} bytes")
    return _decode_policy(body[:PASSING] + bytes(PRIORITY - PASSING) + body[PRIORITY:INDEX] + bytes(4) + body[LASTING:])


@lru_cache(maxsize=1 << 18)
def _decode_policy(body: bytes) -> DecodedPolicy:
    """Read a policy without what passes (lifetimes, times of use, index), so that it is read once and not each pass."""
    info, rest = structs.take("struct xfrm_userpolicy_info", body)
    found = dict(attributes(rest))
    mark = structs.read_mark(found.get(lib.XFRMA_MARK)) or marks.UNMARKED
    templates = found.get(lib.XFRMA_TMPL, b"")
    if info.dir not in BY_NUMBER:
        return DecodedPolicy(None)
    direction = BY_NUMBER[info.dir]
    one = len(templates) == ffi.sizeof("struct xfrm_user_tmpl")
    template = structs.take("struct xfrm_user_tmpl", templates)[0] if one else None
    if template is None or template.reqid != contract.REQID or not marks.is_of_policy(direction, mark):
        return DecodedPolicy(None, _rival(info, direction, mark) if xfrm_rivals.comes_before(info, found) else None)
    policy = Policy(
        direction=direction,
        src=structs.network(info.sel.saddr, info.sel.prefixlen_s, info.sel.family),
        dst=structs.network(info.sel.daddr, info.sel.prefixlen_d, info.sel.family),
        mark=mark,
        tunnel_src=structs.address(template.saddr, template.family),
        tunnel_dst=structs.address(template.id.daddr, template.family),
        spi=socket.ntohl(template.id.spi),
        priority=info.priority,
        block=info.action == lib.XFRM_POLICY_BLOCK,
    )
    shape = (template.mode, template.id.proto, template.optional)
    if info.action not in ACTIONS or shape != (lib.XFRM_MODE_TUNNEL, socket.IPPROTO_ESP, 0):
        raise DecodeError(f"policy {policy.id}: ours by reqid, but it does not require ESP in tunnel mode")
    return DecodedPolicy(policy)


def decode_sa_id(struct: str, body: bytes) -> SaId | None:
    """Read which SA a notification is about, whose body begins with a struct; None: another protocol than ESP.

    Of one that was removed the struct is that by which it is named; where it came from stands in the attributes then.

    Raises:
        DecodeError: it is cut short.

    """
    head, rest = structs.take(struct, body)
    found = dict(attributes(rest))
    if struct == "struct xfrm_usersa_id":
        info = structs.take("struct xfrm_usersa_info", found.get(lib.XFRMA_SA, b""))[0]
    else:
        info = head.state if struct == "struct xfrm_user_expire" else head
    if info.id.proto != socket.IPPROTO_ESP:
        return None
    src, dst = structs.address(info.saddr, info.family), structs.address(info.id.daddr, info.family)
    return SaId(src, dst, socket.ntohl(info.id.spi), structs.read_mark(found.get(lib.XFRMA_MARK)))


def is_rival(struct: str, body: bytes) -> bool:
    """Tell whether a notification is about a policy of others that comes, or came, before ours.

    Raises:
        DecodeError: it is cut short.

    """
    head, rest = structs.take(struct, body)
    if struct == "struct xfrm_userpolicy_id":
        info = dict(attributes(rest)).get(lib.XFRMA_POLICY, b"")
    else:
        info = contract.raw(ffi.addressof(head.pol) if struct == "struct xfrm_user_polexpire" else head)
    return decode_policy(info + rest).rival is not None


def decode_policy_id(struct: str, body: bytes) -> PolicyId | None:
    """Read which policy a notification is about, whose body begins with a struct; None: of no direction of ours.

    Raises:
        DecodeError: it is cut short.

    """
    head, rest = structs.take(struct, body)
    found = dict(attributes(rest))
    if struct == "struct xfrm_userpolicy_id":  # by its index alone, where it was removed by that
        info = structs.take("struct xfrm_userpolicy_info", found.get(lib.XFRMA_POLICY, b""))[0]
    else:
        info = head.pol if struct == "struct xfrm_user_polexpire" else head
    if info.dir not in BY_NUMBER:
        return None
    src = structs.network(info.sel.saddr, info.sel.prefixlen_s, info.sel.family)
    dst = structs.network(info.sel.daddr, info.sel.prefixlen_d, info.sel.family)
    return PolicyId(BY_NUMBER[info.dir], src, dst, structs.read_mark(found.get(lib.XFRMA_MARK)) or marks.UNMARKED)


def _rival(info: Any, direction: Direction, mark: Mark) -> Rival:
    # The kernel keeps a selector as it comes, bits behind its prefix length and all.
    src = ip_network((structs.address(info.sel.saddr, info.sel.family), info.sel.prefixlen_s), strict=False)
    dst = ip_network((structs.address(info.sel.daddr, info.sel.family), info.sel.prefixlen_d), strict=False)
    return Rival(direction, src, dst, mark, info.priority)


def _sequence(found: dict[int, bytes], esn: Any) -> int:
    """Give the highest sequence number sent or received over an SA, with or without ESN."""
    if esn:
        return int(max(esn.oseq_hi << structs.WORD_BITS | esn.oseq, esn.seq_hi << structs.WORD_BITS | esn.seq))
    if lib.XFRMA_REPLAY_VAL not in found:
        return 0
    state = structs.take("struct xfrm_replay_state", found[lib.XFRMA_REPLAY_VAL])[0]
    return max(int(state.oseq), int(state.seq))


@lru_cache(maxsize=structs.TUNNELS)
def _template(src: Address, dst: Address, spi: int) -> bytes:
    """Encode what a policy says of its tunnel, which thousands of them have in common."""
    template = ffi.new("struct xfrm_user_tmpl *")
    structs.put_address(template.id.daddr, dst)
    structs.put_address(template.saddr, src)
    template.id.spi = socket.htonl(spi)
    template.id.proto = socket.IPPROTO_ESP
    template.family = structs.FAMILIES[dst.version]
    template.reqid = contract.REQID
    template.mode = lib.XFRM_MODE_TUNNEL
    template.aalgos = template.ealgos = template.calgos = ALL_ALGORITHMS
    return attribute(lib.XFRMA_TMPL, contract.raw(template))


def _policy_mark(policy: Policy | PolicyId) -> bytes:
    """Encode a policy's mark; the kernel leaves one that matches everything out of its dumps, and so do we."""
    return b"" if policy.mark == marks.UNMARKED else attribute(lib.XFRMA_MARK, structs.mark(policy.mark))


def _aead(key: Key) -> bytes:
    algorithm = ffi.new("struct xfrm_algo_aead *", (AEAD_NAME, KEY_BYTES * 8, ICV_BITS))
    return contract.raw(algorithm) + key.reveal()


def _read_key(payload: bytes | None, identity: SaId) -> Key:
    if payload is None:
        raise DecodeError(f"SA {identity}: ours by reqid, but without an AEAD")
    algorithm, key = structs.take("struct xfrm_algo_aead", payload)
    if ffi.string(algorithm.alg_name) != AEAD_NAME or algorithm.alg_icv_len != ICV_BITS:
        raise DecodeError(f"SA {identity}: ours by reqid, but with another algorithm")
    try:
        return Key(key)
    except ConfigError as error:
        raise DecodeError(f"SA {identity}: ours by reqid, but {error}") from error


def _put_no_limits(limits: Any) -> None:
    for name in ("soft_byte_limit", "hard_byte_limit", "soft_packet_limit", "hard_packet_limit"):
        setattr(limits, name, lib.XFRM_INF)

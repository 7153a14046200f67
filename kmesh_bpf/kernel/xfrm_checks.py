# SPDX-License-Identifier: Apache-2.0
"""What an SA or policy must be like before it is encoded: what would be misread, or not found again, is refused."""

from __future__ import annotations

from ipaddress import IPv6Address

from kmesh_bpf._abi import lib
from kmesh_bpf.core import marks
from kmesh_bpf.core.state import Mark, Policy, Sa
from kmesh_bpf.core.view import Address
from kmesh_bpf.errors import EncodeError

MAX32 = 0xFFFFFFFF


def check_sa(sa: Sa) -> None:
    """Refuse an SA that cannot be encoded.

    Raises:
        EncodeError: families differ, the SPI, a mark or the window is out of range, or the marks are not ours.

    """
    if sa.src.version != sa.dst.version:
        raise EncodeError(f"SA {sa.src} -> {sa.dst}: addresses of two families")
    if not 0 < sa.spi <= MAX32:
        raise EncodeError(f"SA {sa.src} -> {sa.dst}: SPI {sa.spi} is not between 1 and 2^32-1")
    if not 0 <= sa.replay_window <= lib.XFRMA_REPLAY_ESN_MAX:
        raise EncodeError(f"SA {sa.src} -> {sa.dst}: replay window {sa.replay_window} is not within 0..4096 packets")
    for mark in (sa.mark, sa.output_mark):
        _check_mark(mark)
    if not marks.are_of_sa(sa.mark, sa.output_mark):
        # It would not be taken for ours when read back, and stay for ever.
        raise EncodeError(f"SA {sa.src} -> {sa.dst}: marks {sa.mark} and {sa.output_mark} are not ours")
    _check_addresses(sa.src, sa.dst)


def check_policy(policy: Policy) -> None:
    """Refuse a policy that cannot be encoded.

    Raises:
        EncodeError: families differ, a number is out of range, or the mark is not ours.

    """
    if policy.src.version != policy.dst.version:
        raise EncodeError(f"policy {policy.src} -> {policy.dst}: prefixes of two families")
    if policy.tunnel_src.version != policy.tunnel_dst.version:
        raise EncodeError(f"policy {policy.src} -> {policy.dst}: tunnel ends of two families")
    if not 0 <= policy.spi <= MAX32 or not 0 <= policy.priority <= MAX32:
        raise EncodeError(f"policy {policy.src} -> {policy.dst}: SPI or priority is no 32-bit number")
    _check_mark(policy.mark)
    if not marks.is_of_policy(policy.direction, policy.mark):
        raise EncodeError(
            f"policy {policy.src} -> {policy.dst} {policy.direction.value}: mark {policy.mark} is not ours"
        )
    _check_addresses(policy.tunnel_src, policy.tunnel_dst)


def _check_addresses(*addresses: Address) -> None:
    for address in addresses:
        if isinstance(address, IPv6Address) and address.scope_id:
            raise EncodeError(f"tunnel end {address}: an SA has no room for a scope")


def _check_mark(mark: Mark | None) -> None:
    if mark and not (0 <= mark.value <= MAX32 and 0 <= mark.mask <= MAX32 and mark.value & ~mark.mask == 0):
        raise EncodeError(f"mark {mark}: not 32 bits, or bits outside its mask")

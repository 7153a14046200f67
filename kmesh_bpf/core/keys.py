# SPDX-License-Identifier: Apache-2.0
"""Keys of one direction, and which key versions are in use towards and from a peer.

Both as docs/design.md, "Keys", and docs/design.md, "Replacing the key", have them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kmesh_bpf.core.state import SaUsage
from kmesh_bpf.core.view import KEY_BYTES, Address, Key

BOOT_ID_CHARACTERS = 36


@dataclass(frozen=True, slots=True)
class Retirement:
    """When an inbound SA of an older key version may go, in seconds.

    ``grace``: we must have announced the newer version for so long. ``idle``: nothing came over the old SA for so long.
    ``silence``: the same, where nothing proves that the peer sends with a newer one. Longer than a daemon or an API
    server is away on a bad day: until its daemon has heard of our announcement, a peer that has something to send again
    does so with the old version. Not for ever: a key is replaced so that the one before is of no use any more.
    """

    grace: float = 10.0
    idle: float = 10.0
    silence: float = 3 * 3600.0


def derive(psk: Key, src: Address, dst: Address, src_boot_id: str, dst_boot_id: str) -> Key:
    """Derive the key of the direction src -> dst.

    First 36 bytes of SHA-512(psk ‖ src ‖ dst ‖ srcBootID[:36] ‖ dstBootID[:36]), addresses as text: no two SAs share
    a key, and both ends derive both directions.
    """
    text = f"{src}{dst}{src_boot_id[:BOOT_ID_CHARACTERS]}{dst_boot_id[:BOOT_ID_CHARACTERS]}"
    return Key(hashlib.sha512(psk.reveal() + text.encode()).digest()[:KEY_BYTES])


def pair(local: Address, remote: Address, local_boot_id: str, remote_boot_id: str) -> int:
    """Give a 64-bit fingerprint of a tunnel, never 0: of all that its two keys are made of but for the cluster's key.

    As fine as :func:`derive`, and no finer: tunnels that differ here have no key in common, and those that do not have
    all. A node of another name, or with one address more, derives the same keys between the same addresses.
    """
    words = (str(local), str(remote), local_boot_id[:BOOT_ID_CHARACTERS], remote_boot_id[:BOOT_ID_CHARACTERS])
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big") or 1


def outbound_version(held: Collection[int], announced_by_peer: int) -> int | None:
    """Give the version to send with: the highest that we hold and that the peer can decrypt; None: not one."""
    return max((version for version in held if version <= announced_by_peer), default=None)


def inbound_versions(
    held: Collection[int],
    announced_by_peer: int,
    announced: int,
    announced_at: float,
    usage: Mapping[int, SaUsage],
    now: float,
    retirement: Retirement,
    sends: int = 0,
) -> dict[int, float | None]:
    """Give the versions to accept from a peer: every one we hold, but for those that it provably left behind.

    A version goes when the peer announces a newer one (it sends with the highest it holds that is not above ours),
    we have announced a newer one for the grace period, *and* its SA, if there is one, has been idle. That proves
    nothing of a peer that has nothing to send, and whose daemon is late: so of one that tells what it ``sends`` with
    (the lowest version, to whomever; 0: it does not tell) it takes that it tells of a newer one, or that a packet came
    over a newer SA; else the SA must have been idle for much longer. With each version comes when it may go if nothing
    else happens, in the clock of ``now``; None: not by the passing of time. ``usage`` is by version; ``announced_at``
    is when we announced ours.
    """
    received = max((version for version, use in usage.items() if use.packets), default=0)
    kept: dict[int, float | None] = {}
    for version in sorted(held):
        if announced_by_peer <= version or announced <= version:
            kept[version] = None
            continue
        use = usage.get(version)
        proven = not sends or max(sends, received) > version
        idle = retirement.idle if proven else retirement.silence
        quiet = max(use.last_used, use.added, 0 if proven else announced_at) + idle if use is not None else 0.0
        goes = max(announced_at + retirement.grace, quiet)
        if now < goes:
            kept[version] = goes
    return kept

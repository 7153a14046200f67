# SPDX-License-Identifier: Apache-2.0
"""XFRM by the kernel's rules: which policy, which SA, which number, and what a replay window says of one.

Sources are those of Linux 6.12, named where a rule is taken from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kmesh_bpf.core.state import Direction, Policy, PolicyId, Sa, SaId, SaUsage
from kmesh_bpf.core.view import Address, Network

LOW = (1 << 32) - 1
"""The part of a sequence number that the wire carries."""


class Rule(NamedTuple):
    """A policy taken apart. ``place``: in its chain; ``age``: when it was last written; ``chain``: None, by hash."""

    priority: int
    place: int
    age: int
    chain: tuple[Network, Network] | None
    version: int
    src: int
    src_mask: int
    dst: int
    dst_mask: int
    policy: Policy


class Spd:
    """Policies, found by the addresses and the mark of a packet (xfrm_policy_lookup_bytype).

    Those of whole addresses stand in chains by hash, of both addresses or, with lower thresholds (``policy_hash``), of
    theirs alone; all others in a chain for each pair of prefixes. Of a chain the first counts that selects the packet:
    by priority, then in the order of their coming, where one written again at its priority keeps its place
    (xfrm_policy_insert_list). Of several chains the lowest priority counts, then the one longest unwritten
    (__xfrm_policy_eval_candidates). ``places``: by identity.
    """

    def __init__(self, policies: Iterable[Policy], places: Mapping[PolicyId, int], *, policy_hash: bool) -> None:
        self._near: dict[tuple[Direction, Address], list[Rule]] = {}
        self._wide: dict[Direction, list[Rule]] = {direction: [] for direction in Direction}
        for age, policy in enumerate(policies):
            ours, theirs = (policy.src, policy.dst) if policy.direction is Direction.OUT else (policy.dst, policy.src)
            whole = theirs.prefixlen == theirs.max_prefixlen
            hashed = whole and (policy_hash or ours.prefixlen == ours.max_prefixlen)
            rule = Rule(
                policy.priority,
                places.get(policy.id, age),
                age,
                None if hashed else (policy.src, policy.dst),
                policy.src.version,
                int(policy.src.network_address),
                int(policy.src.netmask),
                int(policy.dst.network_address),
                int(policy.dst.netmask),
                policy,
            )
            here = (policy.direction, theirs.network_address)
            (self._near.setdefault(here, []) if whole else self._wide[policy.direction]).append(rule)
        for rules in (*self._near.values(), *self._wide.values()):
            rules.sort(key=lambda rule: (rule.priority, rule.place))

    def find(self, direction: Direction, src: Address, dst: Address, mark: int) -> Policy | None:
        """Give the policy that counts for a packet, None: there is none."""
        theirs = dst if direction is Direction.OUT else src
        firsts: dict[tuple[Network, Network] | None, Rule] = {}
        for rules in (self._near.get((direction, theirs), ()), self._wide[direction]):
            for rule in rules:
                selects = rule.policy.mark
                if (
                    mark & selects.mask == selects.value
                    and rule.version == src.version
                    and int(src) & rule.src_mask == rule.src
                    and int(dst) & rule.dst_mask == rule.dst
                ):
                    firsts.setdefault(rule.chain, rule)
        return min(firsts.values(), key=lambda rule: (rule.priority, rule.age)).policy if firsts else None


class Sad:
    """SAs, found as a packet comes and as one goes; of each chain the one added last stands first."""

    def __init__(self, sas: Iterable[Sa]) -> None:
        self._inbound: dict[tuple[Address, int], list[Sa]] = {}
        self._outbound: dict[tuple[Address, Address], list[Sa]] = {}
        for sa in reversed(list(sas)):
            self._inbound.setdefault((sa.dst, sa.spi), []).append(sa)
            self._outbound.setdefault((sa.src, sa.dst), []).append(sa)

    def inbound(self, dst: Address, spi: int, mark: int) -> Sa | None:
        """Find by what ESP carries (__xfrm_state_lookup)."""
        return next((sa for sa in self._inbound.get((dst, spi), ()) if _selects(sa, mark)), None)

    def outbound(self, policy: Policy, version: int, usage: Mapping[SaId, SaUsage]) -> Sa | None:
        """Find by a policy's template (xfrm_state_find, xfrm_state_look_at): the newest by whole seconds.

        ``version``: of the packet within.
        """
        best, newest = None, -1
        for sa in self._outbound.get((policy.tunnel_src, policy.tunnel_dst), ()):
            fits = policy.spi in (0, sa.spi) and (sa.any_family or sa.src.version == version)
            if fits and _selects(sa, policy.mark.value) and usage[sa.id].added > newest:
                best, newest = sa, usage[sa.id].added
        return best


def _selects(sa: Sa, mark: int) -> bool:
    return sa.mark is None or mark & sa.mark.mask == sa.mark.value


@dataclass(slots=True)
class Window:
    """What an SA keeps of the numbers that it took (struct xfrm_replay_state_esn), ``size`` packets wide; 0: nothing.

    ``top`` is the highest number taken, ``taken`` those within the window.
    """

    size: int
    top: int = 0
    taken: set[int] = field(default_factory=set)

    def high(self, number: int) -> int:
        """Give the upper 32 bits that the receiver takes a number's to be (xfrm_replay_seqhi)."""
        if not self.size:
            return 0
        low, top = number & LOW, self.top & LOW
        bottom = (top - self.size + 1) & LOW
        if top >= self.size - 1:
            return (self.top >> 32) + (low < bottom)
        return (self.top >> 32) - (low >= bottom)

    def refuses(self, number: int) -> bool:
        """Tell whether the number was taken, before anything is decrypted (xfrm_replay_check_esn)."""
        if not self.size:
            return False
        low = number & LOW
        if low == 0 and self.top < self.size - 1:
            return True
        whole = self.high(number) << 32 | low
        return whole in self.taken or self.top - whole >= self.size > 0

    def take(self, number: int) -> None:
        """Keep a number (xfrm_replay_advance_esn)."""
        if not self.size:
            return
        self.taken.add(number)
        if number > self.top:
            self.top = number
            if len(self.taken) > 2 * self.size:
                self.taken = {one for one in self.taken if one > number - self.size}

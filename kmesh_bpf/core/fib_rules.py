# SPDX-License-Identifier: Apache-2.0
"""Routing rules of others (``ip rule``) that drop packets, ours among them. Pure.

Those that choose by our marks are detours (:mod:`kmesh_bpf.core.detours`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from kmesh_bpf.core.interference import OUR_MARKS
from kmesh_bpf.core.state import Suspect
from kmesh_bpf.core.view import Address, Network

DROPPING = frozenset({"blackhole", "unreachable", "prohibit"})
"""Actions of a rule that let a packet go no further; the words are `ip rule`'s."""


@dataclass(frozen=True, slots=True)
class FibRule:
    """A rule. ``version``: of IP; ``action``: ``lookup``, ``goto``, ``nop`` or one of DROPPING.

    ``mark``, ``mask``: what a packet's mark must be, in which bits; mask 0: any mark. ``device``: that the packet comes
    by, empty: any. ``inverted``: it is for whatever is *not* so.
    """

    version: int
    priority: int
    action: str
    mark: int = 0
    mask: int = 0
    device: str = ""
    src: Network | None = None
    dst: Network | None = None
    inverted: bool = False

    @property
    def selector(self) -> str:
        """What it selects, as `ip rule add` takes it."""
        words = ["not"] if self.inverted else []
        words += [f"from {self.src}"] if self.src is not None else []
        words += [f"to {self.dst}"] if self.dst is not None else []
        words += [f"fwmark {self.mark:#x}/{self.mask:#x}"] if self.mask else []
        words += [f"iif {self.device}"] if self.device else []
        return " ".join(words)

    @property
    def family(self) -> str:
        """The option of `ip` for its IP version; empty for IPv4."""
        return "-6 " if self.version == 6 else ""

    def __str__(self) -> str:
        return f"ip {self.family}rule {self.priority}: {self.selector or 'from all'} {self.action}"


def suspects(rules: Iterable[FibRule]) -> Iterator[Suspect]:
    """Give the rules that surely drop packets of ours, if any come by their device.

    Those that tell our marks from none are named already (:func:`kmesh_bpf.core.detours.of_rule`).
    """
    for rule in rules:
        if rule.action in DROPPING and rule.src is None and rule.dst is None and _takes_all(rule):
            yield Suspect(
                where=str(rule),
                words="what is to be encrypted, or was decrypted, is dropped",
                versions=frozenset({rule.version}),
                devices=(rule.device,) if rule.device else (),
                way_out=removal(rule),
            )


def by_address(rules: Iterable[FibRule], managed: Collection[Address]) -> Iterator[FibRule]:
    """Give the rules that drop packets by an address of a managed pod."""
    for rule in rules:
        networks = [one for one in (rule.src, rule.dst) if one is not None]
        drops = rule.action in DROPPING and networks and not rule.inverted and _takes_all(rule)
        if drops and all(any(address in network for address in managed) for network in networks):
            yield rule


def removal(rule: FibRule) -> str:
    """Give the command that removes a rule."""
    return f"ip {rule.family}rule del priority {rule.priority} {rule.selector}".strip()


def _takes_all(rule: FibRule) -> bool:
    """Tell whether a rule takes packets with our marks, and those without any as well."""
    return all((mark & rule.mask == rule.mark) is not rule.inverted for mark in (0, *OUR_MARKS))

"""Routing rules of others (``ip rule``) that look at our marks, or drop what carries them. Pure.

Routes are looked up with the mark that a packet has: what a managed pod sends with that of encryption, what was
decrypted with that of decryption, ESP that comes in with its sender's node id beside the latter.
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
    by, empty: any. ``inverted``: it is for whatever is *not* so. ``table``: where ``lookup`` looks.
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
    table: int = 0

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
    """Give the rules that surely drop packets of ours, if any come by their device."""
    for rule in rules:
        if rule.action in DROPPING and rule.src is None and rule.dst is None and _takes_ours(rule):
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
        drops = rule.action in DROPPING and not rule.inverted and _takes_ours(rule)
        if drops and networks and all(any(address in network for address in managed) for network in networks):
            yield rule


def readers(rules: Iterable[FibRule]) -> Iterator[FibRule]:
    """Give the rules by which packets with our marks are routed otherwise than others."""
    for rule in rules:
        if rule.mask and not rule.inverted and rule.action not in DROPPING and _takes_ours(rule):
            yield rule


def removal(rule: FibRule) -> str:
    """Give the command that removes a rule."""
    return f"ip {rule.family}rule del priority {rule.priority} {rule.selector}".strip()


def _takes_ours(rule: FibRule) -> bool:
    """Tell whether a rule is for packets with one of our marks and nothing above it."""
    return any((mark & rule.mask == rule.mark) is not rule.inverted for mark in OUR_MARKS)

# SPDX-License-Identifier: Apache-2.0
"""What others do with packets behind our programs, or past XFRM: on which devices it counts, and what to say. Pure.

What tc redirects, or gives other addresses, has been looked at by then: the guard drops it where it leaves, or the
other node where it comes. A route that wraps packets (SRv6) does so before XFRM selects them; the guard sees through
that. An XDP program comes before all of ours, and what it redirects no program on TC sees at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from kmesh_bpf import contract
from kmesh_bpf.core.devices import RETURNING
from kmesh_bpf.core.interference import OUR_MARKS, Json, lost_by
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import Detour, Link
from kmesh_bpf.core.view import Address

HOOKS = frozenset({"ingress", "egress"})
"""Hooks of nftables that belong to devices."""
ADDRESSES = frozenset({"saddr", "daddr"})
DEVICES = re.compile(r"hook (?:ingress|egress) devices? (?:= )?(\{[^}]*\}|\S+)")
NAME = re.compile(r'[^\s",{}]+')


def devices_of_nft(text: str) -> tuple[str, ...]:
    """Give the devices of a chain, as ``nft list chain`` tells it: in JSON it does not (seen with 1.0.6)."""
    return tuple(name for found in DEVICES.findall(text) for name in NAME.findall(found))


def of_nft(listing: Json, devices: Collection[str]) -> Iterator[Detour]:
    """Give what the rules of a device's chain do, as ``nft -j list chain`` tells them."""
    for rule in (item["rule"] for item in listing.get("nftables", ()) if "rule" in item):
        place = f"{rule['family']} {rule['table']}"
        where = f"nft table {place}, chain {rule['chain']}, handle {rule['handle']}"
        undo = f"nft delete rule {place} {rule['chain']} handle {rule['handle']}"
        for words, to, lost in _done_by(rule["expr"]):
            for device in devices:
                yield Detour(f"{where}, on {device}", words, undo, device, to, lost)


def _done_by(expressions: Collection[Json]) -> Iterator[tuple[str, str, int]]:
    """Give what a rule does in words, the device that it leads to, and the bits of our marks that it changes."""
    for expression in expressions:
        if "fwd" in expression:
            to = expression["fwd"].get("dev")
            yield f"it sends packets on to {to if isinstance(to, str) else 'another device'} (fwd)", str(to), 0
        field = expression.get("mangle", {}).get("key", {}).get("payload", {}).get("field")
        if field in ADDRESSES:
            yield "it changes packets' addresses (set)", "", 0
    if lost := lost_by(expressions):
        yield "it sets packets' marks (meta mark set)", "", lost


def of_rule(priority: int, mark: int, mask: int, version: int, *, inverted: bool) -> Detour | None:
    """Give a rule of policy routing that tells our marks from none; None: it takes packets with and without alike."""

    def takes(packet: int) -> bool:
        return ((packet ^ mark) & mask == 0) is not inverted

    if not any(takes(one) is not takes(0) for one in OUR_MARKS):
        return None
    words = f"it chooses a routing table by fwmark {mark:#x}/{mask:#x}"
    command = f"ip -{version} rule del pref {priority}, or --mark-mask without these bits"
    return Detour(f"ip -{version} rule {priority}", words, command, lost=mask & contract.MARK_MASK)


def judge(
    detours: Iterable[Detour],
    links: Iterable[Link],
    managed: Collection[int],
    elsewhere: Collection[Address],
    bits: int,
) -> Iterator[Problem]:
    """Name what is in the way. ``managed``: devices of managed pods (ifindex).

    ``elsewhere``: addresses of other nodes' managed pods; ``bits``: those of marks that are ours, node ids' too.
    """
    links = tuple(links)
    by_name = {link.name: link for link in links}
    concerned = {link.name for link in _concerned(links, managed)}
    for detour in detours:
        if detour.destination is not None:
            if any(address in detour.destination for address in elsewhere):
                yield _problem(detour, "XFRM sees what is around them only, and what was to be encrypted is dropped")
        elif not detour.device and detour.lost & bits:
            yield _problem(detour, "what is to be encrypted, or was decrypted, goes by it and may be lost")
        elif detour.device in concerned and not _returns(detour, by_name) and (not detour.lost or detour.lost & bits):
            yield _problem(detour, "what is to be encrypted, or was decrypted, is lost by it")
    for link in links:
        if link.xdp and link.ifindex in managed:
            detour = Detour(
                f"XDP program on {link.name}",
                "it comes ahead of all of ours, and what it redirects leaves in clear",
                f"ip link set dev {link.name} xdp off",
            )
            yield _problem(detour, "do not label pods behind it")


def _problem(detour: Detour, consequence: str) -> Problem:
    return Problem(ProblemKind.INTERFERENCE, f"{detour.where}: {detour.words}; {consequence}: {detour.undo}")


def _concerned(links: tuple[Link, ...], managed: Collection[int]) -> Iterator[Link]:
    """Give the devices that our packets take: managed pods', those that lead out, and what is below these."""
    by_index = {link.ifindex: link for link in links}
    above = {link.lower for link in links if link.leads_out}
    for link in links:
        master = by_index.get(link.master)
        below = link.ifindex in above or (master is not None and master.leads_out)
        if link.ifindex in managed or link.leads_out or below:
            yield link


def _returns(detour: Detour, by_name: Mapping[str, Link]) -> bool:
    """Tell whether a detour leads back to the device that it began at."""
    target = by_name.get(detour.to)
    return target is not None and target.kind in RETURNING

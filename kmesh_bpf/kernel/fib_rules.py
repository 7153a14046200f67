# SPDX-License-Identifier: Apache-2.0
"""Reads routing rules of others (``ip rule``); those that surely drop what is ours are suspects, like nft's."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmesh_bpf.core.fib_rules import FibRule, suspects
from kmesh_bpf.core.state import Suspect
from kmesh_bpf.core.view import Network
from kmesh_bpf.kernel.rules import SOON

ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
"""Of a struct fib_rule_hdr (linux/fib_rules.h)."""
INVERTED = 0x2
"""FIB_RULE_INVERT."""
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class RoutingRules:
    """Suspects among them, read again after SOON seconds at the soonest. ``clock``: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = -math.inf
        self._found: tuple[Suspect, ...] = ()

    def suspects(self) -> tuple[Suspect, ...]:
        """Give the rules that surely drop packets of ours; none where they cannot be read: it is only advice."""
        now = self._clock()
        if now >= self._due:
            self._due = now + SOON
            with suppress(OSError):
                self._found = tuple(suspects(fib_rules()))
        return self._found


def fib_rules() -> Iterator[FibRule]:
    """Give the routing rules of both IP versions."""
    with IPRoute(groups=0) as ip:
        for version, family in FAMILIES.items():
            try:
                found = list(ip.get_rules(family))
            except NetlinkError:  # without that family
                continue
            yield from (_fib_rule(one, version) for one in found)


def _fib_rule(found: Any, version: int) -> FibRule:
    mark, mask = found.get_attr("FRA_FWMARK"), found.get_attr("FRA_FWMASK")
    device = found.get_attr("FRA_IIFNAME") or ""
    return FibRule(
        version,
        found.get_attr("FRA_PRIORITY") or 0,
        ACTIONS.get(found["action"], "nop"),
        mark or 0,
        mask or 0,
        device.decode(errors="surrogateescape") if isinstance(device, bytes) else device,
        _network(found.get_attr("FRA_SRC"), found["src_len"]),
        _network(found.get_attr("FRA_DST"), found["dst_len"]),
        bool(found["flags"] & INVERTED),
    )


def _network(address: str | None, length: int) -> Network | None:
    return ip_network(f"{address}/{length}", strict=False) if address else None

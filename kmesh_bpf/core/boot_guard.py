# SPDX-License-Identifier: Apache-2.0
"""What keeps a node that was managed from sending in clear between its boot and its daemon's first pass, as nft's text.

Neither programs nor policies outlive a boot, and pods may start before the daemon. What does is a file: the addresses
that were managed on other nodes when it was written. Whatever is forwarded to one of them, or from one, is dropped
until the daemon takes the table away; that includes what is not managed, for who will have which address is not known.
"""

from __future__ import annotations

from collections.abc import Iterable

from kmesh_bpf.core.view import Address

TABLE = "kmesh_boot_guard"
COUNTER = "dropped"
PRIORITY = -300
"""Ahead of all who accept packets for good: NF_IP_PRI_RAW, as connection tracking's fast paths come later."""
TYPES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


def installation(remote: Iterable[Address]) -> str:
    """Give a script that installs the guard, in place of a former one, in one transaction."""
    addresses = sorted(set(remote), key=lambda one: (one.version, one))
    own = {version: [str(one) for one in addresses if one.version == version] for version in TYPES}
    sets = "".join(_set(version, texts) for version, texts in own.items())
    rules = "".join(_rules(version) for version, texts in own.items() if texts)
    return (
        "# Written by kmesh-daemon: managed addresses of other nodes, for the next boot (docs/install.md).\n"
        f"{removal()}"
        f"table inet {TABLE} {{\n"
        f"\tcounter {COUNTER} {{\n\t}}\n"
        f"{sets}"
        f"\tchain forward {{\n\t\ttype filter hook forward priority {PRIORITY}; policy accept;\n{rules}\t}}\n"
        "}\n"
    )


def removal() -> str:
    """Give a script that removes the guard, if there."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def _set(version: int, addresses: list[str]) -> str:
    if not addresses:
        return ""
    elements = ",\n\t\t\t".join(addresses)
    return (
        f"\tset remote{version} {{\n\t\ttype {TYPES[version][1]}\n\t\telements = {{\n\t\t\t{elements}\n\t\t}}\n\t}}\n"
    )


def _rules(version: int) -> str:
    protocol = TYPES[version][0]
    return "".join(
        f'\t\t{protocol} {end} @remote{version} counter name "{COUNTER}" drop\n' for end in ("daddr", "saddr")
    )

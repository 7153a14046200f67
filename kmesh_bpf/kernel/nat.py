"""Keeps address masquerading away from packets on their way to encryption, by two tables of nft.

A masquerade rule gives a marked packet the node's address; then no policy selects it any more. An identity source NAT
ahead of it settles the connection's NAT first. Only packets that the route look-up gave an IPsec transformation are
meant: a Service address may stand for something that is no peer's pod, and then masquerading is right. Our own ESP is
meant too: its outer source must stay the address that the peer knows.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf.errors import KernelError, UnsupportedError

TABLE = "kmesh_ipsec"
FAMILIES = ("ip", "ip6")


def _ruleset(family: str) -> str:
    marked = f"meta mark & {contract.MARK_MASK:#x} == {contract.MARK_ENCRYPT:#x}"
    return f"""
table {family} {TABLE} {{
	chain postrouting {{
		type nat hook postrouting priority srcnat - 10; policy accept;
		{marked} rt ipsec exists snat to {family} saddr
		{marked} meta l4proto esp snat to {family} saddr
	}}
}}
"""


def install() -> None:
    """Install the tables, or put them in the place of ours that differ, in one transaction.

    Raises:
        UnsupportedError: nft is missing.
        KernelError: the kernel refused.

    """
    # `table …` before `delete table …`: deleting what is not there would fail the transaction.
    _nft("".join(f"table {family} {TABLE}\ndelete table {family} {TABLE}\n{_ruleset(family)}" for family in FAMILIES))


def remove() -> None:
    """Remove the tables, if there."""
    _nft("".join(f"table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in FAMILIES))


def installed() -> bool:
    """Tell whether both tables are there with the rules we write.

    Raises:
        UnsupportedError: nft is missing.
        KernelError: the kernel did not answer.

    """
    found: dict[str, list[Any]] = {family: [] for family in FAMILIES}
    chains = 0
    for item in json.loads(_run(["nft", "-j", "list", "ruleset"], ""))["nftables"]:
        if (rule := item.get("rule")) and rule["table"] == TABLE and rule["family"] in found:
            found[rule["family"]].append(rule["expr"])
        if (chain := item.get("chain")) and chain["table"] == TABLE and chain.get("hook") == "postrouting":
            chains += 1
    return chains == len(FAMILIES) and all(_shape(rules) == _SHAPE for rules in found.values())


_SHAPE = [("match", "match", "snat")] * 2


def _shape(rules: list[Any]) -> list[tuple[str, ...]]:
    return [tuple(key for expression in rule for key in expression) for rule in rules]


def _nft(script: str) -> None:
    _run(["nft", "-f", "-"], script)


def _run(command: list[str], script: str) -> str:
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnsupportedError("nft", "install Debian's nftables: masquerade rules would undo encryption") from error
    if done.returncode:
        detail = done.stderr.strip().splitlines()
        raise KernelError("nft", f"table {TABLE}", 0, detail[0] if detail else "")
    return done.stdout

"""Keeps address masquerading away from packets on their way to encryption, by two tables of nft.

A masquerade rule gives a marked packet the node's address; then no policy selects it any more. An identity source NAT
ahead of it settles the connection's NAT first. Only packets that the route look-up gave an IPsec transformation are
meant: a Service address may stand for something that is no peer's pod, and then masquerading is right. Our own ESP is
meant too: its outer source must stay the address that the peer knows.

The tables are written and read back in nft's JSON (libnftables-json(5)): its text differs from version to version.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf.errors import DecodeError, KernelError, UnsupportedError

TABLE = "kmesh_ipsec"
FAMILIES = ("ip", "ip6")
CHAIN = "postrouting"
PRIORITY = 90
"""Ten ahead of srcnat (100, NF_IP_PRI_NAT_SRC), where masquerade rules are."""
TIMEOUT = 60
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT})
"""What a kernel without nf_tables, its NAT chains or its route expression answers.

ENOENT among them: the transaction makes the table itself, so what can be missing is a module only.
"""
ERRNO_BY_TEXT = {os.strerror(number): number for number in errno.errorcode}

Json = dict[str, Any]


def install() -> None:
    """Install the tables, or put them in the place of ours that differ, in one transaction.

    Raises:
        UnsupportedError: nft is missing, or the kernel's part of it.
        KernelError: the kernel refused, or lists something else than was written.

    """
    commands: list[Json] = []
    for family in FAMILIES:
        commands += [*_removal(family), {"add": _table(family)}]
        commands += [{"add": item} for item in _contents(family)]
    try:
        _transact("install", commands)
    except KernelError as error:
        if error.errno in UNSUPPORTED:
            remedy = "it needs nf_tables, nft_chain_nat, nft_nat and nft_rt: masquerade rules would undo encryption"
            raise UnsupportedError(f"NAT by nftables ({error.detail})", remedy) from error
        raise
    if not installed():
        # Else each pass would see a difference, and install them again, for ever.
        raise KernelError("install", _target(), errno.EPROTO, "nft lists other rules than were written")


def remove() -> None:
    """Remove the tables, if there.

    Raises:
        UnsupportedError: nft is missing.
        KernelError: the kernel refused.

    """
    _transact("remove", [command for family in FAMILIES for command in _removal(family)])


def installed() -> bool:
    """Tell whether both tables are there and hold what we write, and nothing else.

    False too where nft or the kernel's part of it is missing: :func:`install` says so, and only NAT suffers.

    Raises:
        KernelError: the kernel did not answer.
        DecodeError: nft's answer is not what its manual says.

    """
    try:
        return all(_listed(family) == _contents(family) for family in FAMILIES)
    except UnsupportedError:
        return False


def _contents(family: str) -> list[Json]:
    marked = _match({"&": [{"meta": {"key": "mark"}}, contract.MARK_MASK]}, contract.MARK_ENCRYPT)
    # The route look-up has been done, and for a packet that a policy selects it ends in a transformation.
    transformed = _match({"rt": {"key": "ipsec"}}, True)
    esp = _match({"meta": {"key": "l4proto"}}, socket.IPPROTO_ESP)
    keep_source = {"snat": {"addr": {"payload": {"protocol": family, "field": "saddr"}}}}
    chain = {"type": "nat", "hook": "postrouting", "prio": PRIORITY, "policy": "accept"}
    place = {"family": family, "table": TABLE}
    return [
        {"chain": {**place, "name": CHAIN, **chain}},
        {"rule": {**place, "chain": CHAIN, "expr": [marked, transformed, keep_source]}},
        {"rule": {**place, "chain": CHAIN, "expr": [esp, marked, keep_source]}},
    ]


def _match(left: Json, right: object) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _table(family: str) -> Json:
    return {"table": {"family": family, "name": TABLE}}


def _removal(family: str) -> list[Json]:
    # Deleting what is not there would fail the transaction: hence the addition, which changes nothing if it is.
    return [{"add": _table(family)}, {"delete": _table(family)}]


def _target() -> str:
    return f"nft tables {' and '.join(FAMILIES)} {TABLE}"


def _listed(family: str) -> list[Json] | None:
    """Give the contents of a table in the form that we write them; None: there is none, or cannot be."""
    try:
        text = _nft("list", ["list", "table", family, TABLE])
    except KernelError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    try:
        items: list[Json] = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"nft's listing of table {family} {TABLE} is not what its manual says") from error
    return [_canonical(item) for item in items if "metainfo" not in item and "table" not in item]


def _canonical(item: Json) -> Json:
    """Drop the handle; give the protocol as number, for nft prints its name where /etc/protocols knows it."""
    ((kind, body),) = item.items()
    for expression in body.get("expr", ()):
        match = expression.get("match", {})
        if match.get("right") == "esp":
            match["right"] = socket.IPPROTO_ESP
    return {kind: {key: value for key, value in body.items() if key != "handle"}}


def _transact(operation: str, commands: list[Json]) -> None:
    _nft(operation, ["-f", "-"], json.dumps({"nftables": commands}))


def _nft(operation: str, arguments: list[str], script: str = "") -> str:
    try:
        done = subprocess.run(
            ["nft", "-j", *arguments],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    except FileNotFoundError as error:
        raise UnsupportedError("nft", "install Debian's nftables: masquerade rules would undo encryption") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(operation, _target(), errno.ETIMEDOUT, f"nft took more than {TIMEOUT} s") from error
    if done.returncode:
        message = next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr.strip())
        # nft gives the kernel's errno as text only, at the end of the line.
        number = ERRNO_BY_TEXT.get(message.rpartition(": ")[2].strip(), errno.EIO)
        raise KernelError(operation, _target(), number, message)
    return done.stdout

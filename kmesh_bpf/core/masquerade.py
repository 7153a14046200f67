# SPDX-License-Identifier: Apache-2.0
"""What address masquerading has to do with encryption: two tables of nft keep it away from packets on their way there.

A masquerade rule gives a marked packet the node's address; then no policy selects it any more. An identity source NAT
ahead of it settles the connection's NAT first. Only packets that the route look-up gave an IPsec transformation are
meant: a Service address may stand for something that is no peer's pod, and then masquerading is right. Our own ESP is
meant too: its outer source must stay the address that the peer knows.

And they let out answers. Who asks this node's NodePort from outside, in clear, is masqueraded to a managed pod of
another node, encrypted; what that answers is decrypted here, and goes on to him in clear. Only connection tracking
tells it from what else was decrypted here and must not leave: so such an answer, if no policy selects it, gets the mark
that the guard lets out.

In nft's JSON (libnftables-json(5)), for it is read back too: nft's text differs from version to version.
"""

from __future__ import annotations

import json
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf.core.marks import ALL_BITS, TELLING_BITS, again_mark, encrypt_mark

TABLE = "kmesh_ipsec"
FAMILIES = ("ip", "ip6")
CHAIN, ANSWERS = "postrouting", "answers"
PRIORITY = 90
"""Ten ahead of srcnat (100, NF_IP_PRI_NAT_SRC), where masquerade rules are."""
FORWARD_PRIORITY = 0
"""Of the hook forward: the look-up of policies is over there, and what masquerades has not begun (NF_IP_PRI_FILTER)."""
ESP = 50
"""IP protocol number (RFC 4303 section 2)."""

Json = dict[str, Any]


def installation(mark_mask: int = contract.MARK_MASK) -> str:
    """Give the transaction, nft's JSON, that puts the tables in place of whatever is called like them."""
    commands: list[Json] = []
    for family in FAMILIES:
        commands += [*_removal(family), {"add": _table(family)}]
        commands += [{"add": item} for item in contents(family, mark_mask)]
    return json.dumps({"nftables": commands})


def removal() -> str:
    """Give the transaction, nft's JSON, that removes the tables, if there."""
    return json.dumps({"nftables": [command for family in FAMILIES for command in _removal(family)]})


def contents(family: str, mark_mask: int = contract.MARK_MASK) -> list[Json]:
    """Give the chains and the rules of a family's table, in nft's order and in the form in which it lists them.

    The mark is compared as a whole: what was decrypted and goes on to a third node keeps the masquerade that its
    answers need.
    """
    marked = _match({"&": [{"meta": {"key": "mark"}}, mark_mask]}, encrypt_mark(mark_mask))
    # The route look-up has been done, and for a packet that a policy selects it ends in a transformation.
    transformed = _match({"rt": {"key": "ipsec"}}, True)
    esp = _match({"meta": {"key": "l4proto"}}, ESP)
    keep_source = {"snat": {"addr": {"payload": {"protocol": family, "field": "saddr"}}}}
    chain = {"type": "nat", "hook": "postrouting", "prio": PRIORITY, "policy": "accept"}
    place = {"family": family, "table": TABLE}
    forward = {"type": "filter", "hook": "forward", "prio": FORWARD_PRIORITY, "policy": "accept"}
    again = _match({"&": [{"meta": {"key": "mark"}}, mark_mask]}, again_mark(mark_mask))
    answer = _match({"ct": {"key": "direction"}}, "reply")
    # Else the answer to a pod of this node that is gone meanwhile would follow the default route.
    masqueraded = {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "snat"}}
    plain = _match({"rt": {"key": "ipsec"}}, False)
    neither = {"&": [{"meta": {"key": "mark"}}, ALL_BITS ^ TELLING_BITS]}
    let_out = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": neither}}
    return [
        {"chain": {**place, "name": CHAIN, **chain}},
        {"chain": {**place, "name": ANSWERS, **forward}},
        {"rule": {**place, "chain": CHAIN, "expr": [marked, transformed, keep_source]}},
        {"rule": {**place, "chain": CHAIN, "expr": [esp, marked, keep_source]}},
        {"rule": {**place, "chain": ANSWERS, "expr": [again, answer, masqueraded, plain, let_out]}},
    ]


def _match(left: Json, right: object) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _table(family: str) -> Json:
    return {"table": {"family": family, "name": TABLE}}


def _removal(family: str) -> list[Json]:
    # Deleting what is not there would fail the transaction: hence the addition, which changes nothing if it is.
    return [{"add": _table(family)}, {"delete": _table(family)}]

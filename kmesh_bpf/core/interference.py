# SPDX-License-Identifier: Apache-2.0
"""Rules of others, ahead of XFRM, that make encrypted traffic vanish: in nft's JSON and in iptables-save's text.

Two kinds: a reverse path filter that takes the device into account (what was decrypted came by the uplink, and its
answer may leave by an overlay's device), and a rule that sets the packet's mark: from the connection's, in which our
bits are not, or, of all packets, to a value without them. Only what is done in prerouting counts, for both look-ups of
policies come right after it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf.core.marks import ALL_BITS, TELLING_BITS, decrypted_mark
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import Link, Suspect
from kmesh_bpf.core.view import Address

OVERLAYS = frozenset({"vxlan", "geneve", "gretap", "ipip", "ip6tnl", "sit", "gre", "wireguard", "tun"})
"""Kinds of devices by which the way back to a pod may lead, while what it sent came encrypted by another one."""
OUR_MARKS = (contract.MARK_ENCRYPT, contract.MARK_DECRYPTED, contract.MARK_AGAIN)
FAMILIES = {"ip": {4}, "ip6": {6}}
VERSIONS = {"ipv4": {4}, "ipv6": {6}}
UNDERSTOOD = frozenset({"-i", "-m", "--mark", "--comment", "-j", "--set-xmark"})
"""Options of iptables, with a value each, of rules that set the mark of whatever comes by a device."""
FIRST = "KUBE-"
"""How the names of a proxy's chains begin: thousands, none of which does either of the two."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What Go Kmesh has made on this node: how many SAs and policies, devices with filters, and folders of pins."""

    sas: int = 0
    policies: int = 0
    devices: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()


def judge(
    suspects: Iterable[Suspect], links: Iterable[Link], node_addresses: Iterable[Address], mark_mask: int
) -> Iterator[Problem]:
    """Name the rules that are in the way on this node. ``mark_mask``: the bits of marks that are ours."""
    links, versions = tuple(links), {address.version for address in node_addresses}
    overlays = sorted(link.name for link in links if link.kind in OVERLAYS and link.leads_out)
    for suspect in suspects:
        if versions.isdisjoint(suspect.versions) or not _looks_at_any(suspect, links):
            continue
        lost = suspect.lost & mark_mask
        if suspect.way_out:
            sentence = f"{suspect.where}: {suspect.words}; {suspect.way_out}"
        elif not suspect.lost and overlays:
            sentence = (
                f"{suspect.where}: {suspect.words} drops what was decrypted, for the way back leads by"
                f" {', '.join(overlays)}: loosen it (without iif; --loose), or exempt packets with mark"
                f" {decrypted_mark(mark_mask):#x}/{mark_mask:#x}"
            )
        elif lost:
            sentence = (
                f"{suspect.where}: {suspect.words} takes bits {lost:#x} of our marks away: {_way_out(lost, mark_mask)}"
            )
        else:
            continue
        yield Problem(ProblemKind.INTERFERENCE, sentence)


def _looks_at_any(suspect: Suspect, links: Iterable[Link]) -> bool:
    """Tell whether packets of ours come by a device that a rule looks at: what was decrypted by one that leads out."""
    names = (link.name for link in links if suspect.lost or (link.leads_out and link.kind not in OVERLAYS))
    return not suspect.devices or any(fnmatchcase(name, one) for name in names for one in suspect.devices)


def _way_out(lost: int, mark_mask: int) -> str:
    needed = TELLING_BITS
    if lost & needed:
        return f"have it leave them alone (mask {ALL_BITS ^ mark_mask:#x})"
    return f"start the daemon with --mark-mask={mark_mask & ~lost:#x}, or have it leave them alone"


def suspect_of_go(left: Leftovers) -> tuple[Suspect, ...]:
    """Give what Go Kmesh left as one suspect; pins alone are in nobody's way."""
    if not (left.sas or left.policies or left.devices):
        return ()
    found = [f"{number} {what}" for number, what in ((left.policies, "policies"), (left.sas, "SAs")) if number]
    words = [f"{' and '.join(found)} with reqid 1 in XFRM"] if found else []
    words += [f"filters on {', '.join(left.devices)}"] if left.devices else []
    words += [f"pins in {', '.join(left.pins)}"] if left.pins else []
    commands = ["ip xfrm policy flush; ip xfrm state flush"] if found else []
    commands += [f"tc filter del dev {device} ingress" for device in left.devices]
    return (
        Suspect(
            where="Go Kmesh's IPsec",
            words=f"{', '.join(words)}, ahead of ours",
            versions=frozenset({4, 6}),
            way_out=f"once its daemon has gone from this node (docs/migrating.md): {'; '.join(commands)}",
        ),
    )


def suspects_of_nft(listing: Json, versions: Collection[int] = (4, 6)) -> list[Suspect]:
    """Give the suspects of a chain, as ``nft -j list chain`` tells it. ``versions``: IP versions that get there."""
    found = []
    bases = {item["chain"]["name"] for item in listing.get("nftables", ()) if "hook" in item.get("chain", {})}
    for rule in (item["rule"] for item in listing.get("nftables", ()) if "rule" in item):
        seen = frozenset(FAMILIES.get(rule["family"], {4, 6}) & _versions(rule["expr"]) & set(versions))
        where = f"nft table {rule['family']} {rule['table']}, chain {rule['chain']}, handle {rule['handle']}"
        devices = _devices(rule["expr"])
        if _is_reverse_path_filter(rule["expr"]):
            words = "a reverse path filter (fib saddr . iif oif missing drop)"
            found.append(Suspect(where, words, seen, devices=devices))
        elif lost := _lost(rule["expr"], of_base_chain=rule["chain"] in bases):
            source = (
                "from the connection's (meta mark set ct mark)" if _from_connection(rule["expr"]) else "(meta mark set)"
            )
            words = f"setting the packet's mark {source}"
            found.append(Suspect(where, words, seen, lost, devices))
    return found


def jumps(listing: Json) -> frozenset[str]:
    """Give the chains of the same table that a chain leads on to, a proxy's aside."""
    targets = (
        expression[verb]["target"]
        for item in listing.get("nftables", ())
        for expression in item.get("rule", {}).get("expr", ())
        for verb in ("jump", "goto")
        if verb in expression
    )
    return frozenset(target for target in targets if not target.startswith(FIRST))


def holds_xt(listing: Json) -> bool:
    """Tell whether a chain has rules of iptables that nft does not understand."""
    rules = (item.get("rule", {}) for item in listing.get("nftables", ()))
    return any("xt" in expression for rule in rules for expression in rule.get("expr", ()))


def suspects_of_iptables(text: str, family: str, table: str) -> list[Suspect]:
    """Give the suspects that ``iptables-save -t TABLE`` (``family`` ip or ip6) tells of."""
    rules: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("-A ") and not line.startswith(f"-A {FIRST}"):
            chain, *words = shlex.split(line)[1:]
            rules.setdefault(chain, []).append(words)
    found, waiting, done = [], ["PREROUTING"], set()
    while waiting:
        chain = waiting.pop()
        done.add(chain)
        for words in rules.get(chain, ()):
            target = _after(words, "-j") or _after(words, "-g") or ""
            if target in rules and target not in done:
                waiting.append(target)
            where, said = f"iptables ({family}) table {table}, chain {chain}", " ".join(words)
            seen = frozenset(FAMILIES[family])
            device = _after(words, "-i") if "! -i" not in said else None
            devices = (device.replace("+", "*"),) if device else ()
            if "rpfilter" in words and "--loose" not in words and "--invert" in words and target == "DROP":
                found.append(Suspect(where, said, seen, devices=devices))
            elif (_restores(words) or (chain == "PREROUTING" and _sets_of_all(words))) and (
                lost := _lost_to_iptables(words)
            ):
                found.append(Suspect(where, said, seen, lost, devices))
    return found


def _after(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words[:-1] else None


def _restores(words: list[str]) -> bool:
    """Tell whether a rule sets the packet's mark from the connection's."""
    return _after(words, "-j") == "CONNMARK" and "--restore-mark" in words


def _sets_of_all(words: list[str]) -> bool:
    """Tell whether a rule sets the packet's mark to a value, and asks for nothing but a device and a mark."""
    if _after(words, "-j") != "MARK" or "--set-xmark" not in words:
        return False
    rest = [word for word in words if word != "!"]
    while len(rest) > 1 and rest[0] in UNDERSTOOD and (rest[0] != "-m" or rest[1] in ("mark", "comment")):
        del rest[:2]
    return not rest


def _lost_to_iptables(words: list[str]) -> int:
    if _restores(words):
        masks = _after(words, "--mask")
        changed = int(masks or _after(words, "--nfmask") or hex(ALL_BITS), 0)
        taken = int(masks or _after(words, "--ctmask") or hex(ALL_BITS), 0)
        values: tuple[int, ...] = (0, taken)
    else:
        value, _, mask = (_after(words, "--set-xmark") or "").partition("/")
        changed, values = int(mask or hex(ALL_BITS), 0), (int(value, 0),)
    lost = 0
    for mark in OUR_MARKS:
        if not _misses(words, mark):
            for xored in values:
                lost |= mark ^ (mark & ~changed ^ xored)
    return lost & contract.MARK_MASK


def _misses(words: list[str], mark: int) -> bool:
    """Tell whether a match on the packet's mark keeps a rule off packets with a mark of ours."""
    if "mark" not in words or "--mark" not in words:
        return False
    place = words.index("--mark")
    if "connmark" in words[:place]:
        return False
    value, _, mask = words[place + 1].partition("/")
    meets = mark & int(mask or hex(ALL_BITS), 0) == int(value, 0)
    return meets is (words[place - 1] == "!")


def _versions(expressions: Iterable[Json]) -> set[int]:
    for expression in expressions:
        match = expression.get("match", {})
        if match.get("left") == {"meta": {"key": "nfproto"}} and match.get("op") == "==":
            return VERSIONS.get(str(match["right"]), {4, 6})
    return {4, 6}


def _devices(expressions: Iterable[Json]) -> tuple[str, ...]:
    for expression in expressions:
        match = expression.get("match", {})
        if match.get("left") in ({"meta": {"key": "iifname"}}, {"meta": {"key": "iif"}}) and match.get("op") == "==":
            right = match["right"]
            names = right.get("set", ()) if isinstance(right, dict) else (right,)
            return tuple(name for name in names if isinstance(name, str))
    return ()


def _is_reverse_path_filter(expressions: Iterable[Json]) -> bool:
    missing = False
    for expression in expressions:
        match = expression.get("match", {})
        left = match.get("left")
        fib = left.get("fib", {}) if isinstance(left, dict) else {}
        if match.get("op") == "==" and match.get("right") in (False, 0, "0") and fib.get("result") == "oif":
            missing = missing or {"saddr", "iif"} <= set(fib.get("flags", ()))
    return missing and any("drop" in expression or "reject" in expression for expression in expressions)


def _lost(expressions: Collection[Json], *, of_base_chain: bool) -> int:
    """Give the bits of our marks that a rule changes: by the connection's mark, whichever that is, or for all packets.

    Which packets get to another chain than a base chain is not known here.
    """
    if not _from_connection(expressions) and not (of_base_chain and all(map(_is_of_all, expressions))):
        return 0
    return lost_by(expressions)


def lost_by(expressions: Collection[Json]) -> int:
    """Give the bits of our marks that a rule changes, whichever the connection's mark is."""
    lost = 0
    for mark in OUR_MARKS:
        for connection in (0, ALL_BITS):
            lost |= mark ^ _after_rule(expressions, mark, connection)
    return lost & contract.MARK_MASK


def _from_connection(expressions: Iterable[Json]) -> bool:
    return any("mangle" in one and _mentions(one["mangle"].get("value"), "ct") for one in expressions)


def _is_of_all(expression: Json) -> bool:
    """Tell whether a part of a rule picks no packets but by device, family and mark."""
    if "match" not in expression:
        return "mangle" in expression or "counter" in expression or "comment" in expression
    left, right = expression["match"]["left"], expression["match"]["right"]
    if left in tuple({"meta": {"key": key}} for key in ("iifname", "iif", "nfproto")):
        return True
    return _value(left, {"meta": 0}) is not None and _value(right, {"meta": 0}) is not None


def _after_rule(expressions: Iterable[Json], mark: int, connection: int) -> int:
    """Give the mark that a packet leaves a rule with; what is not understood is taken to match."""
    known = {"meta": mark, "ct": connection}
    for expression in expressions:
        if "match" in expression:
            match = expression["match"]
            left, right = _value(match["left"], known), _value(match["right"], known)
            known_match = left is not None and right is not None and match["op"] in ("==", "!=")
            if known_match and (left == right) is (match["op"] == "!="):
                return known["meta"]
        elif "mangle" in expression and expression["mangle"]["key"] == {"meta": {"key": "mark"}}:
            value = _value(expression["mangle"]["value"], known)
            known["meta"] = value if value is not None else known["meta"]
    return known["meta"]


def _value(expression: object, known: Mapping[str, int]) -> int | None:
    """Give what an expression over the two marks comes to; None: it is about something else."""
    if isinstance(expression, int) and not isinstance(expression, bool):
        return expression
    if not isinstance(expression, dict) or len(expression) != 1:
        return None
    ((operator, operands),) = expression.items()
    if operator in known:
        return known[operator] if operands.get("key") == "mark" else None
    if operator not in ("&", "|", "^") or not isinstance(operands, list):
        return None
    values = [_value(operand, known) for operand in operands]
    result: int | None = values[0]
    for value in values[1:]:
        if result is None or value is None:
            return None
        result = result & value if operator == "&" else result | value if operator == "|" else result ^ value
    return result


def _mentions(expression: object, name: str) -> bool:
    if isinstance(expression, dict):
        return name in expression or any(_mentions(one, name) for one in expression.values())
    return isinstance(expression, list) and any(_mentions(one, name) for one in expression)

# SPDX-License-Identifier: Apache-2.0
"""Group 3: somebody removes or alters what is in the kernel."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.faults.meter import readiness
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.lab.kernels import TCX
from tests.lab.network import run

NEW_KEYS = (
    "an SA that is gone takes its sequence number with it, and a number must not be used twice with a key: the node "
    "needs new keys, and peers cannot know of them before they have read of it"
)
GONE = "what the kernel has lost it cannot apply: packets are dropped, by our guard or by a policy, until it is there again"


def boot_id(moment: Moment, node: str) -> str:
    info = moment.lab.cluster.info(node)
    return str(info["spec"]["bootID"]) if info else ""


def policies(node: str) -> int:
    return run(f"ip -n {node} xfrm policy").count("dir ")


def states_flushed(moment: Moment) -> None:
    was = boot_id(moment, "n1")
    run("ip -n n1 xfrm state flush")
    moment.happened()
    moment.until("a new incarnation", lambda: boot_id(moment, "n1") not in ("", was))


def policies_flushed(moment: Moment) -> None:
    before = policies("n1")
    run("ip -n n1 xfrm policy flush")
    moment.happened()
    moment.until("all policies are back", lambda: policies("n1") >= before)


def sa_deleted(source: str, target: str) -> None:
    """Delete on n1 the SAs of one direction."""
    run(f"ip -n n1 xfrm state deleteall src {source} dst {target}")


def outbound_sa_deleted(moment: Moment) -> None:
    sa_deleted("10.10.0.1", "10.10.0.2")
    moment.happened()
    moment.until("there is one again", lambda: bool(run("ip -n n1 xfrm state list src 10.10.0.1 dst 10.10.0.2")))


def inbound_sa_deleted(moment: Moment) -> None:
    sa_deleted("10.10.0.2", "10.10.0.1")
    moment.happened()
    moment.until("there is one again", lambda: bool(run("ip -n n1 xfrm state list src 10.10.0.2 dst 10.10.0.1")))


def inbound_sa_altered(moment: Moment) -> None:
    """Let n1's SA from n2 lay another mark on what it has decrypted; its key and its window stay (xfrm_state_update).

    By its marks it is none of ours then, and not ours to remove: who altered it takes it away.
    """
    state = "src 10.10.0.2 dst 10.10.0.1"

    def marks() -> list[str]:
        return re.findall(r"output-mark (\S+)", run(f"ip -n n1 xfrm state list {state}"))

    found = run(f"ip -n n1 xfrm state list {state}")
    (ours,) = {*marks()}
    before = len(marks())
    spi, reqid = re.findall(r"spi (0x\w+) reqid (\d+)", found)[-1]
    mark, mask = re.findall(r"\bmark (0x\w+)/(0x\w+)", found.replace("output-mark", ""))[-1]
    key = "0x" + "00" * 36  # not taken over
    identity = f"{state} proto esp spi {spi} mark {mark} mask {mask}"
    run(
        f"ip -n n1 xfrm state update {identity} reqid {reqid} mode tunnel aead 'rfc4106(gcm(aes))' {key} 128 output-mark 0x7"
    )
    moment.happened()
    moment.undo.append(lambda: run(f"ip -n n1 xfrm state delete {identity}"))
    if marks().count(ours) == before:
        raise RuntimeError("the SA is as it was")
    moment.until("there are as many as before", lambda: marks().count(ours) >= before)


@dataclass(frozen=True)
class Policy:
    """One of a node's policies, as ip writes it and wants it: its selector with direction and mark, and its template."""

    selector: str
    priority: str
    template: str


def policy(moment: Moment) -> Policy:
    """Give n1's OUT policy for what pods send to p2a."""
    address = moment.lab.pod("p2a").address(4)
    # A policy is a line with its selector, then indented ones with direction, mark, template.
    for text in re.split(r"\n(?=src )", run("ip -n n1 xfrm policy")):
        selector = text.partition("\n")[0].strip()
        if f"dst {address}/32" in selector and "src 10.10." not in selector and "dir out" in text:
            mark = re.search(r"mark (0x\w+)/(0x\w+)", text)
            template = re.search(r"tmpl (src \S+ dst \S+)\s+proto esp (?:spi \S+ )?(reqid \S+)", text)
            priority = re.search(r"priority (\d+)", text)
            if template and priority:
                wanted = f"{selector} dir out" + (f" mark {mark[1]} mask {mark[2]}" if mark else "")
                return Policy(wanted, priority[1], f"{template[1]} proto esp {template[2]} mode tunnel")
    raise RuntimeError(f"n1 has no OUT policy for pods to {address}")


def policy_deleted(moment: Moment) -> None:
    before, one = policies("n1"), policy(moment)
    run(f"ip -n n1 xfrm policy delete {one.selector}")
    moment.happened()
    moment.until("it is back", lambda: policies("n1") >= before)


def policy_altered(moment: Moment) -> None:
    """Lead to n3 what is for n2; it stays recognizable as ours."""
    one = policy(moment)
    elsewhere = one.template.replace("dst 10.10.0.2", "dst 10.10.0.3")
    run(f"ip -n n1 xfrm policy update {one.selector} priority {one.priority} tmpl {elsewhere}")
    moment.happened()
    moment.until("it is as it was", lambda: policy(moment) == one)


def policy_taken(moment: Moment) -> None:
    """Somebody else's policy in the place of ours is not ours to remove: the node says so, and who did it takes it back."""
    before, one = policies("n1"), policy(moment)
    run(f"ip -n n1 xfrm policy update {one.selector} action block")
    moment.meanwhile("n1 says so", lambda: any("not ours" in reason for reason in readiness("n1")))
    run(f"ip -n n1 xfrm policy delete {one.selector}")
    moment.happened()
    moment.until("ours is back", lambda: policies("n1") >= before and policy(moment) == one)


def pins_removed(moment: Moment) -> None:
    links = moment.daemon("n1").pin_root / "links"
    before = len(list(links.iterdir()))
    for pin in links.iterdir():
        pin.unlink()
    moment.happened()
    moment.until("they are pinned again", lambda: len(list(links.iterdir())) >= before)


def pin_root_removed(moment: Moment) -> None:
    root = moment.daemon("n1").pin_root
    before = len(list(root.rglob("*")))
    shutil.rmtree(root)
    moment.happened()
    moment.until("all is pinned again", lambda: len(list(root.rglob("*"))) >= before)


def filters(direction: str) -> str:
    return within("n2", f"tc filter show dev eth0 {direction}")


def filter_removed(moment: Moment) -> None:
    within("n2", "tc filter del dev eth0 ingress")
    moment.happened()
    moment.until("it is back", lambda: "bpf" in filters("ingress"))


def qdisc_removed(moment: Moment) -> None:
    within("n2", "tc qdisc del dev eth0 clsact")
    moment.happened()
    moment.until("both filters are back", lambda: "bpf" in filters("ingress") and "bpf" in filters("egress"))


def tables(node: str) -> int:
    return within(node, "nft list tables").count("kmesh_ipsec")


def rules_flushed(moment: Moment) -> None:
    before = tables("n1")
    within("n1", "nft flush ruleset")
    moment.happened()
    moment.until("our tables are back", lambda: tables("n1") >= before)


def connections_flushed(moment: Moment) -> None:
    within("n1", "conntrack -F 2>&1")
    moment.happened()


def entries(name: str, part: str) -> Callable[[], list[dict[str, Any]]]:
    """Give what reads n1's entries of a map whose key holds an address."""
    wanted = ip_address(part).packed

    def read() -> list[dict[str, Any]]:
        pin = next(Path("/sys/fs/bpf/kmesh-n1").glob(f"maps-*/{name}"))
        found = json.loads(run(f"bpftool -j map dump pinned {pin}"))
        return [one for one in found if wanted in bytes(int(byte, 16) for byte in one["key"])]

    return read


def entry_altered(name: str, part: str) -> Callable[[Moment], None]:
    """Write zeros over what a map of n1's says of an address."""

    def act(moment: Moment) -> None:
        read = entries(name, part)
        before = read()
        pin = next(moment.daemon("n1").pin_root.glob(f"maps-*/{name}"))
        for one in before:
            key, value = (" ".join(byte[2:] for byte in one[which]) for which in ("key", "value"))
            run(f"bpftool map update pinned {pin} key hex {key} value hex {re.sub('[0-9a-f]', '0', value)}")
        if not before or read() == before:
            raise RuntimeError(f"{name} has no entry of {part}, or it is as it was")
        moment.happened()
        moment.until("it is as it was", lambda: read() == before)

    return act


def entry_deleted(name: str, part: str) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        read = entries(name, part)
        before = read()
        pin = next(moment.daemon("n1").pin_root.glob(f"maps-*/{name}"))
        for one in before:
            run(f"bpftool map delete pinned {pin} key hex {' '.join(byte[2:] for byte in one['key'])}")
        if not before:
            raise RuntimeError(f"{name} has no entry of {part}")
        moment.happened()
        moment.until("it is back", lambda: len(read()) >= len(before))

    return act


LOST_SIGHT = Excuse(
    "what a map does not tell a program cannot know, and the policy that selects the pod waits for its mark",
    ("n1",),
    clear="until the next look, twice a second, the pod is nobody's to n1's programs: docs/install.md",
)
ROWS = (
    Row("states-flushed", 3, "ip xfrm state flush on n1", states_flushed, Excuse(NEW_KEYS, ("n1",)), quick=True),
    Row("policies-flushed", 3, "ip xfrm policy flush on n1", policies_flushed, Excuse(GONE, ("n1",)), quick=True),
    Row("sa-out-deleted", 3, "n1's SA to n2 is deleted", outbound_sa_deleted, Excuse(NEW_KEYS, ("n1",))),
    Row("sa-in-deleted", 3, "n1's SA from n2 is deleted", inbound_sa_deleted, Excuse(NEW_KEYS, ("n1",))),
    Row(
        "sa-altered",
        3,
        "n1's SA from n2 is altered: it lays another mark on what it has decrypted",
        inbound_sa_altered,
        Excuse("what bears no mark of ours after decryption is no pod's, and dropped; " + NEW_KEYS, ("n1",)),
    ),
    Row("policy-deleted", 3, "n1's policy to pod p2a is deleted", policy_deleted, Excuse(GONE, ("n1",))),
    Row(
        "policy-altered",
        3,
        "n1's policy for pod p2a is altered: it leads to another node",
        policy_altered,
        Excuse("what goes to a node that has no such pod is lost there", ("n1",)),
    ),
    Row(
        "policy-taken",
        3,
        "n1's policy for pod p2a is made somebody else's, which blocks, until n1 says so; then it is deleted",
        policy_taken,
        Excuse("a policy that blocks is not ours to remove: the node names it", ("n1",)),
    ),
    Row("pins-removed", 3, "the pins of n1's links are removed", pins_removed, since=TCX),
    Row("pin-root-removed", 3, "n1's whole pin root is removed", pin_root_removed),
    Row(
        "filter-removed",
        3,
        "n2's filter at its uplink's ingress is removed (clsact)",
        filter_removed,
        Excuse(GONE, ("n2",)),
    ),
    Row("qdisc-removed", 3, "n2's clsact qdisc is removed from its uplink", qdisc_removed, Excuse(GONE, ("n2",))),
    Row("rules-flushed", 3, "nft flush ruleset on n1", rules_flushed),
    Row("connections-flushed", 3, "conntrack -F on n1", connections_flushed),
    Row(
        "pod-entry-deleted",
        3,
        "the entry of pod p2a is taken out of n1's pod map",
        entry_deleted("kmesh_pods4", "10.244.2.10"),
        LOST_SIGHT,
    ),
    Row(
        "pod-entry-altered",
        3,
        "zeros are written over the entry of pod p2a in n1's pod map",
        entry_altered("kmesh_pods4", "10.244.2.10"),
        LOST_SIGHT,
    ),
    Row(
        "peer-entry-deleted",
        3,
        "the entry of n2 is taken out of n1's peer map",
        entry_deleted("kmesh_peers4", "10.10.0.2"),
        Excuse(
            "what comes from an address of which no entry tells is nobody's: its SA is found by the entry's mark",
            ("n1",),
        ),
    ),
)

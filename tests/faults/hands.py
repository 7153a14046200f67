"""Group 3: somebody removes or alters what is in the kernel."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass

from tests.faults.meter import readiness
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.lab.cluster import node_manifest
from tests.lab.kernels import TCX
from tests.lab.network import WIRE, run

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


def up_again(moment: Moment, device: str) -> None:
    """Do as whatever configures a node's network does: IPv6 addresses and routes go with a link that is down."""
    node = moment.lab.network.nodes[0]
    run(f"ip -n n1 link set {device} up; ip -n n1 addr replace {node.addresses[1]}/64 dev {device} nodad")
    moment.lab.network.route_between_nodes()


def uplink_down_up(moment: Moment) -> None:
    run("ip -n n1 link set eth0 down")
    time.sleep(2)
    up_again(moment, "eth0")
    moment.happened()


def uplink_renamed(moment: Moment) -> None:
    def rename(old: str, new: str) -> None:
        run(f"ip -n n1 link set {old} down; ip -n n1 link set {old} name {new}")
        up_again(moment, new)
        moment.happened()

    rename("eth0", "up0")
    time.sleep(3)
    rename("up0", "eth0")


def second_uplink(moment: Moment) -> None:
    run(
        f"ip -n {WIRE} link add w1 type veth peer name eth1 netns n1; ip -n {WIRE} link set w1 master br0;"
        f"ip -n {WIRE} link set w1 up; ip -n n1 link set eth1 up; ip -n n1 addr add 192.168.77.1/24 dev eth1"
    )
    moment.undo.append(lambda: run(f"ip -n {WIRE} link del w1"))
    moment.happened()
    moment.until("it is guarded", lambda: "dev eth1 egress" in moment.daemon("n1").text())


def readdressed(moment: Moment) -> None:
    """Give a node another IPv4 address, as its Node object tells too; afterwards it gets its own back."""
    node = moment.lab.network.nodes[0]
    first, other = node.addresses[0], "10.10.0.101"
    within("n1", "sysctl -qw net.ipv4.conf.all.promote_secondaries=1")

    def announced() -> list[str]:
        info = moment.lab.cluster.info("n1")
        return list(info["spec"]["addresses"]) if info else []

    def move(old: str, new: str) -> None:
        run(f"ip -n n1 addr add {new}/24 dev eth0")
        for peer in ("n2", "n3"):
            run(f"ip -n {peer} route replace {node.pod_cidrs[0]} via {new}")
        manifest = node_manifest(node)
        manifest["status"]["addresses"][0]["address"] = new
        moment.lab.cluster.apply("node-n1", manifest)
        run(f"ip -n n1 addr del {old}/24 dev eth0")
        moment.happened()
        moment.until("it is announced", lambda: new in announced())

    move(first, other)
    time.sleep(5)
    move(other, first)


def pod_device_replaced(moment: Moment) -> None:
    pod = moment.lab.pod("p1a")
    run("ip -n n1 link del vp1a")
    moment.lab.network.plug(pod)
    moment.happened()


ROWS = (
    Row("states-flushed", 3, "ip xfrm state flush on n1", states_flushed, Excuse(NEW_KEYS, ("n1",)), quick=True),
    Row("policies-flushed", 3, "ip xfrm policy flush on n1", policies_flushed, Excuse(GONE, ("n1",)), quick=True),
    Row("sa-out-deleted", 3, "n1's SA to n2 is deleted", outbound_sa_deleted, Excuse(NEW_KEYS, ("n1",))),
    Row("sa-in-deleted", 3, "n1's SA from n2 is deleted", inbound_sa_deleted, Excuse(NEW_KEYS, ("n1",))),
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
        "uplink-down-up",
        3,
        "n1's uplink is down for two seconds",
        uplink_down_up,
        Excuse("a device that is down carries nothing", ("n1",)),
    ),
    Row(
        "uplink-renamed",
        3,
        "n1's uplink is renamed, and back: it is down meanwhile",
        uplink_renamed,
        Excuse("a device that is down carries nothing", ("n1",)),
    ),
    Row("second-uplink", 3, "n1 gets a second device on the wire", second_uplink),
    Row(
        "readdressed",
        3,
        "n1's IPv4 address and its Node object's become another one, and back",
        readdressed,
        Excuse("an SA is between two addresses, and peers must read of the new one; " + NEW_KEYS, ("n1",)),
    ),
    Row(
        "pod-device-replaced",
        3,
        "the device of pod p1a is deleted and made anew",
        pod_device_replaced,
        Excuse("without a device a pod is reached by nothing", ("n1",)),
    ),
)

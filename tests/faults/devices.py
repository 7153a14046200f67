# SPDX-License-Identifier: Apache-2.0
"""Group 3: a node's devices and addresses come, go and change."""

from __future__ import annotations

import time

from tests.faults.hands import NEW_KEYS
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.lab.cluster import node_manifest
from tests.lab.network import WIRE, run


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


def under_bridge(moment: Moment) -> None:
    """Make the uplink a port of a bridge that gets its addresses, as hypervisors and Open vSwitch hosts do; and back."""
    node = moment.lab.network.nodes[0]
    v4, v6 = node.addresses

    def addressed(device: str, other: str) -> None:
        run(f"ip -n n1 addr del {v4}/24 dev {other}; ip -n n1 addr del {v6}/64 dev {other}")
        run(f"ip -n n1 addr add {v4}/24 dev {device}; ip -n n1 addr add {v6}/64 dev {device} nodad")
        moment.lab.network.route_between_nodes()
        moment.happened()

    mac = run("ip netns exec n1 cat /sys/class/net/eth0/address").strip()
    run(f"ip -n n1 link add br-ex address {mac} type bridge mcast_snooping 0; ip -n n1 link set br-ex up")
    moment.undo.append(lambda: run("ip -n n1 link del br-ex 2>/dev/null || :"))
    run("ip -n n1 link set eth0 master br-ex")
    addressed("br-ex", "eth0")
    moment.until("it is guarded", lambda: "dev br-ex egress" in moment.daemon("n1").text())
    time.sleep(3)
    run("ip -n n1 link set eth0 nomaster")
    addressed("eth0", "br-ex")


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
    Row(
        "uplink-under-bridge",
        3,
        "n1's uplink becomes a port of a bridge, which takes its addresses over; and back",
        under_bridge,
        Excuse("an address that no device has receives nothing", ("n1",)),
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

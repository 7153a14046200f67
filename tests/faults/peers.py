# SPDX-License-Identifier: Apache-2.0
"""Group 4: peers reboot, lose their objects, or say what is not so."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults.hands import NEW_KEYS, boot_id
from tests.faults.moment import Moment
from tests.faults.rows import Excuse, Row
from tests.lab.cluster import node_manifest
from tests.lab.network import Node

LASTS = 4.0
"""Seconds that a claim stands."""
HEIR = "m2"
"""Who has n2's addresses when that is gone."""


def rebooted(noticed: bool) -> Callable[[Moment], None]:
    """Take a node's namespace away with all that is in it, and what its daemon has pinned; its disk stays."""

    def act(moment: Moment) -> None:
        network, node, daemon = moment.lab.network, moment.lab.network.nodes[0], moment.daemon("n1")
        was = boot_id(moment, "n1")
        daemon.stop(signal.SIGKILL)
        # In this order: what is pinned works until the last device is gone, as in a boot, where all goes at once.
        network.reboot(node)
        shutil.rmtree(daemon.pin_root)
        guarded = daemon.boot_guard()
        if guarded.returncode:
            raise RuntimeError(guarded.stderr)
        for name in ("p1a", "p1b"):
            network.plug(moment.lab.pod(name))
        network.route_between_nodes()
        if noticed:
            manifest = node_manifest(node)
            manifest["status"]["nodeInfo"]["bootID"] = (
                f"b007{time.monotonic_ns() % 10000:04d}-0000-4000-8000-000000000001"
            )
            moment.lab.cluster.apply("node-n1", manifest)
        moment.restart("n1")
        moment.happened()
        moment.until("it has announced itself anew", lambda: boot_id(moment, "n1") not in ("", was))

    return act


def taken_over(moment: Moment) -> None:
    """Have n2's machine gone for good, its Node deleted, its KmeshNodeInfo left behind; another one gets its addresses and its pods."""
    lab, node = moment.lab, moment.lab.network.nodes[1]

    def back() -> None:
        lab.cluster.withdraw(HEIR)
        lab.cluster.node(node)
        installed(moment, node, node.name)
        lab.cluster.remove(f"node-{HEIR}")
        lab.wait_spi(lab.cluster.spi("n1"))

    moment.undo.append(back)
    lab.cluster.delete_node(node.name)
    manifest = node_manifest(node)
    manifest["metadata"]["name"] = HEIR
    manifest["status"]["nodeInfo"]["bootID"] = f"b007{time.monotonic_ns() % 10000:04d}-0000-4000-8000-000000000002"
    lab.cluster.apply(f"node-{HEIR}", manifest)
    installed(moment, node, HEIR)
    moment.happened()
    moment.until("it is announced", lambda: boot_id(moment, HEIR) != "")


def installed(moment: Moment, node: Node, name: str) -> None:
    """Put a machine that knows nothing in the place of a node's, under a name; it runs the node's pods."""
    network, daemon = moment.lab.network, moment.daemon(node.name)
    daemon.stop(signal.SIGKILL)
    network.reboot(node)
    for folder in (daemon.pin_root, daemon.state_dir):
        shutil.rmtree(folder, ignore_errors=True)
    for pod in [one for one in network.pods.values() if one.node == node.name]:
        network.plug(pod)
        moment.lab.cluster.pod(pod, nodeName=name)
    network.route_between_nodes()
    daemon.ahead = ("env", f"NODE_NAME={name}")
    try:
        moment.restart(node.name)
    finally:
        daemon.ahead = ()


def announcement_deleted(moment: Moment) -> None:
    was = boot_id(moment, "n2")
    moment.lab.cluster.withdraw("n2")
    moment.happened()
    moment.until("n2 announces itself anew", lambda: boot_id(moment, "n2") not in ("", was))


def node_deleted(moment: Moment) -> None:
    moment.lab.cluster.delete_node("n3")
    time.sleep(LASTS)
    moment.lab.cluster.node(moment.lab.network.nodes[2])
    moment.happened()


@contextmanager
def announced(moment: Moment, name: str, addresses: list[str], cidrs: tuple[str, ...] = ()) -> Iterator[None]:
    """Have a KmeshNodeInfo that no daemon of the lab has written."""
    metadata = {"name": name, "namespace": "kmesh-system"}
    spec = {"spi": moment.lab.cluster.spi("n1"), "addresses": addresses, "bootID": "0" * 36, "podCIDRS": list(cidrs)}
    kind = {"apiVersion": "kmesh.net/v1alpha1", "kind": "KmeshNodeInfo"}
    moment.lab.cluster.publish({**kind, "metadata": metadata, "spec": spec})
    try:
        yield
    finally:
        moment.lab.cluster.withdraw(name)


def address_claimed(moment: Moment) -> None:
    """By a node whose Node object has it too, and whose name sorts first."""
    manifest = node_manifest(Node(9))
    manifest["metadata"]["name"] = "a-liar"
    addresses = ["10.10.0.9", *moment.lab.network.nodes[1].addresses]
    manifest["status"]["addresses"] = [{"type": "InternalIP", "address": one} for one in addresses]
    moment.undo.append(lambda: moment.lab.cluster.remove("node-liar"))
    moment.lab.cluster.apply("node-liar", manifest)
    with announced(moment, "a-liar", addresses):
        moment.happened()
        time.sleep(LASTS)
    moment.happened()


def cidrs_overlap(moment: Moment) -> None:
    """A node that is none of ours announces the pod CIDRs of n2, and so does its Node object."""
    theirs = moment.lab.network.nodes[1].pod_cidrs
    manifest = node_manifest(Node(9))
    manifest["spec"] = {"podCIDR": theirs[0], "podCIDRs": list(theirs)}
    moment.undo.append(lambda: moment.lab.cluster.remove("node-n9"))
    moment.lab.cluster.apply("node-n9", manifest)
    with announced(moment, "n9", ["10.10.0.9"], theirs):
        moment.happened()
        time.sleep(LASTS)
    moment.happened()


DOWN = Excuse("a node that is down carries nothing; then: " + NEW_KEYS, ("n1",))
ROWS = (
    Row(
        "peer-reboots",
        4,
        "n1 reboots: daemon killed, namespace and pins gone, another boot id in its Node",
        rebooted(True),
        DOWN,
    ),
    Row(
        "peer-reboots-unnoticed",
        4,
        "n1 reboots, and its Node object has the boot id that it had",
        rebooted(False),
        DOWN,
    ),
    Row(
        "address-taken-over",
        4,
        f"n2's machine is gone for good, its Node too; a new one, {HEIR}, gets its addresses and pods, n2's KmeshNodeInfo stays behind",
        taken_over,
        Excuse(DOWN.why, ("n2",)),
        seconds=300,
    ),
    Row(
        "announcement-deleted",
        4,
        "n2's KmeshNodeInfo is deleted",
        announcement_deleted,
        Excuse("peers that forgot a node cannot know that it is the same one: it takes new keys; " + NEW_KEYS, ("n2",)),
    ),
    Row("node-deleted", 4, f"n3's Node object is deleted, and back {LASTS:.0f} s later", node_deleted),
    Row(
        "address-claimed",
        4,
        f"another node claims n2's addresses for {LASTS:.0f} s, its Node object too",
        address_claimed,
    ),
    Row("cidrs-overlap", 4, f"another node has n2's pod CIDRs for {LASTS:.0f} s", cidrs_overlap),
)

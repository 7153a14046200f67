# SPDX-License-Identifier: Apache-2.0
"""Group 1: the key is replaced."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import yaml

from tests.faults.moment import SECONDS, Moment
from tests.faults.rows import ALL, Excuse, Row
from tests.lab.network import run, sending
from tests.lab.traffic import PORT


def newest(moment: Moment, nodes: tuple[str, ...] = ALL) -> int:
    return max(moment.lab.cluster.spi(node) for node in nodes)


def create(moment: Moment) -> int:
    """Replace the key; give its SPI."""
    done = moment.lab.cluster.kmeshctl("secret", "create")
    if done.returncode:
        raise RuntimeError(done.stderr)
    moment.happened()
    return int(done.stdout.split("SPI ")[1].split(",")[0])


def sent_with(moment: Moment, spi: int, nodes: tuple[str, ...] = ALL) -> None:
    """Wait until nodes hold nothing older to send with: that, too, is part of a replacement's own course."""
    wanted = f"0x{spi:08x}"
    for node in nodes:
        moment.meanwhile(
            f"{node} has an SA of SPI {spi} to send with",
            lambda one=node: wanted in sending(one, moment.lab.network),  # type: ignore[misc]
        )


def replaced(moment: Moment) -> None:
    spi = create(moment)
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)


def twice(moment: Moment) -> None:
    create(moment)
    spi = create(moment)
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)


def while_down(moment: Moment) -> None:
    moment.daemon("n3").stop()
    spi = create(moment)
    moment.meanwhile("n1 and n2 announce it", lambda: newest(moment, ("n1",)) == newest(moment, ("n2",)) == spi)
    moment.restart("n3")
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)


def while_off(moment: Moment) -> None:
    """A node that is gone, network and all, when the key is replaced, and comes back with what it had."""
    moment.daemon("n3").stop(signal.SIGKILL)
    run("ip -n n3 link set eth0 down")
    spi = create(moment)
    moment.meanwhile("n1 and n2 announce it", lambda: newest(moment, ("n1",)) == newest(moment, ("n2",)) == spi)
    node = moment.lab.network.nodes[2]
    run(f"ip -n n3 link set eth0 up; ip -n n3 addr replace {node.addresses[1]}/64 dev eth0 nodad")
    moment.lab.network.route_between_nodes()
    moment.happened()
    moment.restart("n3")
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)


def while_joining(moment: Moment) -> None:
    """The key is replaced when a fourth node's daemon has read the one before and has not announced anything yet."""
    lab, before = moment.lab, newest(moment)
    with ThreadPoolExecutor() as pool:
        joined = pool.submit(lab.join)
        moment.meanwhile(
            "n4 has taken the key", lambda: f"key with SPI {before} taken" in _log(moment, "n4"), 2 * SECONDS
        )
        spi = create(moment)
        node = joined.result()
    moment.undo.append(lambda: lab.leave(node))
    lab.wait_spi(spi)
    sent_with(moment, spi)
    pod = lab.add_pod("p4a", node.index, 10)
    moment.undo.append(lambda: lab.delete_pod("p4a"))
    lab.wait_managed(pod.address(4))
    moment.meanwhile("its device has its program", lambda: "dev vp4a ingress" in _log(moment, "n4"))
    moment.meanwhile("n1 sends to it", lambda: "src 10.10.0.1 dst 10.10.0.4" in run("ip -n n1 xfrm policy"))
    time.sleep(1)
    p1a = lab.pod("p1a")
    with moment.asking((p1a, "n4", pod.address(4), PORT), (pod, "n1", p1a.address(6), PORT)):
        time.sleep(3)


def _log(moment: Moment, node: str) -> str:
    return moment.daemon(node).text() if node in moment.lab.daemons else ""


def by_upstream(moment: Moment) -> None:
    """As upstream's kmeshctl writes it: one key, and nothing of those before it."""
    path, spi = moment.lab.cluster.folder / "secret-kmesh-ipsec.yaml", newest(moment) + 1
    secret = yaml.safe_load(path.read_text())
    key = base64.b64encode(os.urandom(36)).decode()
    entry = {"spi": spi, "aeadKeyName": "rfc4106(gcm(aes))", "aeadKey": key, "length": 128}
    secret["data"] = {"ipSec": base64.b64encode(json.dumps(entry).encode()).decode()}
    moment.lab.cluster.apply("secret-kmesh-ipsec", secret)
    moment.happened()
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)


def killed_after(line: str) -> Row:
    """Kill a daemon with -9 as soon as its log says that it has taken a step of a replacement."""

    def act(moment: Moment) -> None:
        daemon, spi = moment.daemon("n2"), newest(moment) + 1
        before, wanted = len(daemon.text()), line.format(spi=spi, hex=f"{spi:#010x}", old=f"{spi - 1:#010x}")
        with ThreadPoolExecutor() as pool:
            # The program that stores the key ends when the daemon is long past what it is to be killed at.
            stored = pool.submit(create, moment)
            until = time.monotonic() + SECONDS
            while wanted not in daemon.text()[before:] and time.monotonic() < until:
                time.sleep(0.005)
            seen = wanted in daemon.text()[before:]
            daemon.stop(signal.SIGKILL)
            if not seen:
                raise RuntimeError(f"n2 did not say {wanted!r}")
            if stored.result() != spi:
                raise RuntimeError(f"the key has SPI {stored.result()}, and {spi} was waited for")
        moment.happened()
        moment.restart("n2")
        moment.lab.wait_spi(spi)
        sent_with(moment, spi)

    name, what = STEPS[line]
    return Row(name, 1, f"n2's daemon is killed (-9) in the middle of a replacement, {what}; then started", act)


STEPS = {
    "key with SPI {spi} taken": ("key-killed-taken", "when it has read the new key"),
    "spi {hex} ": ("key-killed-installed", "when it has made the first SA of the new key"),
    "announced: SPI {spi}": ("key-killed-announced", "when it has announced the new SPI"),
    "state add src 10.10.0.2 dst 10.10.0.1 proto esp spi {hex} ": (
        "key-killed-sending",
        "when it has made its SA to send to n1 with the new key",
    ),
    "state delete src 10.10.0.2 dst 10.10.0.1 proto esp spi {old}": (
        "key-killed-rested",
        "when it has removed its SA to send to n1 with the key before",
    ),
}
ROWS = (
    Row("key-replaced", 1, "kmeshctl secret create", replaced, quick=True),
    Row("key-twice", 1, "kmeshctl secret create, twice in a row", twice),
    Row("key-node-down", 1, "the key is replaced while n3's daemon is stopped; then that one is started", while_down),
    Row(
        "key-node-off",
        1,
        "the key is replaced while n3 is off the network and has no daemon; then it comes back",
        while_off,
        Excuse("a node that is down carries nothing", ("n3",)),
    ),
    Row(
        "key-node-joining",
        1,
        "a fourth node joins; its daemon has just read the key when that is replaced",
        while_joining,
    ),
    Row("key-upstream", 1, "the Secret is written as upstream's tool does, without the key before", by_upstream),
    *(killed_after(line) for line in STEPS),
)

# SPDX-License-Identifier: Apache-2.0
"""Group 6: other people's IPsec: a strongSwan tunnel on the nodes' own addresses, an SA with our SPI, a Go-like peer."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

from tests.faults.keys import newest
from tests.faults.moment import SECONDS, Moment
from tests.faults.packages import CHARON, beside
from tests.faults.rows import Excuse, Row
from tests.lab.by_hand import ByHand
from tests.lab.network import Pod, run
from tests.lab.traffic import PORT, Echo

LASTS = 6.0
"""Seconds that something stands."""
SETTINGS = """charon-systemd {{
  load = random nonce openssl pem kdf hmac sha1 sha2 aes gcm kernel-netlink socket-default vici updown
  plugins {{ vici {{ socket = unix://{work}/vici }} }}
  filelog {{ log {{ path = {work}/log
    default = 1 }} }}
}}
swanctl {{ load = random nonce openssl pem }}
"""
CONNECTION = """connections {{ lab {{
  version = 2
  local_addrs = {here}
  remote_addrs = {there}
  proposals = aes128gcm16-prfsha256-x25519
  local {{ auth = psk
    id = {here} }}
  remote {{ auth = psk
    id = {there} }}
  children {{
    nets {{ local_ts = {ours}
      remote_ts = {theirs}
      esp_proposals = aes128gcm16 }}
    hosts {{ mode = transport
      local_ts = {here}/32[tcp/9999]
      remote_ts = {there}/32[tcp/9999]
      esp_proposals = aes128gcm16 }}
  }}
}} }}
secrets {{ ike-lab {{ secret = "of this lab only" }} }}
"""


class Charon:
    """A node's IKE daemon, with a tunnel to another one's for a subnet of its own."""

    def __init__(self, number: int, peer: int) -> None:
        self.node, self.work = f"n{number}", Path(tempfile.mkdtemp(prefix="kmesh-charon-"))
        self.end = Pod(self.node, self.node, (ip_address(f"192.168.5{number}.1"),), "lo")
        (self.work / "strongswan.conf").write_text(SETTINGS.format(work=self.work))
        (self.work / "swanctl.conf").write_text(
            CONNECTION.format(
                here=f"10.10.0.{number}",
                there=f"10.10.0.{peer}",
                ours=f"192.168.5{number}.0/24",
                theirs=f"192.168.5{peer}.0/24",
            )
        )
        run(f"ip -n {self.node} addr add 192.168.5{number}.1/24 dev lo")
        self._process = subprocess.Popen(
            self._command("charon-systemd"), env=self._environment(), stdin=subprocess.DEVNULL
        )

    def control(self, *words: str) -> str:
        """Have swanctl say something to it."""
        done = subprocess.run(
            self._command("swanctl " + " ".join(words) + f" --uri unix://{self.work}/vici"),
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            log = self.work / "log"
            said = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"swanctl {words[0]}: {done.stdout}{done.stderr}{said}")
        return done.stdout

    def listens(self) -> bool:
        return (self.work / "vici").exists()

    def load(self) -> None:
        self.control("--load-all", "--file", f"{self.work}/swanctl.conf")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        run(f"ip -n {self.node} addr del {self.end.addresses[0]}/24 dev lo")

    def _command(self, command: str) -> list[str]:
        return beside(f"exec nsenter --net=/run/netns/{self.node} {command}")

    def _environment(self) -> dict[str, str]:
        settings = {"STRONGSWAN_CONF": f"{self.work}/strongswan.conf", "SWANCTL_DIR": str(self.work)}
        return {**os.environ, **settings}


def agreed(charon: Charon) -> str:
    """Give what a charon has agreed upon, by mode and SPI."""
    words = charon.control("--list-sas", "--raw").replace("{", " ").replace("}", " ").split()
    return ", ".join(one for one in words if one.startswith(("mode=", "spi-in=")))


def strongswan(moment: Moment) -> None:
    """Two IKE daemons come, agree on SAs between the nodes' own addresses, carry traffic, and go."""
    left, right = Charon(1, 2), Charon(2, 1)
    echo = Echo(right.end)
    try:
        for one in (left, right):
            moment.meanwhile(f"charon of {one.node} listens", one.listens)
            one.load()
        moment.happened()
        left.control("--initiate", "--child", "nets")
        left.control("--initiate", "--child", "hosts")
        moment.note(f"theirs on n1: {agreed(left)}")
        moment.happened()
        with moment.asking((left.end, "n2", "192.168.52.1", PORT)):
            time.sleep(LASTS)
    finally:
        echo.close()
        for one in (left, right):
            one.close()
    moment.happened()


def foreign_sa(moment: Moment) -> None:
    """Another IKE daemon's, from elsewhere, which chose the SPI that we use."""
    state = f"src 192.0.2.1 dst 10.10.0.2 proto esp spi {newest(moment):#010x}"
    run(f"ip -n n2 xfrm state add {state} reqid 77 mode tunnel aead 'rfc4106(gcm(aes))' 0x{'11' * 36} 128")
    moment.happened()
    try:
        time.sleep(LASTS)
    finally:
        run(f"ip -n n2 xfrm state delete dst 10.10.0.2 proto esp spi {newest(moment):#010x}")
    moment.happened()


def stored(moment: Moment) -> tuple[str, int]:
    """Store a key that is known to us; give it with its SPI."""
    key, spi = os.urandom(36).hex(), newest(moment) + 1
    done = moment.lab.cluster.kmeshctl("secret", f"--key={key}")
    if done.returncode:
        raise RuntimeError(done.stderr)
    moment.happened()
    return key, spi


def go_peer(moment: Moment) -> None:
    """Node n4, by hand as Go Kmesh makes its SAs, is a peer of n1's while the key is replaced and n1's daemon restarts."""
    lab = moment.lab
    psk, spi = stored(moment)
    lab.wait_spi(spi)
    node = lab.network.add_node()
    peer = ByHand(lab.cluster, node, lab.network.nodes[0])
    pod = lab.network.add_pod("p4a", node, 10)
    echo = Echo(pod)
    lab.cluster.node(node)
    lab.cluster.pod(pod)

    def leave() -> None:
        echo.close()
        lab.cluster.withdraw(node.name)
        lab.cluster.delete_pod("p4a")
        lab.network.delete_pod("p4a")
        lab.cluster.delete_node(node.name)
        lab.network.delete_node(node)

    moment.undo.append(leave)
    peer.take_key(psk, spi)
    peer.send_with(spi)
    lab.wait_managed(pod.address(4))
    moment.meanwhile("n1 sends to it", lambda: "src 10.10.0.1 dst 10.10.0.4" in run("ip -n n1 xfrm policy"), SECONDS)
    moment.prepared()
    p1a, p1b = lab.pod("p1a"), lab.pod("p1b")
    with moment.asking((p1a, "n4", pod.address(4), PORT), (pod, "n1", p1b.address(4), PORT)):
        time.sleep(2)
        newer, its_spi = stored(moment)
        peer.take_key(newer, its_spi)
        moment.meanwhile("n1 announces the new key", lambda: lab.cluster.spi("n1") == its_spi)
        peer.send_with(its_spi)
        lab.wait_spi(its_spi)
        # As Go nodes do: what n1 still sends with the key before is not asked for.
        wanted = f"spi {its_spi:#010x}"
        moment.meanwhile(
            "n1 sends it the new key", lambda: wanted in run("ip -n n1 xfrm state list src 10.10.0.1 dst 10.10.0.4")
        )
        time.sleep(2)
        peer.drop_key(spi)
        moment.happened()
        time.sleep(3)


ROWS = (
    Row(
        "foreign-sa",
        6,
        "n2 has an SA of somebody else's with our SPI, from another address",
        foreign_sa,
        Excuse(
            "the kernel finds an SA by destination, SPI and mark, and the one without a mark fits every packet", ("n2",)
        ),
    ),
    Row(
        "strongswan",
        6,
        "strongSwan (charon) on n1 and n2: a tunnel and a transport SA on the nodes' own addresses, with traffic of its own",
        strongswan,
        needs=CHARON,
    ),
    Row(
        "go-peer",
        6,
        "a node made by hand as Go Kmesh makes its SAs is a peer of n1's, asks and is asked, while the key is replaced",
        go_peer,
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""A node of another make: SAs and policies as Go Kmesh makes them, with ip alone. Nothing of kmesh is imported for it."""

from __future__ import annotations

import hashlib

from tests.lab.cluster import Cluster
from tests.lab.network import Node, run

BOOT_ID = "0badcafe-0000-4000-8000-00000000beef"
ALGORITHM = "aead 'rfc4106(gcm(aes))'"


def derived_key(psk_hex: str, src: str, dst: str, src_boot_id: str, dst_boot_id: str) -> str:
    """docs/design.md, "Keys", written down once more: the first 36 bytes of a SHA-512."""
    digest = hashlib.sha512()
    for part in (
        bytes.fromhex(psk_hex),
        src.encode(),
        dst.encode(),
        src_boot_id[:36].encode(),
        dst_boot_id[:36].encode(),
    ):
        digest.update(part)
    return digest.hexdigest()[:72]


class ByHand:
    """What its daemon would do, over IPv4, towards one other node: Go nodes can do two nodes."""

    def __init__(self, cluster: Cluster, node: Node, other: Node) -> None:
        self._cluster, self._node, self._other = cluster, node, other
        here, there = node.addresses[0], other.addresses[0]
        self._out, self._in = f"src {here} dst {there} proto esp", f"src {there} dst {here} proto esp"

    def take_key(self, psk_hex: str, spi: int) -> None:
        """Make the SAs of a key, both ways, and announce it: what it receives with is there before anybody sends so."""
        theirs = self._cluster.info(self._other.name)
        assert theirs
        boot_id = theirs["spec"]["bootID"]
        here, there = self._node.addresses[0], self._other.addresses[0]
        out_key = derived_key(psk_hex, here, there, BOOT_ID, boot_id)
        in_key = derived_key(psk_hex, there, here, boot_id, BOOT_ID)
        for ends, key in ((self._in, in_key), (self._out, out_key)):
            self._ip(f"xfrm state add {ends} spi {spi} reqid 1 mode tunnel {ALGORITHM} 0x{key} 128")
        metadata = {"name": self._node.name, "namespace": "kmesh-system"}  # without annotations: no ESN, as Go nodes
        cidr = self._node.pod_cidrs[0]
        spec = {"spi": spi, "addresses": [here], "bootID": BOOT_ID, "podCIDRS": [cidr]}
        kind = {"apiVersion": "kmesh.net/v1alpha1", "kind": "KmeshNodeInfo"}
        self._cluster.publish({**kind, "metadata": metadata, "spec": spec})

    def send_with(self, spi: int) -> None:
        """Lead what its pods send to a key that the other one has announced, and take what that one sends."""
        ours, theirs = self._node.pod_cidrs[0], self._other.pod_cidrs[0]
        out, back = f"src {ours} dst {theirs}", f"src {theirs} dst {ours}"
        self._ip(f"xfrm policy update {out} dir out tmpl {self._out} spi {spi} reqid 1 mode tunnel")
        for direction in ("fwd", "in"):
            self._ip(f"xfrm policy update {back} dir {direction} tmpl {self._in} reqid 1 mode tunnel")

    def drop_key(self, spi: int) -> None:
        """Forget a key that is not in use any more."""
        for source, target in ((self._node, self._other), (self._other, self._node)):
            ends = f"src {source.addresses[0]} dst {target.addresses[0]}"
            self._ip(f"xfrm state delete {ends} proto esp spi {spi}")

    def _ip(self, command: str) -> None:
        run(f"ip -n {self._node.name} {command}")

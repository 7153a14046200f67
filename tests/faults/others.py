"""Group 6: other software on the same nodes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from tests.faults.keys import newest
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.kernel import tiny_bpf
from tests.lab.kernels import TCX
from tests.lab.network import inside, run

LASTS = 5.0
"""Seconds that a rule of others stands."""
MARKS = """table inet others {
    chain pre { type filter hook prerouting priority raw; meta mark set meta mark & 0xfff0ffff; }
    chain services { type filter hook prerouting priority dstnat; meta mark set meta mark | 0x4000; }
    chain input { type filter hook input priority filter; meta mark set meta mark & 0xfff0ffff;
        meta mark & 0x8000 == 0x8000 drop; }
    chain post { type filter hook postrouting priority filter; meta mark set meta mark | 0x4000; }
}"""
MASQUERADE = (
    """table inet cni { chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }"""
)
CONNMARK = """table inet others {
    chain save { type filter hook postrouting priority mangle; ct mark set meta mark & 0xff; }
    chain restore { type filter hook prerouting priority mangle; meta mark set ct mark; }
}"""


def rules(node: str, text: str) -> Callable[[Moment], None]:
    """Have a table of nft's for a while."""
    table = " ".join(text.split()[1:3])

    def act(moment: Moment) -> None:
        within(node, "nft -f -", text)
        moment.happened()
        try:
            time.sleep(LASTS)
        finally:
            within(node, f"nft delete table {table}")
        moment.happened()

    return act


def reverse_path(moment: Moment) -> None:
    def set_to(value: int) -> None:
        within(
            "n2",
            "sysctl -qw " + " ".join(f"net.ipv4.conf.{one}.rp_filter={value}" for one in ("all", "eth0", "default")),
        )

    moment.undo.append(lambda: set_to(0))
    set_to(1)
    moment.happened()
    time.sleep(LASTS)


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


def programs(moment: Moment) -> None:
    """TCX programs of others, ahead of ours and behind them, on an uplink and a pod's device."""
    ahead, behind = tiny_bpf.load(0x10000, shift=0), tiny_bpf.load(0x20000, tiny_bpf.TC_ACT_OK, shift=0)
    links = []
    with inside("n1"):
        for device in ("eth0", "vp1a"):
            for direction in (tiny_bpf.TCX_INGRESS, tiny_bpf.TCX_EGRESS):
                index = socket.if_nametoindex(device)
                links += [tiny_bpf.attach(ahead, index, direction, first=True)]
                links += [tiny_bpf.attach(behind, index, direction, first=False)]
    moment.happened()
    time.sleep(LASTS)
    for one in (*links, ahead, behind):
        os.close(one)
    moment.happened()


ROWS = (
    Row("masquerade", 6, "a CNI masquerades all that leaves n1's uplink (nft)", rules("n1", MASQUERADE), quick=True),
    Row(
        "mark-users",
        6,
        "rules on n2 write mark bits 0x4000, 0x8000 and 0xf0000, as kube-proxy's and Calico's",
        rules("n2", MARKS),
    ),
    Row(
        "connmark-restore",
        6,
        "rules on n1 save the low byte of marks to connections, and restore it",
        rules("n1", CONNMARK),
        Excuse("a packet has one mark, and here somebody else writes it: the node says so", ("n1",)),
    ),
    Row("rp-filter", 6, "rp_filter=1 on n2", reverse_path),
    Row(
        "foreign-sa",
        6,
        "n2 has an SA of somebody else's with our SPI, from another address",
        foreign_sa,
        Excuse(
            "the kernel finds an SA by destination, SPI and mark, and the one without a mark fits every packet", ("n2",)
        ),
    ),
    Row("programs-of-others", 6, "TCX programs of others ahead of ours and behind them, on n1", programs, since=TCX),
)

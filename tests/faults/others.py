# SPDX-License-Identifier: Apache-2.0
"""Group 6: other software on the same nodes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from tests.faults.meter import readiness
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.kernel import tiny_bpf
from tests.lab.kernels import TCX
from tests.lab.network import inside

READ_AGAIN = 340.0
"""Seconds in which a node surely reads rules again, were it the slowest: :data:`kmesh_bpf.kernel.rules.RARELY`, and a pass."""
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


TAKEN = """table inet others {
    chain pre { type filter hook prerouting priority raw; meta mark set meta mark & 0xffffff3f; }
    chain forward { type filter hook forward priority mangle; meta mark set meta mark | 0x40; }
    chain post { type filter hook postrouting priority mangle; meta mark set meta mark & 0xffffff3f | 0x80; }
}"""
ZONES = """table inet others {
    chain pre { type filter hook prerouting priority raw; iifname "vp*" ct zone set 7; iifname "eth0" ct zone set 8; }
    chain out { type filter hook output priority raw; ct zone set 9; }
    chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}"""


def rules(node: str, text: str, said: str = "") -> Callable[[Moment], None]:
    """Have a table of nft's for a while, and until the node says what it does, if it has to."""
    table = " ".join(text.split()[1:3])

    def act(moment: Moment) -> None:
        within(node, "nft -f -", text)
        moment.happened()
        try:
            time.sleep(LASTS)
            if said:
                moment.meanwhile(
                    f"{node} says so", lambda: any(said in reason for reason in readiness(node)), READ_AGAIN
                )
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


def low_bits(moment: Moment) -> None:
    """Somebody else's bits 0x40 and 0x80, which the daemon was told to leave alone."""
    moment.daemon("n2").stop()
    moment.restart("n2", "--mark-mask=0x3f")

    def as_before() -> None:
        moment.daemon("n2").stop()
        moment.restart("n2")

    moment.undo.append(as_before)
    moment.prepared()
    rules("n2", TAKEN)(moment)


def filters(moment: Moment) -> None:
    """clsact filters of others, ahead of ours and behind them, on an uplink and a pod's device."""
    pins = moment.daemon("n2").pin_root
    places = {"ahead": ("pref 1 handle 1", 0x10000), "behind": ("pref 5 handle 1", 0x20000)}
    try:
        for name, (place, bits) in places.items():
            program = tiny_bpf.load(bits, shift=0)
            tiny_bpf.pin(program, pins / name)
            os.close(program)
            for device in ("eth0", "vp2a"):
                for direction in ("ingress", "egress"):
                    within("n2", f"tc filter add dev {device} {direction} {place} bpf da object-pinned {pins / name}")
        moment.happened()
        time.sleep(LASTS)
    finally:
        for name, (place, _) in places.items():
            for device in ("eth0", "vp2a"):
                for direction in ("ingress", "egress"):
                    within("n2", f"tc filter del dev {device} {direction} {place} bpf || :")
            (pins / name).unlink(missing_ok=True)
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
        rules("n1", CONNMARK, "of our marks away"),
        Excuse(
            "a packet has one mark, and here somebody else writes it: the node names the rule, and the way out",
            ("n1",),
        ),
        seconds=500,
    ),
    Row(
        "mark-users-low",
        6,
        "rules on n2 clear and set bits 0x40 and 0x80; its daemon was started with --mark-mask=0x3f",
        low_bits,
    ),
    Row(
        "mark-takers",
        6,
        "the same rules, and the daemon was not told to leave these bits alone",
        rules("n2", TAKEN, "of our marks away"),
        Excuse(
            "a packet has one mark, and here somebody else takes our bits off it: the node names the rule, and the way out",
            ("n2",),
        ),
        seconds=500,
    ),
    Row("conntrack-zones", 6, "connections of n1 are tracked in zones, and masqueraded (nft)", rules("n1", ZONES)),
    Row("filters-of-others", 6, "clsact filters of others ahead of ours and behind them, on n2", filters),
    Row("rp-filter", 6, "rp_filter=1 on n2", reverse_path),
    Row("programs-of-others", 6, "TCX programs of others ahead of ours and behind them, on n1", programs, since=TCX),
)

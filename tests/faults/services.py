# SPDX-License-Identifier: Apache-2.0
"""Group 6: kube-proxy's rules, as iptables-restore gets them from it, and portmap's for hostPort; asked by pods meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.faults.flows import Numbered
from tests.faults.moment import Moment
from tests.faults.packages import IPTABLES, others
from tests.faults.rows import ALL, Row
from tests.lab.cluster import service_manifest
from tests.lab.traffic import PORT

LASTS = 6.0
"""Seconds that Services are asked."""
CLUSTER_IP, BALANCED, NODE_PORT, HOST_PORT = {4: "10.96.0.50", 6: "fd00:96::50"}, "203.0.113.50", 30007, 3007
TOOL = {4: "iptables-nft", 6: "ip6tables-nft"}
CLEARED = "*filter\nCOMMIT\n*nat\nCOMMIT\n"
MASQUERADE = "-t nat -{} POSTROUTING -o eth0 -j MASQUERADE"


def proxied(version: int, ends: tuple[str, str], cidr: str, host_port: str = "") -> str:
    """Give what kube-proxy (1.30, mode iptables, --cluster-cidr) writes for one Service with two endpoints.

    ``host_port``: the pod of this node that portmap has a hostPort for.
    """
    marked = "-m comment --comment kubernetes -j KUBE-MARK-MASQ"
    lines = [
        "*filter",
        ":KUBE-FORWARD - [0:0]",
        ":KUBE-FIREWALL - [0:0]",
        "-A FORWARD -m comment --comment kubernetes-forwarding-rules -j KUBE-FORWARD",
        "-A INPUT -j KUBE-FIREWALL",
        "-A OUTPUT -j KUBE-FIREWALL",
        "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT",
        "*nat",
        *(
            f":KUBE-{one} - [0:0]"
            for one in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ", "SVC-WEB", "EXT-WEB")
        ),
        *(f":KUBE-SEP-{place} - [0:0]" for place in range(2)),
        "-A PREROUTING -m comment --comment kubernetes-service-portals -j KUBE-SERVICES",
        "-A OUTPUT -m comment --comment kubernetes-service-portals -j KUBE-SERVICES",
        "-A POSTROUTING -m comment --comment kubernetes-postrouting-rules -j KUBE-POSTROUTING",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        f"-A KUBE-SERVICES -d {CLUSTER_IP[version]} -p udp --dport {PORT} -j KUBE-SVC-WEB",
        *([f"-A KUBE-SERVICES -d {BALANCED} -p udp --dport {PORT} -j KUBE-EXT-WEB"] if version == 4 else []),
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        f"-A KUBE-NODEPORTS -p udp --dport {NODE_PORT} -j KUBE-EXT-WEB",
        f"-A KUBE-EXT-WEB {marked}",
        "-A KUBE-EXT-WEB -j KUBE-SVC-WEB",
        f"-A KUBE-SVC-WEB ! -s {cidr} -d {CLUSTER_IP[version]} -p udp --dport {PORT} -j KUBE-MARK-MASQ",
        "-A KUBE-SVC-WEB -m statistic --mode random --probability 0.5 -j KUBE-SEP-0",
        "-A KUBE-SVC-WEB -j KUBE-SEP-1",
    ]
    for place, end in enumerate(ends):
        to = f"[{end}]:{PORT}" if version == 6 else f"{end}:{PORT}"
        lines += [f"-A KUBE-SEP-{place} -s {end} {marked}", f"-A KUBE-SEP-{place} -p udp -j DNAT --to-destination {to}"]
    if host_port:
        lines += [
            *(f":CNI-{one} - [0:0]" for one in ("HOSTPORT-DNAT", "HOSTPORT-SETMARK", "HOSTPORT-MASQ", "DN-1")),
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A POSTROUTING -j CNI-HOSTPORT-MASQ",
            "-A CNI-HOSTPORT-SETMARK -j MARK --or-mark 0x2000",
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
            f"-A CNI-HOSTPORT-DNAT -p udp --dport {HOST_PORT} -j CNI-DN-1",
            f"-A CNI-DN-1 -s {cidr} -p udp --dport {HOST_PORT} -j CNI-HOSTPORT-SETMARK",
            f"-A CNI-DN-1 -p udp --dport {HOST_PORT} -j DNAT --to-destination {host_port}:{PORT}",
        ]
    return "\n".join([*lines, "COMMIT", ""])


def kube_proxy(moment: Moment) -> None:
    lab = moment.lab
    moment.undo.append(lambda: lab.cluster.remove("service-web"))
    lab.cluster.put(service_manifest("web", CLUSTER_IP[4], balanced=(BALANCED,)))
    p1a, p1b, p2a, p3a, p3b = (lab.pod(name) for name in ("p1a", "p1b", "p2a", "p3a", "p3b"))
    for version, cidr in ((4, "10.244.0.0/16"), (6, "fd00:244::/32")):
        ends = p2a.address(version), p3a.address(version)
        for node in ALL:
            moment.undo.append(lambda n=node, v=version: others(n, f"{TOOL[v]}-restore", CLEARED))  # type: ignore[misc]
            others(
                node,
                f"{TOOL[version]}-restore",
                proxied(version, ends, cidr, p3b.address(4) if (node, version) == ("n3", 4) else ""),
            )
    moment.happened()
    # A pod of the Service's own node among them, which may be answered by itself.
    with moment.asking(
        (p1a, "n2", CLUSTER_IP[4], PORT),
        (p1b, "n3", CLUSTER_IP[4], PORT),
        (p1a, "n2", CLUSTER_IP[6], PORT),
        (p2a, "n3", CLUSTER_IP[4], PORT),
        (p1a, "n2", BALANCED, PORT),
        (p1b, "n3", BALANCED, PORT),
        (p1a, "n2", "10.10.0.2", NODE_PORT),
        (p1b, "n2", "10.10.0.2", NODE_PORT),
        (p1a, "n2", "fd00:10::2", NODE_PORT),
        (p1a, "n3", "10.10.0.3", HOST_PORT),
    ):
        time.sleep(LASTS)
    moment.note(f"asked meanwhile: {'; '.join(map(answered, moment.flows))}")


def answered(flow: Numbered) -> str:
    """Tell how often was asked, and when what was not answered."""
    lost = [number for number in range(len(flow.sent)) if number not in flow.arrived]
    when = ", ".join(f"{flow.sent[number] - flow.sent[0]:.1f}" for number in lost)
    return f"{flow.name}: {len(flow.sent)}" + (f", no answer to those {when} s after the first" if lost else "")


def masqueraded(node: str) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        for tool in TOOL.values():
            others(node, f"{tool} {MASQUERADE.format('A')}")
        moment.happened()
        time.sleep(LASTS)
        for tool in TOOL.values():
            others(node, f"{tool} {MASQUERADE.format('D')}")
        moment.happened()

    return act


ROWS = (
    Row(
        "masquerade-iptables",
        6,
        "a CNI masquerades all that leaves n1's uplink (iptables-nft)",
        masqueraded("n1"),
        needs=IPTABLES,
    ),
    Row(
        "kube-proxy",
        6,
        "kube-proxy's rules and portmap's on all nodes (iptables-nft); pods ask ClusterIP, load balancer, NodePort, hostPort",
        kube_proxy,
        needs=IPTABLES,
    ),
)

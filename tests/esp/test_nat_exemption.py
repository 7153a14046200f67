"""Masquerading nodes: two nodes on a wire, one pod each, hand-made XFRM objects; only our nft tables are the product's.

Node 1 masquerades whatever leaves its uplink, and sends ESP from its *second* address, which masquerading would
replace by the first.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kmesh_bpf import contract
from kmesh_bpf.kernel import nat
from tests.lab.network import inside, run

NODES, PODS = ("natnode1", "natnode2"), ("natpod1", "natpod2")
PINGS = 3
MARK = f"{contract.MARK_ENCRYPT:#x} mask {contract.MARK_MASK:#x}"
DECRYPTED = f"{contract.MARK_DECRYPTED:#x} mask {contract.MARK_MASK:#x}"


@dataclass(frozen=True)
class Family:
    """Addresses of one family: two a node (the second one sends and receives ESP), a pod and its network a node."""

    nft: str
    first: tuple[str, str]
    tunnel: tuple[str, str]
    pod: tuple[str, str]
    cidr: tuple[str, str]
    gateway: str
    bits: int
    echo: str


V4 = Family(
    "ip",
    ("10.10.0.1", "10.10.0.2"),
    ("10.10.0.101", "10.10.0.102"),
    ("10.244.1.10", "10.244.2.10"),
    ("10.244.1.0/24", "10.244.2.0/24"),
    "169.254.1.1",
    32,
    "icmp type echo-request",
)
V6 = Family(
    "ip6",
    ("fd00:10::1", "fd00:10::2"),
    ("fd00:10::101", "fd00:10::102"),
    ("fd00:244:1::10", "fd00:244:2::10"),
    ("fd00:244:1::/64", "fd00:244:2::/64"),
    "fd00:fe::1",
    128,
    "icmpv6 type echo-request",
)
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


def enter(namespace: str) -> str:
    return f"nsenter --net=/run/netns/{namespace}"


def build(family: Family) -> None:
    wire_bits, subnet = ("24", "") if family is V4 else ("64", "nodad")
    for here, (node, pod) in enumerate(zip(NODES, PODS, strict=True)):
        there = 1 - here
        run(
            f"ip -n {node} addr add {family.first[here]}/{wire_bits} dev eth0 {subnet}\n"
            f"ip -n {node} addr add {family.tunnel[here]}/{wire_bits} dev eth0 {subnet}\n"
            f"ip -n {node} addr add {family.gateway}/{family.bits} dev pod0 {subnet}\n"
            f"ip -n {node} route add {family.pod[here]}/{family.bits} dev pod0\n"
            f"ip -n {pod} addr add {family.pod[here]}/{family.bits} dev eth0 {subnet}\n"
            f"ip -n {pod} route add {family.gateway}/{family.bits} dev eth0\n"
            f"ip -n {pod} route add default via {family.gateway} dev eth0\n"
        )
        run(f"ip -n {node} route add {family.cidr[there]} via {family.first[there]}")
        # IPv6 prefers the newest address: the route says whose the first one is.
        for src, dst in ((here, there), (there, here)):
            inbound = dst == here
            run(
                f"ip -n {node} xfrm state add src {family.tunnel[src]} dst {family.tunnel[dst]} proto esp spi 1"
                f" reqid {contract.REQID} mode tunnel aead 'rfc4106(gcm(aes))' 0x{src:072d} 128"
                + (f" output-mark {contract.MARK_DECRYPTED:#x} mask 0xffffffff" if inbound else "")
            )
            for direction in ("fwd", "in") if inbound else ("out",):
                run(
                    f"ip -n {node} xfrm policy add src {family.cidr[src]} dst {family.cidr[dst]} dir {direction}"
                    f" mark {DECRYPTED if inbound else MARK} tmpl src {family.tunnel[src]} dst {family.tunnel[dst]}"
                    f" proto esp reqid {contract.REQID} mode tunnel"
                )
        # In place of tc_mark_encrypt: everything a pod sends is marked.
        nft(
            node,
            f"table {family.nft} marks {{ chain pre {{ type filter hook prerouting priority raw;"
            f" iifname pod0 meta mark set meta mark & 0xffffff00 | {contract.MARK_ENCRYPT:#x}; }} }}",
        )
    nft(
        NODES[0],
        f"table {family.nft} cni {{ chain post {{ type nat hook postrouting priority srcnat;"
        ' oifname "eth0" masquerade; } }',
    )
    nft(
        NODES[1],
        f"table {family.nft} watch {{ chain pre {{ type filter hook prerouting priority raw - 10;"
        f' iifname "eth0" meta l4proto esp {family.nft} saddr {family.tunnel[0]} counter comment "tunnel"\n'
        f' iifname "eth0" meta l4proto esp {family.nft} saddr != {family.tunnel[0]} counter comment "nat-esp"\n'
        f' iifname "eth0" {family.echo} meta ipsec missing counter comment "clear"\n'
        f' iifname "eth0" {family.echo} meta ipsec missing {family.nft} saddr {family.first[0]}'
        ' counter comment "masqueraded"; } }',
    )


def nft(namespace: str, script: str) -> None:
    run(f"{enter(namespace)} nft -f -", script)


def seen() -> dict[str, int]:
    """Packets that arrived at node 2, as its own rules counted them."""
    text = run(f"{enter(NODES[1])} nft list ruleset")
    return {name: int(count) for count, name in re.findall(r'counter packets (\d+) .* comment "([a-z-]+)"', text)}


def answered(address: str) -> int:
    done = subprocess.run(
        [*enter(PODS[0]).split(), "ping", "-c", str(PINGS), "-i", "0.2", "-W", "2", "-q", address],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(re.search(r"(\d+) received", done.stdout)[1])


@pytest.fixture
def nodes() -> Iterator[None]:
    run(
        "for m in esp4 esp6 xfrm_user veth nf_tables nft_nat nft_masq nft_chain_nat nft_ct; do modprobe -q $m || :; done"
    )
    names = (*NODES, *PODS)
    try:
        run("\n".join(f"ip netns add {name}" for name in names))
        run(f"ip -n {NODES[0]} link add eth0 type veth peer name eth0 netns {NODES[1]}")
        for node, pod in zip(NODES, PODS, strict=True):
            run(f"ip -n {node} link add pod0 type veth peer name eth0 netns {pod}")
            run(
                f"{enter(node)} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
                " net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv6.conf.all.accept_dad=0"
            )
            for namespace, device in ((node, "lo"), (node, "eth0"), (node, "pod0"), (pod, "eth0")):
                run(f"ip -n {namespace} link set {device} up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@FAMILIES
def test_without_the_exemption_a_masquerading_node_loses_or_leaks(nodes: None, family: Family) -> None:
    build(family)
    answered(family.pod[1])
    assert seen()["tunnel"] == 0
    assert seen()["clear"] == PINGS


@FAMILIES
def test_with_the_exemption_a_masquerading_node_sends_esp_from_the_tunnel_address(nodes: None, family: Family) -> None:
    build(family)
    with inside(NODES[0]):
        nat.install()
    assert answered(family.pod[1]) == PINGS
    assert seen() == {"tunnel": PINGS, "nat-esp": 0, "clear": 0, "masqueraded": 0}


@FAMILIES
def test_a_marked_packet_that_no_policy_selects_is_masqueraded_all_the_same(nodes: None, family: Family) -> None:
    build(family)
    with inside(NODES[0]):
        nat.install()
    assert answered(family.first[1]) == PINGS
    assert seen() == {"tunnel": 0, "nat-esp": 0, "clear": PINGS, "masqueraded": PINGS}

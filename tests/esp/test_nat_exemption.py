# SPDX-License-Identifier: Apache-2.0
"""Masquerading nodes: two nodes on a wire, one pod each, hand-made XFRM objects; only our nft tables are the product's.

Node 1 masquerades whatever leaves its uplink, and sends ESP from another address than masquerading would choose.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kmesh_bpf import contract
from kmesh_bpf.kernel import nat
from tests.lab.network import inside, run

NODES, PODS = ("natnode1", "natnode2"), ("natpod1", "natpod2")
PINGS = 3
MARKED = f"mark {contract.MARK_ENCRYPT:#x} mask {contract.MARK_MASK:#x}"
DECRYPTED = f"mark {contract.MARK_DECRYPTED:#x} mask {contract.MARK_MASK:#x}"
MODULES = "esp4 esp6 xfrm_user veth nf_tables nft_ct nft_nat nft_masq nft_chain_nat"
SYSCTLS = """
net.ipv4.ip_forward=1
net.ipv4.conf.all.rp_filter=0
net.ipv6.conf.all.forwarding=1
net.ipv6.conf.all.accept_dad=0
"""


@dataclass(frozen=True)
class Family:
    """One family's addresses: of node 1 and 2 (``tunnel``: between these ESP runs), of their pods and pod networks.

    ``chosen`` is what masquerading chooses: of equal ones the first added in IPv4, the last added in IPv6.
    """

    nft: str
    chosen: tuple[str, str]
    tunnel: tuple[str, str]
    pod: tuple[str, str]
    cidr: tuple[str, str]
    gateway: str
    bits: tuple[int, int]
    echo: str


V4 = Family(
    "ip",
    ("10.10.0.1", "10.10.0.2"),
    ("10.10.0.101", "10.10.0.102"),
    ("10.244.1.10", "10.244.2.10"),
    ("10.244.1.0/24", "10.244.2.0/24"),
    "169.254.1.1",
    (24, 32),
    "icmp type echo-request",
)
V6 = Family(
    "ip6",
    ("fd00:10::1", "fd00:10::2"),
    ("fd00:10::101", "fd00:10::102"),
    ("fd00:244:1::10", "fd00:244:2::10"),
    ("fd00:244:1::/64", "fd00:244:2::/64"),
    "fd00:fe::1",
    (64, 128),
    "icmpv6 type echo-request",
)
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


def batch(namespace: str, lines: list[str]) -> None:
    run(f"ip -n {namespace} -b -", "\n".join(lines))


def node_lines(family: Family, here: int) -> list[str]:
    """Give node 1's (0) or node 2's (1) addresses, routes and XFRM objects, as lines for ``ip -batch``."""
    there = 1 - here
    wire, host = family.bits
    nodad = "nodad" if family is V6 else ""
    order = (family.tunnel, family.chosen) if family is V6 else (family.chosen, family.tunnel)
    lines = [f"addr add {addresses[here]}/{wire} dev eth0 {nodad}" for addresses in order]
    lines += [
        f"addr add {family.gateway}/{host} dev pod0 {nodad}",
        f"route add {family.pod[here]}/{host} dev pod0",
        f"route add {family.cidr[there]} via {family.chosen[there]}",
    ]
    for src, dst in ((here, there), (there, here)):
        inbound = dst == here
        tunnel = f"src {family.tunnel[src]} dst {family.tunnel[dst]}"
        output = f"output-mark {contract.MARK_DECRYPTED:#x} mask 0xffffffff" if inbound else ""
        lines.append(
            f"xfrm state add {tunnel} proto esp spi 1 reqid {contract.REQID} mode tunnel"
            f" aead rfc4106(gcm(aes)) 0x{src:072d} 128 {output}"
        )
        lines += [
            f"xfrm policy add src {family.cidr[src]} dst {family.cidr[dst]} dir {direction}"
            f" {DECRYPTED if inbound else MARKED} tmpl {tunnel} proto esp reqid {contract.REQID} mode tunnel"
            for direction in (("fwd", "in") if inbound else ("out",))
        ]
    return lines


def pod_lines(family: Family, here: int) -> list[str]:
    nodad = "nodad" if family is V6 else ""
    host = family.bits[1]
    return [
        f"addr add {family.pod[here]}/{host} dev eth0 {nodad}",
        f"route add {family.gateway}/{host} dev eth0",
        f"route add default via {family.gateway} dev eth0",
    ]


def chain(family: Family, place: str, *rules: str) -> str:
    """Give a table of one chain, named by its place."""
    name = re.sub(r"\W+", "_", place)
    lines = "\n".join(rules)
    return f"table {family.nft} {name} {{\nchain rules {{\ntype {place};\n{lines}\n}}\n}}\n"


def node_rules(family: Family, here: int) -> str:
    # In place of tc_mark_encrypt: everything a pod sends is marked.
    mark = f"meta mark set meta mark & {~contract.MARK_MASK & 0xFFFFFFFF:#x} | {contract.MARK_ENCRYPT:#x}"
    rules = chain(family, "filter hook prerouting priority raw", f'iifname "pod0" {mark}')
    if here == 0:
        return rules + chain(family, "nat hook postrouting priority srcnat", 'oifname "eth0" masquerade')
    esp, clear = "meta l4proto esp", f"{family.echo} meta ipsec missing"
    return rules + chain(
        family,
        "filter hook prerouting priority raw - 10",
        f'iifname "eth0" {esp} {family.nft} saddr {family.tunnel[0]} counter comment "esp"',
        f'iifname "eth0" {esp} {family.nft} saddr != {family.tunnel[0]} counter comment "esp-natted"',
        f'iifname "eth0" {clear} {family.nft} saddr {family.pod[0]} counter comment "clear"',
        f'iifname "eth0" {clear} {family.nft} saddr {family.chosen[0]} counter comment "clear-masqueraded"',
    )


def seen() -> Counter[str]:
    """Packets that arrived at node 2 so far, of both families, as its own rules counted them."""
    found: Counter[str] = Counter()
    for count, name in re.findall(
        r'counter packets (\d+) .* comment "([a-z-]+)"', in_node(NODES[1], "nft list ruleset")
    ):
        found[name] += int(count)
    return found


def in_node(name: str, command: str, stdin: str | None = None) -> str:
    return run(f"nsenter --net=/run/netns/{name} {command}", stdin)


def ping(address: str) -> int:
    """Ping from pod 1; give how many were answered."""
    command = [
        "nsenter",
        f"--net=/run/netns/{PODS[0]}",
        "ping",
        "-c",
        str(PINGS),
        "-i",
        "0.2",
        "-W",
        "2",
        "-q",
        address,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    received = re.search(r"(\d+) received", said)
    assert received, said
    return int(received[1])


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    run(f"for module in {MODULES}; do modprobe -q $module || :; done")
    try:
        run("\n".join(f"ip netns add {name}" for name in (*NODES, *PODS)))
        run(f"ip -n {NODES[0]} link add eth0 type veth peer name eth0 netns {NODES[1]}")
        for here, (node, pod) in enumerate(zip(NODES, PODS, strict=True)):
            run(f"ip -n {node} link add pod0 type veth peer name eth0 netns {pod}")
            in_node(node, "sysctl -qp -", SYSCTLS)
            batch(node, ["link set lo up", "link set eth0 up", "link set pod0 up"])
            batch(pod, ["link set eth0 up"])
            for family in (V4, V6):
                batch(node, node_lines(family, here))
                batch(pod, pod_lines(family, here))
                in_node(node, "nft -f -", node_rules(family, here))
        yield
    finally:
        for name in (*NODES, *PODS):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def exemption() -> Iterator[None]:
    with inside(NODES[0]):
        nat.install()
    yield
    with inside(NODES[0]):
        nat.remove()


@FAMILIES
def test_without_the_exemption_a_masquerading_node_leaks(family: Family) -> None:
    before = seen()
    ping(family.pod[1])
    assert seen() - before == {"clear-masqueraded": PINGS}


@FAMILIES
def test_with_it_a_masquerading_node_sends_esp_from_the_tunnel_address_only(exemption: None, family: Family) -> None:
    before = seen()
    assert ping(family.pod[1]) == PINGS
    assert seen() - before == {"esp": PINGS}


@FAMILIES
def test_with_it_a_marked_packet_that_no_policy_selects_is_masqueraded_all_the_same(
    exemption: None, family: Family
) -> None:
    before = seen()
    assert ping(family.chosen[1]) == PINGS
    assert seen() - before == {"clear-masqueraded": PINGS}

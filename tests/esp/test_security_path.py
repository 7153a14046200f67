# SPDX-License-Identifier: Apache-2.0
"""What an SA has decrypted, as the programs see it: by its security path, which BPF_PROG_TEST_RUN cannot give.

A node between a peer and a gateway, hand-made XFRM objects; only programs and maps are the product's. The peer sends as
REMOTE, encrypted, to a pod of the node or to somebody behind the gateway.
"""

import itertools
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel import bpf
from tests.bpf.node import ADDRESSES, LOCAL, OURSELVES, PEER, REMOTE, STRANGER, NodeUnderTest, number
from tests.lab.network import inside, run, socket_in

PEER_NODE, NODE, POD, GATEWAY = "pathpeer", "pathnode", "pathpod", "pathgw"
BPFFS = Path("/sys/fs/bpf")
MODULES = "esp4 esp6 xfrm_user veth nf_tables nft_ct"
OURS, FOREIGN = contract.REQID, 77
MARKED, OTHERWISE, UNMARKED = 0xD0, 0x51, 0
VERSIONS = pytest.mark.parametrize("version", [4, 6])
PORT, PACKETS, PATIENCE_SECONDS, QUIET_SECONDS = 4242, 3, 20, 1
HOST = {4: 32, 6: 128}
SYSCTLS = """
net.ipv4.ip_forward=1
net.ipv4.conf.all.rp_filter=0
net.ipv4.conf.default.rp_filter=0
net.ipv6.conf.all.forwarding=1
net.ipv6.conf.all.accept_dad=0
net.ipv6.conf.default.accept_dad=0
"""
NUMBERS = itertools.count(1)


def near(device: int, here: int, version: int) -> str:
    """Give an address of a link of the node: device 1 to the pod, 2 to the gateway; the node is 1, the other end 2."""
    return f"10.20.{device}.{here}" if version == 4 else f"fd00:20:{device}::{here}"


def lines_of(version: int) -> dict[str, list[str]]:
    """Give addresses and routes of one family, by namespace, as lines for ``ip -batch``."""
    named, bits, wide = ADDRESSES[version], HOST[version], 24 if version == 4 else 64
    nodad = "" if version == 4 else "nodad"
    lines = {name: [] for name in (PEER_NODE, NODE, POD, GATEWAY)}
    lines[PEER_NODE] = [
        f"addr add {PEER[version]}/{wide} dev eth0 {nodad}",
        f"addr add {named[REMOTE]}/{bits} dev lo {nodad}",
        *(f"route add {named[one]}/{bits} via {OURSELVES[version]} src {named[REMOTE]}" for one in (LOCAL, STRANGER)),
    ]
    lines[NODE] = [
        f"addr add {OURSELVES[version]}/{wide} dev eth0 {nodad}",
        f"addr add {near(1, 1, version)}/{wide} dev pod0 {nodad}",
        f"addr add {near(2, 1, version)}/{wide} dev gw0 {nodad}",
        f"route add {named[LOCAL]}/{bits} via {near(1, 2, version)}",
        f"route add default via {near(2, 2, version)}",
    ]
    lines[POD] = [
        f"addr add {near(1, 2, version)}/{wide} dev eth0 {nodad}",
        f"addr add {named[LOCAL]}/{bits} dev lo {nodad}",
    ]
    lines[GATEWAY] = [
        f"addr add {near(2, 2, version)}/{wide} dev eth0 {nodad}",
        *(f"addr add {named[one]}/{bits} dev lo {nodad}" for one in (LOCAL, STRANGER)),
    ]
    return lines


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> Iterator[None]:
    run(f"for module in {MODULES}; do modprobe -q $module || :; done")
    names = (PEER_NODE, NODE, POD, GATEWAY)
    try:
        for name in names:
            run(f"ip netns add {name}; ip -n {name} link set lo up")
            run(f"nsenter --net=/run/netns/{name} sysctl -qp -", SYSCTLS)
        for device, other in (("eth0", PEER_NODE), ("pod0", POD), ("gw0", GATEWAY)):
            run(f"ip -n {NODE} link add {device} type veth peer name eth0 netns {other}")
        for name in names:
            devices = ("eth0", "pod0", "gw0") if name == NODE else ("eth0",)
            run("".join(f"ip -n {name} link set {device} up;" for device in devices))
        for version in (4, 6):
            for name, lines in lines_of(version).items():
                run(f"ip -n {name} -b -", "\n".join(lines))
        marks = "\n".join(f"meta mark & 0xff == {mark:#x} udp dport {PORT} counter" for mark in (0xD0, 0xF0))
        table = f"table inet seen {{\nchain pre {{\ntype filter hook prerouting priority 0;\n{marks}\n}}\n}}\n"
        run(f"nsenter --net=/run/netns/{NODE} nft -f -", table)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def node() -> Iterator[NodeUnderTest]:
    if not os.path.ismount(BPFFS):
        run(f"mount -t bpf bpf {BPFFS}")
    root = BPFFS / f"kmesh-test-{uuid.uuid4().hex[:8]}"
    yield NodeUnderTest(root)
    shutil.rmtree(root)


@contextmanager
def attached(node: NodeUnderTest, **programs: Program) -> Iterator[None]:
    """Have programs on devices of the node, by device, for the length of a block."""
    with ExitStack() as links, inside(NODE):
        for device, program in programs.items():
            attach_type = bpf.TCX_EGRESS if program.egress else bpf.TCX_INGRESS
            with bpf.opened(node.build.path(program)) as fd:
                links.callback(os.close, bpf.check(bpf.create_link(fd, number(device), attach_type), "attach", device))
        yield


def tunnel(version: int, reqid: int, output_mark: int) -> None:
    """Make the pair of SAs from the peer to the node, and what uses and accepts them, in the place of former ones."""
    ends, spi = f"src {PEER[version]} dst {OURSELVES[version]}", next(NUMBERS)
    everything = "0.0.0.0/0" if version == 4 else "::/0"
    state = f"xfrm state add {ends} proto esp spi {spi} mode tunnel aead rfc4106(gcm(aes)) 0x{spi:072d} 128"
    policy = f"xfrm policy add src {everything} dst {everything}"
    template = f"tmpl {ends} proto esp mode tunnel"
    output = f"output-mark {output_mark:#x} mask 0xffffffff" if output_mark else ""
    named = ADDRESSES[version]
    for name in (PEER_NODE, NODE):
        run(f"ip -n {name} xfrm state flush; ip -n {name} xfrm policy flush")
    out = [f"xfrm policy add src {named[REMOTE]} dst {named[one]} dir out {template}" for one in (LOCAL, STRANGER)]
    run(f"ip -n {PEER_NODE} -b -", "\n".join([state, *out]))
    run(f"ip -n {NODE} -b -", "\n".join([f"{state} reqid {reqid} {output}", f"{policy} dir fwd priority 9 {template}"]))


def seen(mark: int) -> int:
    """Give how many packets of the tests came by with a low byte, those as ESP not counted."""
    listed = run(f"nsenter --net=/run/netns/{NODE} nft list chain inet seen pre")
    (line,) = (line for line in listed.splitlines() if f"== 0x{mark:08x} " in line)
    return int(line.partition("packets ")[2].split()[0])


def send(version: int, target: str, arrives_at: str | None) -> int:
    """Send datagrams as REMOTE to a pod or whoever bears its address; give how many arrived in a namespace."""
    named, family = ADDRESSES[version], socket.AF_INET if version == 4 else socket.AF_INET6
    with ExitStack() as sockets:
        sender = sockets.enter_context(socket_in(PEER_NODE, family, socket.SOCK_DGRAM))
        receiver = sockets.enter_context(socket_in(arrives_at or GATEWAY, family, socket.SOCK_DGRAM))
        receiver.bind((named[target], PORT))
        receiver.settimeout(PATIENCE_SECONDS if arrives_at else QUIET_SECONDS)
        sender.bind((named[REMOTE], 0))
        for _ in range(PACKETS):
            sender.sendto(b"payload", (named[target], PORT))
        arrived = 0
        try:
            while arrived < PACKETS:
                receiver.recv(100)
                arrived += 1
        except TimeoutError:
            pass
        return arrived


def raised(node: NodeUnderTest, before: dict[str, int]) -> dict[str, int]:
    now = node.maps.counters()
    return {name: value - before[name] for name, value in now.items() if value != before[name]}


@VERSIONS
@pytest.mark.parametrize(
    ("target", "mark", "arrives_at"), [(LOCAL, 0xD0, POD), (STRANGER, 0xF0, GATEWAY)], ids=[LOCAL, STRANGER]
)
def test_what_an_sa_of_ours_decrypted_counts_and_asks_to_be_encrypted_again_unless_it_is_for_a_pod_here(
    node, version, target, mark, arrives_at
):
    tunnel(version, OURS, MARKED)
    before, marked = node.maps.counters(), seen(mark)
    with attached(node, eth0=Program.MARK_DECRYPT):
        assert send(version, target, arrives_at) == PACKETS
    assert raised(node, before) == {"esp_known_peer": PACKETS, "decrypted": PACKETS}
    assert seen(mark) - marked == PACKETS


@VERSIONS
@pytest.mark.parametrize(
    ("reqid", "output_mark"),
    [(FOREIGN, MARKED), (FOREIGN, UNMARKED), (OURS, OTHERWISE)],
    ids=["foreign", "foreign, the mark of its ESP", "another mark"],
)
def test_what_another_sa_decrypted_is_clear_text_to_us(node, version, reqid, output_mark):
    """A mark of ours, or an SA of ours, is no proof alone."""
    tunnel(version, reqid, output_mark)
    before = node.maps.counters()
    with attached(node, eth0=Program.MARK_DECRYPT):
        assert send(version, LOCAL, None) == 0
    assert raised(node, before) == {"esp_known_peer": PACKETS, "dropped_clear_text": PACKETS}


@VERSIONS
@pytest.mark.parametrize("target", [LOCAL, STRANGER])
def test_what_was_decrypted_leaves_by_no_device_by_which_packets_leave_the_node(node, version, target):
    """The pod's device is gone, its object is not yet, and there is a default route; or nobody encrypts it again."""
    tunnel(version, OURS, MARKED)
    gone = f"route del {ADDRESSES[version][LOCAL]}/{HOST[version]} via {near(1, 2, version)}"
    run(f"ip -n {NODE} -{version} {gone}")
    try:
        for program, arrive in ((Program.LEAK_GUARD, 0), (Program.INNER_GUARD, PACKETS)):
            before = node.maps.counters()
            with attached(node, eth0=Program.MARK_DECRYPT, gw0=program):
                assert send(version, target, GATEWAY if arrive else None) == arrive
            dropped = {} if arrive else {"dropped_decrypted": PACKETS}
            assert raised(node, before) == {"esp_known_peer": PACKETS, "decrypted": PACKETS} | dropped
    finally:
        run(f"ip -n {NODE} -{version} {gone.replace('del', 'add')}")


@VERSIONS
@pytest.mark.parametrize("reqid", [OURS, FOREIGN])
def test_what_a_foreign_sa_decrypted_may_leave_again(node, version, reqid):
    tunnel(version, reqid, UNMARKED)
    before = node.maps.counters()
    with attached(node, gw0=Program.LEAK_GUARD):
        arrived = send(version, STRANGER, GATEWAY if reqid == FOREIGN else None)
    assert (arrived, raised(node, before)) == ((0, {"dropped_decrypted": PACKETS}) if reqid == OURS else (PACKETS, {}))


@VERSIONS
@pytest.mark.parametrize(
    ("reqid", "output_mark"),
    [(OURS, MARKED), (OURS, UNMARKED), (FOREIGN, MARKED), (FOREIGN, UNMARKED)],
    ids=["ours", "ours, its mark lost on the way", "foreign, with the mark of ours", "foreign"],
)
def test_a_pod_gets_from_one_managed_elsewhere_what_an_sa_of_ours_decrypted_and_nothing_else(
    node, version, reqid, output_mark
):
    """The security path stays on the packet while it is forwarded, up to the pod's device."""
    tunnel(version, reqid, output_mark)
    before = node.maps.counters()
    with attached(node, pod0=Program.POD_GUARD):
        arrived = send(version, LOCAL, POD if reqid == OURS else None)
    assert (arrived, raised(node, before)) == ((PACKETS, {}) if reqid == OURS else (0, {"dropped_clear_text": PACKETS}))


@VERSIONS
@pytest.mark.parametrize(("target", "arrives_at"), [(STRANGER, GATEWAY), (LOCAL, None)], ids=[STRANGER, LOCAL])
def test_what_connection_tracking_found_an_answer_leaves_if_it_is_for_nobody_known(node, version, target, arrives_at):
    """The mark is what our nft tables lay on the answer to who asked this node's NodePort from outside."""
    tunnel(version, OURS, contract.MARK_AGAIN & ~0x30)
    gone = f"route del {ADDRESSES[version][LOCAL]}/{HOST[version]} via {near(1, 2, version)}"
    run(f"ip -n {NODE} -{version} {gone}")
    try:
        before = node.maps.counters()
        with attached(node, gw0=Program.LEAK_GUARD):
            arrived = send(version, target, arrives_at)
        dropped = {} if arrives_at else {"dropped_decrypted": PACKETS}
        assert (arrived, raised(node, before)) == (PACKETS if arrives_at else 0, dropped)
    finally:
        run(f"ip -n {NODE} -{version} {gone.replace('del', 'add')}")


@VERSIONS
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_our_own_esp_leaves_also_where_the_kernel_encrypts_it_as_late_as_it_can(node, version, late):
    """With esp4_offload and esp6_offload loaded it passes the guard with the SA that will encrypt it as its path."""
    named = ADDRESSES[version]
    module = f"esp{version}_offload"
    run(f"modprobe {module}" if late else f"modprobe -rq {module} || :")
    tunnel(version, OURS, MARKED)
    back = f"src {OURSELVES[version]} dst {PEER[version]}"
    state = f"xfrm state add {back} proto esp spi {{}} mode tunnel aead rfc4106(gcm(aes)) 0x{0:072d} 128"
    spi = next(NUMBERS)
    pod_to_peer = f"src {named[LOCAL]} dst {named[REMOTE]}"
    policy = f"xfrm policy add {pod_to_peer} dir {{}} tmpl {back} proto esp mode tunnel"
    run(f"ip -n {NODE} -b -", "\n".join([f"{state.format(spi)} reqid {OURS}", f"{policy.format('out')} reqid {OURS}"]))
    run(f"ip -n {PEER_NODE} -b -", "\n".join([state.format(spi), policy.format("in")]))
    run(f"ip -n {NODE} -{version} xfrm policy add {pod_to_peer} dir fwd priority 1")
    run(f"ip -n {NODE} route replace {named[REMOTE]}/{HOST[version]} via {PEER[version]}")
    run(f"ip -n {POD} route replace {named[REMOTE]}/{HOST[version]} via {near(1, 1, version)} src {named[LOCAL]}")
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    before = node.maps.counters()
    with (
        attached(node, eth0=Program.LEAK_GUARD),
        socket_in(POD, family, socket.SOCK_DGRAM) as sender,
        socket_in(PEER_NODE, family, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((named[REMOTE], PORT))
        receiver.settimeout(PATIENCE_SECONDS)
        sender.bind((named[LOCAL], 0))
        for _ in range(PACKETS):
            sender.sendto(b"payload", (named[REMOTE], PORT))
        assert [receiver.recv(100) for _ in range(PACKETS)] == [b"payload"] * PACKETS
    assert raised(node, before) == {}

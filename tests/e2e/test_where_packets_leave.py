# SPDX-License-Identifier: Apache-2.0
"""Where packets leave and come: every device of a node is guarded, and nothing that was decrypted leaves in clear."""

import shutil
import signal
import socket
import time
from contextlib import contextmanager

import pytest

from tests.e2e import layer2
from tests.e2e.telling import wait_ready, wait_reason
from tests.lab.capture import Capture
from tests.lab.cluster import wait_for
from tests.lab.frames import ethernet, mac_of, udp
from tests.lab.kernels import KERNEL, NETKIT
from tests.lab.network import WIRE, inside, run
from tests.lab.traffic import Echo, Flow, exchange

SENT = 20
HERE, THERE = "10.10.0.1", "10.10.0.2"


def clear_udp(seen):
    return sum(count for frame, count in seen.frames.items() if frame.protocol == 17)


@contextmanager
def second_nic(node, address):
    """Give a node another device on the wire, without an address that its Node object tells of."""
    port = f"w{node.index}"
    run(
        f"ip -n {WIRE} link add {port} type veth peer name eth1 netns {node.name};"
        f"ip -n {WIRE} link set {port} master br0; ip -n {WIRE} link set {port} up;"
        f"ip -n {node.name} link set eth1 up; ip -n {node.name} addr add {address} dev eth1"
    )
    try:
        yield port
    finally:
        run(f"ip -n {WIRE} link del {port}")


def test_a_second_nic_that_pods_routes_lead_over_is_guarded_from_its_first_packet_on(enrolled):
    lab = enrolled
    node = lab.network.nodes[0]
    with lab.silent_node() as pod, Flow(lab.pod("p1a"), pod.address(4), 100) as count:
        with second_nic(node, "192.168.77.1/24") as port:
            with Capture(lab.network, (port,)) as seen:
                run("ip -n n1 route replace 10.244.4.0/24 dev eth1 via 192.168.77.4 onlink")
                run("ip -n n1 neigh replace 192.168.77.4 lladdr 02:00:00:00:00:04 dev eth1")
                time.sleep(3)
            wait_for("eth1 is guarded", lambda: "dev eth1 egress" in lab.daemons["n1"].text())
            run("ip -n n1 route replace 10.244.4.0/24 via 10.10.0.4")
    print(f"second NIC: sent {count.sent}, answered {count.received}, in clear {clear_udp(seen)}")
    assert (count.received, clear_udp(seen)) == (0, 0)


def test_what_pods_bridge_past_the_routing_to_an_uplink_is_dropped_counted_and_named(enrolled):
    """Flat layer 2: the uplink is a port of the bridge that the pods are on, and XFRM never sees what they bridge."""
    lab = enrolled
    pod, target = lab.pod("p3a"), lab.pod("p1a").address(4)
    with layer2.flat(lab):
        wait_reason(lab, "n3", "cni0", "eth0")
        before = lab.counters("n3")["dropped_by_guard"]
        forged = ethernet(mac_of(1), udp(pod.address(4), target, 7))
        with Capture(lab.network) as seen, inside(pod.name), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for _ in range(SENT):
                raw.send(forged)
            time.sleep(0.5)
        assert clear_udp(seen) == 0
        assert lab.counters("n3")["dropped_by_guard"] - before >= SENT
        count = exchange(pod, target, SENT)  # what is routed is encrypted all the same
        assert count.lost == 0
    wait_ready(lab, "n3")
    assert exchange(pod, target, SENT).lost == 0


@pytest.mark.skipif(KERNEL < NETKIT, reason="this kernel has no netkit")
def test_a_pod_on_a_netkit_device_is_encrypted(enrolled):
    lab = enrolled
    pod = lab.network.add_pod("p1c", lab.network.nodes[0], 12, kind="netkit")
    lab.cluster.pod(pod)
    echo = Echo(pod)
    try:
        lab.wait_managed(pod.address(4))
        wait_for("its device has its program", lambda: "dev vp1c ingress" in lab.daemons["n1"].text())
        time.sleep(1)
        for version in (4, 6):
            with Capture(lab.network) as seen:
                there = exchange(pod, lab.pod("p2a").address(version), SENT)
                back = exchange(lab.pod("p2a"), pod.address(version), SENT)
            print(f"netkit, IPv{version}: {there} {back}")
            assert (there.lost, back.lost, seen.pods_in_clear()) == (0, 0, 0)
    finally:
        echo.close()
        lab.cluster.delete_pod("p1c")
        lab.network.delete_pod("p1c")


@contextmanager
def shaped(node, *devices):
    """Have what comes by devices take the way through an ifb, as the bandwidth plugin and hosts' own shaping do."""
    flow = "prio 49 protocol all matchall action mirred egress redirect dev ifb0"
    made = [
        f"tc qdisc add dev {one} clsact 2>/dev/null || true; tc filter add dev {one} ingress {flow}" for one in devices
    ]
    gone = [f"tc filter del dev {one} ingress prio 49" for one in devices]
    within = f"nsenter --net=/run/netns/{node} bash -ec"
    run(f"{within} 'ip link add ifb0 type ifb; ip link set ifb0 up; {'; '.join(made)}'")
    try:
        yield
    finally:
        run(f"{within} '{'; '.join(gone)}; ip link del ifb0'")


@pytest.mark.parametrize("devices", [("v{}",), ("eth0",), ("v{}", "eth0")], ids=["pod", "uplink", "both"])
def test_what_an_ifb_shapes_on_a_pod_s_device_or_an_uplink_is_encrypted_and_decrypted(enrolled, devices):
    lab = enrolled
    pairs = [("n1", "p1b", "p2a"), ("n2", "p2b", "p1a")]  # the one has links, the other filters
    for node, name, other in pairs:
        with shaped(node, *(one.format(name) for one in devices)), Capture(lab.network) as seen:
            time.sleep(1)  # until its own devices are looked at again
            counts = [
                exchange(lab.pod(one), lab.pod(to).address(version), SENT)
                for one, to in ((name, other), (other, name))
                for version in (4, 6)
            ]
        print(f"ifb on {devices} of {node}: {counts}, in clear {seen.pods_in_clear()}")
        assert [count.lost for count in counts] == [0] * 4
        assert seen.pods_in_clear() == 0


WRAPPING = "ip -n n1 route replace 10.244.2.0/24 encap seg6 mode encap segs fd00:10::99 dev eth0"
REDIRECTING = (
    "tc -n n1 qdisc add dev vp1a clsact 2>/dev/null || true;"
    "tc -n n1 filter add dev vp1a ingress pref 40 protocol ip u32 match u32 0 0 action mirred egress redirect dev eth0"
)


@pytest.mark.parametrize(
    ("detour", "undo", "words"),
    [
        (WRAPPING, "ip -n n1 route replace 10.244.2.0/24 via 10.10.0.2", ("10.244.2.0/24", "encap seg6")),
        (REDIRECTING, "tc -n n1 filter del dev vp1a ingress pref 40", ("vp1a", "redirects packets to eth0")),
    ],
    ids=["a route that wraps", "a filter that redirects"],
)
def test_what_others_lead_past_xfrm_is_dropped_counted_and_named(enrolled, detour, undo, words):
    lab = enrolled
    pair = lab.pod("p1a"), lab.pod("p2a").address(4)
    run("ip -n n1 -6 neigh replace fd00:10::99 lladdr 02:00:00:00:00:02 dev eth0")
    run(detour)
    try:
        wait_reason(lab, "n1", *words)
        before = lab.counters("n1")["dropped_by_guard"]
        with Capture(lab.network) as seen:
            count = exchange(*pair, SENT)
        wrapped = sum(n for frame, n in seen.frames.items() if frame.dst == "fd00:10::99")
        assert (count.received, clear_udp(seen), wrapped) == (0, 0, 0)
        assert lab.counters("n1")["dropped_by_guard"] - before >= SENT
    finally:
        run(undo)
    wait_ready(lab, "n1")
    assert exchange(*pair, SENT).lost == 0


def test_what_was_decrypted_for_a_pod_whose_device_is_gone_does_not_leave_in_clear(enrolled):
    lab = enrolled
    address = lab.pod("p2b").address(4)
    before = lab.counters("n2")["dropped_decrypted"]
    run(f"ip -n n2 route del {address}/32; ip -n n2 route add default via {HERE}")
    try:
        with Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), address, SENT)
        assert (count.received, clear_udp(seen)) == (0, 0)
        assert lab.counters("n2")["dropped_decrypted"] - before >= SENT
    finally:
        run(f"ip -n n2 route del default; ip -n n2 route add {address}/32 dev {lab.pod('p2b').device}")
    assert exchange(lab.pod("p1a"), address, SENT).lost == 0


@pytest.mark.parametrize("version", [4, 6])
def test_an_error_that_answers_a_decrypted_packet_does_not_quote_it_in_clear(enrolled, version):
    lab = enrolled
    address, device = lab.pod("p2b").address(version), lab.pod("p2b").device
    length = {4: 32, 6: 128}[version]
    run(
        f"ip -n n2 route replace unreachable {address}/{length} metric 1; ip -n n2 route del {address}/{length} dev {device}"
    )
    try:
        with Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), address, SENT)
        errors = sum(
            n for frame, n in seen.frames.items() if frame.protocol == {4: 1, 6: 58}[version] and not quiet(frame)
        )
        print(f"unreachable, IPv{version}: answered {count.received}, errors in clear {errors}")
        assert (count.received, errors) == (0, 0)
    finally:
        run(
            f"ip -n n2 route add {address}/{length} dev {device}; ip -n n2 route del unreachable {address}/{length} metric 1"
        )
    assert exchange(lab.pod("p1a"), address, SENT).lost == 0


def quiet(frame):
    """Neighbour discovery between nodes: no error, and about nobody's packet."""
    return frame.dst.startswith(("ff02:", "fd00:10:", "fe80:")) and not frame.dst.startswith("fd00:244:")


def test_a_device_that_xfrm_is_turned_off_for_is_named(enrolled):
    lab = enrolled
    run("nsenter --net=/run/netns/n2 sysctl -qw net.ipv4.conf.eth0.disable_xfrm=1")
    try:
        wait_reason(lab, "n2", "disable_xfrm", "eth0")
        with Capture(lab.network) as seen:
            exchange(lab.pod("p2a"), lab.pod("p1a").address(4), SENT)
        assert seen.pods_in_clear() == 0
    finally:
        run("nsenter --net=/run/netns/n2 sysctl -qw net.ipv4.conf.eth0.disable_xfrm=0")
    wait_ready(lab, "n2")


def test_an_uplink_that_was_asked_for_and_is_not_there_is_named_and_the_others_are_guarded(enrolled):
    lab = enrolled
    daemon = lab.daemons["n1"]
    daemon.stop()
    daemon.start("--uplink=nosuch")
    try:
        wait_reason(lab, "n1", "nosuch")
        count = exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT)
        assert count.lost == 0
    finally:
        daemon.stop()
        daemon.start()
        daemon.wait_ready()
    wait_ready(lab, "n1")


def test_between_a_boot_and_the_first_pass_nothing_leaves_in_clear(enrolled):
    lab = enrolled
    daemon, pair = lab.daemons["n1"], (lab.pod("p1a"), lab.pod("p2a").address(4))
    wait_for("its file knows n2's pods", lambda: pair[1] in boot_file(daemon))
    daemon.stop(signal.SIGKILL)
    # All that a boot takes away: what is pinned, and with it what was attached; SAs, policies, rules.
    shutil.rmtree(daemon.pin_root)
    tables = "".join(f"nft delete table {family} kmesh_ipsec;" for family in ("ip", "ip6"))
    run(f"ip -n n1 xfrm state flush; ip -n n1 xfrm policy flush; nsenter --net=/run/netns/n1 bash -ec '{tables}'")
    control = exchange(*pair, 2)
    with Capture(lab.network) as seen:
        exchange(*pair, 2)
    assert seen.pods_in_clear() > 0, "the leak check fires without a guard"
    done = daemon.boot_guard()
    assert done.returncode == 0, done.stderr
    with Capture(lab.network) as seen, Flow(*pair, 100) as count:
        daemon.start()
        daemon.wait_ready()
        wait_for("the guard of the boot is gone", lambda: "kmesh_boot_guard" not in rules("n1"))
        wait_for("n2 knows n1 again", lambda: exchange(*pair, 3).lost == 0)
    print(f"boot: {control}, then sent {count.sent} answered {count.received} in clear {seen.pods_in_clear()}")
    assert seen.pods_in_clear() == 0
    assert exchange(*pair, SENT).lost == 0


def boot_file(daemon):
    path = daemon.state_dir / "boot-guard.nft"
    return path.read_text() if path.exists() else ""


def rules(node):
    return run(f"nsenter --net=/run/netns/{node} nft list tables")


def rule(node, hook, priority, text):
    run(
        f"nsenter --net=/run/netns/{node} nft -f -",
        f"table inet theirs {{ chain one {{ type filter hook {hook} priority {priority}; {text}; }}; }}",
    )


def test_a_bit_of_our_marks_that_somebody_else_owns_is_left_out_of_them_when_asked(enrolled):
    """The AWS VPC CNI restores bit 0x80 of pods' packets from their connection's mark."""
    lab = enrolled
    daemon, pair = lab.daemons["n1"], (lab.pod("p1a"), lab.pod("p2a"))
    rule("n1", "prerouting", "mangle", 'iifname "vp1*" meta mark set meta mark & 0xffffff7f')
    try:
        with Capture(lab.network) as seen:
            count = exchange(pair[0], pair[1].address(4), SENT)
        assert (count.received, seen.pods_in_clear()) == (0, 0)  # lost, and not in clear
        daemon.stop()
        daemon.start("--mark-mask=0x7f")
        daemon.wait_ready()
        for version in (4, 6):
            target = pair[1].address(version)
            wait_for("n2 knows n1 again", lambda one=target: exchange(pair[0], one, 3).lost == 0)
            with Capture(lab.network) as seen:
                there = exchange(pair[0], target, SENT)
                back = exchange(lab.pod("p2b"), lab.pod("p1b").address(version), SENT)
            print(f"another mark mask, IPv{version}: {there} {back}")
            assert (there.lost, back.lost, seen.pods_in_clear()) == (0, 0, 0)
    finally:
        run("nsenter --net=/run/netns/n1 nft delete table inet theirs")
        daemon.stop()
        daemon.start()
        daemon.wait_ready()
    wait_ready(lab, "n1")


def test_a_reverse_path_filter_that_drops_what_was_decrypted_is_named(enrolled):
    lab = enrolled
    run(
        "ip -n n2 link add vx0 type vxlan id 7 dstport 4789 local 10.10.0.2; ip -n n2 link set vx0 up;"
        "ip -n n2 route add 198.18.0.0/15 dev vx0"
    )
    rule("n2", "prerouting", "raw", "fib saddr . mark . iif oif missing drop")
    lab.daemons["n2"].stop()  # it reads others' rules at start, and then rarely
    lab.daemons["n2"].start()
    try:
        wait_reason(lab, "n2", "reverse path filter", "theirs", "vx0")
    finally:
        run("nsenter --net=/run/netns/n2 nft delete table inet theirs; ip -n n2 link del vx0")
    wait_ready(lab, "n2")

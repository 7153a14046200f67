# SPDX-License-Identifier: Apache-2.0
"""Real ESP between three nodes. Tests run in order and share one lab; each leaves the namespace labelled."""

import signal
import time
from collections import Counter
from ipaddress import ip_address

import pytest

from kmesh_bpf import watching
from tests.lab.capture import Capture
from tests.lab.cluster import LABEL, wait_for
from tests.lab.network import Pod, run
from tests.lab.traffic import Echo, Flow, exchange, transfer

NODES = {4: ("10.10.0.1", "10.10.0.2"), 6: ("fd00:10::1", "fd00:10::2")}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def talk(lab, source, target, version, packets=20, **flow):
    """Exchange datagrams under a capture; give the count and what the wire saw."""
    with Capture(lab.network) as seen:
        count = exchange(lab.pod(source), lab.pod(target).address(version), packets, **flow)
    print(
        f"{source} -> {target} IPv{version}: sent {count.sent} received {count.received} pods in clear {seen.pods_in_clear()}"
    )
    return count, seen


def ends(lab, source, target, version):
    return lab.pod(source).address(version), lab.pod(target).address(version)


@VERSIONS
def test_control_without_a_label_traffic_is_clear_and_the_leak_check_fires(lab, version):
    lab.label("")
    count, seen = talk(lab, "p1a", "p2a", version)
    assert count.lost == 0
    assert seen.clear(*ends(lab, "p1a", "p2a", version)) >= 2 * count.sent
    assert seen.pods_in_clear() >= 2 * count.sent
    assert not seen.esp(*NODES[version])


@VERSIONS
def test_between_managed_pods_there_is_only_esp_both_ways(lab, version):
    lab.label("Kmesh")
    count, seen = talk(lab, "p1a", "p2a", version)
    assert count.lost == 0
    assert seen.pods_in_clear() == 0
    here, there = NODES[version]
    assert set(seen.esp(here, there)) == set(seen.esp(there, here)) == {1}
    assert seen.esp(here, there)[1] >= count.sent


@VERSIONS
def test_who_monitors_a_node_sees_each_packet_leave_its_pod_and_arrive_encrypted(lab, version):
    here, there = ends(lab, "p1a", "p2a", version)
    told = {}
    with watching(lab.daemons["n1"].pin_root) as one, watching(lab.daemons["n2"].pin_root) as two:
        for ring in (one, two):
            list(ring.take())
        count, _ = talk(lab, "p1a", "p2a", version)
        for node, ring in (("n1", one), ("n2", two)):
            told[node] = Counter((event.source, event.destination, event.decision) for event in ring.take())
    assert count.lost == 0
    for node, source, destination in (("n1", here, there), ("n2", there, here)):
        assert told[node][ip_address(source), ip_address(destination), "marked"] == count.sent
    for node, source, destination in (("n2", here, there), ("n1", there, here)):
        assert told[node][ip_address(source), ip_address(destination), "decrypted"] == count.sent
    assert not [row for rows in told.values() for row in rows if row[2].startswith("dropped")]


@VERSIONS
@pytest.mark.parametrize("pair", [("p2b", "p3a"), ("p3b", "p1b")])
def test_all_three_nodes_and_pods_behind_a_bridge_encrypt(lab, version, pair):
    count, seen = talk(lab, *pair, version)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


@VERSIONS
def test_pods_of_one_node_talk_in_clear_and_nothing_reaches_the_wire(lab, version):
    count, seen = talk(lab, "p1a", "p1b", version)
    assert count.lost == 0
    assert not seen.esp(*NODES[version])
    assert not seen.clear(*ends(lab, "p1a", "p1b", version))


def test_a_pod_that_opts_out_talks_in_clear_though_its_namespace_is_in(lab):
    lab.cluster.pod(lab.pod("p2b"), {LABEL: "none"})
    lab.wait_managed(lab.pod("p2b").address(4), managed=False)
    count, seen = talk(lab, "p1a", "p2b", 4)
    assert count.lost == 0
    assert seen.clear(*ends(lab, "p1a", "p2b", 4)) >= 2 * count.sent
    lab.cluster.pod(lab.pod("p2b"))
    lab.wait_managed(lab.pod("p2b").address(4))


def test_two_pods_that_are_in_by_their_own_labels_encrypt_though_their_namespace_is_out(lab):
    lab.label("")
    for name in ("p1a", "p2a"):
        lab.cluster.pod(lab.pod(name), {LABEL: "Kmesh"})
        lab.wait_managed(lab.pod(name).address(4))
    for version in (4, 6):
        count, seen = talk(lab, "p1a", "p2a", version)
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
        assert sum(seen.esp(*NODES[version]).values()) >= count.sent
        count, seen = talk(lab, "p1b", "p2a", version)
        assert count.lost == 0
        assert seen.clear(*ends(lab, "p1b", "p2a", version)) >= 2 * count.sent
    for name in ("p1a", "p2a"):
        lab.cluster.pod(lab.pod(name))
    lab.label("Kmesh")


@pytest.mark.parametrize("change", [{"containers": ["app", "istio-proxy"]}, {"hostNetwork": True}])
def test_a_pod_with_a_sidecar_or_the_node_s_network_is_never_managed(lab, change):
    lab.cluster.pod(lab.pod("p2b"), {LABEL: "kmesh"}, **change)
    lab.wait_managed(lab.pod("p2b").address(4), managed=False)
    count, seen = talk(lab, "p1a", "p2b", 4)
    assert count.lost == 0
    assert seen.clear(*ends(lab, "p1a", "p2b", 4)) >= 2 * count.sent
    lab.cluster.pod(lab.pod("p2b"))
    lab.wait_managed(lab.pod("p2b").address(4))


def test_a_pod_in_the_node_s_network_is_no_managed_pod_and_is_talked_to_as_its_node_is(lab):
    node = lab.network.nodes[1]
    host = Pod(node.name, node.name, tuple(map(ip_address, node.addresses)), "eth0")
    echo = Echo(host)
    lab.cluster.pod(host, {LABEL: "Kmesh"}, hostNetwork=True)
    lab.cluster.pod(lab.pod("p2b"), {LABEL: "none"})  # once this is known, so is what was written before it
    lab.wait_managed(lab.pod("p2b").address(4), managed=False)
    try:
        for version in (4, 6):
            with Capture(lab.network) as seen:
                count = exchange(lab.pod("p1a"), host.address(version), 20)
            assert count.lost == 0
            assert not seen.clear(lab.pod("p1a").address(version), host.address(version))
            with Capture(lab.network) as seen:
                count = exchange(lab.pod("p2b"), lab.network.nodes[0].addresses[version == 6], 1)
            assert not seen.esp(*reversed(NODES[version]))  # of a pod that is not managed, nothing
        assert not {*node.addresses} & {*lab.managed("n1"), *lab.managed("n2")}
    finally:
        echo.close()
        lab.cluster.delete_pod(host.name)
        lab.cluster.pod(lab.pod("p2b"))
        lab.wait_managed(lab.pod("p2b").address(4))


@pytest.mark.parametrize(("node", "bridge"), [(1, None), (2, None), (3, "cni0")], ids=["TCX", "clsact", "bridge"])
def test_a_new_device_gets_its_programs_as_soon_as_it_is_there_and_nothing_else_has_changed(lab, node, bridge):
    from kmesh.launcher.daemon import PERIOD  # noqa: PLC0415 # in the VM, each import at the head costs seconds

    lab.label("")
    began = time.monotonic()
    lab.label("Kmesh")  # a pass is made after this: without any notification the next one is PERIOD later
    time.sleep(1)
    pod = lab.network.add_pod(f"p{node}c", lab.network.nodes[node - 1], 12, bridge)
    try:
        daemon = lab.daemons[f"n{node}"]
        took = wait_for("its programs", lambda: f"dev {pod.device} " in daemon.text())
        print(f"{pod.device}: programs after {took:.1f} s")
        assert time.monotonic() - began < PERIOD
    finally:
        lab.network.delete_pod(pod.name)


def test_a_pod_re_created_with_the_same_address_encrypts_again(lab):
    lab.delete_pod("p2b")
    lab.wait_managed("10.244.2.11", managed=False)
    lab.add_pod("p2b", 2, 11)
    lab.wait_managed("10.244.2.11")
    time.sleep(2)  # its device gets its program by a link notification
    count, seen = talk(lab, "p1a", "p2b", 4)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


@VERSIONS
def test_a_megabyte_by_tcp_arrives_whole_and_encrypted(lab, version):
    with Capture(lab.network) as seen:
        assert transfer(lab.pod("p1a"), lab.pod("p2a"), version)
    assert seen.pods_in_clear() == 0


@VERSIONS
def test_a_megabyte_arrives_over_a_path_whose_mtu_shrinks_on_the_way(lab, version):
    try:
        with Capture(lab.network) as seen:
            assert transfer(
                lab.pod("p1a"),
                lab.pod("p2a"),
                version,
                port=10,
                halfway=lambda: run("ip -n n2 link set eth0 mtu 1400; ip -n n1 link set eth0 mtu 1400"),
            )
        assert seen.pods_in_clear() == 0
    finally:
        run("ip -n n2 link set eth0 mtu 1500; ip -n n1 link set eth0 mtu 1500")


@pytest.mark.parametrize(
    ("family", "service", "version"), [("ip", "10.96.0.10", 4), ("ip6", "fd00:96::10", 6)], ids=["4", "6"]
)
def test_a_service_address_that_stands_for_a_managed_pod_elsewhere_is_encrypted(lab, family, service, version):
    run(
        "nsenter --net=/run/netns/n1 nft -f -",
        f"table {family} services {{ chain pre {{ type nat hook prerouting priority dstnat; "
        f"{family} daddr {service} dnat to {lab.pod('p2a').address(version)}; }}; }}",
    )
    try:
        with Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), service, 20)
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
        assert seen.esp(*NODES[version])
    finally:
        run(f"nsenter --net=/run/netns/n1 nft delete table {family} services")


@pytest.mark.parametrize(("family", "version"), [("ip", 4), ("ip6", 6)], ids=["4", "6"])
def test_a_masquerading_node_does_not_undo_encryption(lab, family, version):
    run(
        "nsenter --net=/run/netns/n1 nft -f -",
        f'table {family} cni {{ chain post {{ type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }}; }}',
    )
    try:
        count, seen = talk(lab, "p1b", "p2b", version)
        target = lab.pod("p2b").address(version)
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
        assert not [frame for frame in seen.frames if frame.spi is None and frame.dst == target]
    finally:
        run(f"nsenter --net=/run/netns/n1 nft delete table {family} cni")


def test_our_nft_tables_that_a_firewall_flushes_as_it_starts_are_back_at_once(lab):
    from kmesh.launcher.daemon import PERIOD  # noqa: PLC0415 # as above

    lab.label("")
    began = time.monotonic()
    lab.label("Kmesh")  # a pass is made after this: without any notification the next one is PERIOD later
    lab.wait_managed(lab.pod("p2b").address(4))
    inside_n1 = "nsenter --net=/run/netns/n1 nft"
    run(f"{inside_n1} flush ruleset")
    took = wait_for("our tables", lambda: run(f"{inside_n1} list ruleset").count("rt ipsec exists snat") == 2)
    print(f"back after {took:.1f} s")
    assert time.monotonic() - began < PERIOD
    count, seen = talk(lab, "p1b", "p2b", 4)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_a_node_whose_firewall_writes_marks_as_calico_and_kubernetes_do_still_decrypts(lab):
    run(
        "nsenter --net=/run/netns/n2 nft -f -",
        """table inet others {
        chain pre { type filter hook prerouting priority raw; meta mark set meta mark & 0xfff0ffff; }
        chain services { type filter hook prerouting priority dstnat; meta mark set meta mark | 0x4000; }
        chain input { type filter hook input priority filter; meta mark set meta mark & 0xfff0ffff;
            meta mark & 0x8000 == 0x8000 drop; }
        chain post { type filter hook postrouting priority filter; meta mark set meta mark | 0x4000; }
        }""",
    )
    try:
        for version in (4, 6):
            count, seen = talk(lab, "p1a", "p2a", version)
            assert (count.lost, seen.pods_in_clear()) == (0, 0)
    finally:
        run("nsenter --net=/run/netns/n2 nft delete table inet others")


def test_a_key_replaced_under_a_flood_loses_no_packet(lab):
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 100) as four:
        with Flow(lab.pod("p3a"), lab.pod("p2b").address(6), 100) as six:
            time.sleep(1)
            assert "SPI 2" in lab.cluster.kmeshctl("secret", "create").stdout
            lab.wait_spi(2)
            time.sleep(6)
            with Capture(lab.network) as after:
                time.sleep(2)
    print(f"IPv4: sent {four.sent} lost {four.lost}; IPv6: sent {six.sent} lost {six.lost}; SPIs {seen.esp(*NODES[4])}")
    assert (four.lost, six.lost) == (0, 0)
    assert set(seen.esp(*NODES[4])) == {1, 2}
    assert set(after.esp(*NODES[4])) == set(after.esp(*reversed(NODES[4]))) == {2}
    assert seen.pods_in_clear() == 0


def test_old_sas_go_when_they_are_idle(lab):
    wait_for(
        "the SAs of SPI 1 are gone on all nodes",
        lambda: not any("spi 0x00000001" in run(f"ip -n {node} xfrm state") for node in lab.daemons),
        120,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_stops_or_dies_and_comes_back_loses_no_packet_and_compiles_nothing(lab, number):
    daemon = lab.daemons["n2"]
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 50) as count:
        time.sleep(0.5)
        daemon.stop(number)
        time.sleep(0.5)
        daemon.start()
        daemon.wait_ready()
        time.sleep(1)
    print(f"signal {number}: sent {count.sent} lost {count.lost}")
    assert count.lost == 0
    assert seen.pods_in_clear() == 0
    assert "nothing compiled" in daemon.text()


def test_flushed_policies_are_put_back_and_nothing_leaks_meanwhile(lab):
    before = lab.counters("n1")["dropped_by_guard"]
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 100) as count:
        time.sleep(0.5)
        run("ip -n n1 xfrm policy flush")
        time.sleep(6)
    print(
        f"policies flushed: sent {count.sent} lost {count.lost}, guard {lab.counters('n1')['dropped_by_guard'] - before}"
    )
    assert seen.pods_in_clear() == 0
    assert count.received > count.sent / 2


def test_flushed_states_are_healed_by_a_new_incarnation(lab):
    was = lab.cluster.info("n1")["spec"]["bootID"]
    with Capture(lab.network) as seen:
        run("ip -n n1 xfrm state flush")
        wait_for("a new incarnation", lambda: lab.cluster.info("n1")["spec"]["bootID"] != was)
        time.sleep(3)
        count = exchange(lab.pod("p1a"), lab.pod("p2a").address(4), 20)
    assert count.lost == 0
    assert seen.pods_in_clear() == 0


def test_a_node_that_leaves_takes_its_objects_and_foreign_ones_stay_and_it_can_come_back(lab):
    foreign = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x99"
    run(
        f"ip -n n3 xfrm state add {foreign} reqid 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x{'11' * 36} 128;"
        "ip -n n3 xfrm policy add src 192.0.2.0/25 dst 192.0.2.128/25 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel;"
        # Without TCX it is there already, ours.
        "nsenter --net=/run/netns/n3 tc qdisc show dev eth0 | grep -q clsact || nsenter --net=/run/netns/n3 tc qdisc add dev eth0 clsact;"
        "nsenter --net=/run/netns/n3 tc filter add dev eth0 ingress prio 5 protocol ip matchall action pass;"
        "nsenter --net=/run/netns/n3 nft add table ip theirs"
    )
    daemon = lab.daemons["n3"]
    refused = daemon.uninstall()
    assert refused.returncode == 1
    assert "a daemon keeps it; stop that one first" in refused.stderr
    assert "10.10.0.1" in run("ip -n n3 xfrm state")
    daemon.stop()
    done = daemon.uninstall()
    assert done.returncode == 0, done.stderr
    assert "0x00000099" in run("ip -n n3 xfrm state")
    assert run("ip -n n3 xfrm state").count("proto esp") == 1
    assert run("ip -n n3 xfrm policy").count("dir ") == 1
    assert "matchall" in run("nsenter --net=/run/netns/n3 tc filter show dev eth0 ingress")
    assert run("nsenter --net=/run/netns/n3 nft list tables").split() == ["table", "ip", "theirs"]
    assert not daemon.pin_root.exists()
    assert lab.cluster.info("n3") is None
    wait_for("n1 forgets n3", lambda: "10.10.0.3" not in run("ip -n n1 xfrm state"))
    daemon.start()
    daemon.wait_ready()
    wait_for("n3 is announced", lambda: lab.cluster.spi("n3") == 2)
    time.sleep(4)
    count, seen = talk(lab, "p3a", "p1a", 4)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_a_node_without_pod_cidrs_encrypts_by_its_pods_addresses(lab):
    for node in lab.network.nodes[2:]:
        lab.cluster.node(node, pod_cidrs=False)
    wait_for("n1 selects by address", lambda: "10.244.3.10/32" in run("ip -n n1 xfrm policy"))
    time.sleep(3)
    for version in (4, 6):
        count, seen = talk(lab, "p3a", "p1a", version)
        assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_un_enrolled_pods_talk_in_clear_again(lab):
    lab.label("")
    count, seen = talk(lab, "p1a", "p2a", 4)
    assert count.lost == 0
    assert seen.clear(*ends(lab, "p1a", "p2a", 4)) >= 2 * count.sent
    assert isinstance(lab.echoes["p1a"], Echo)

# SPDX-License-Identifier: Apache-2.0
"""Our nodes beside what others bring: a peer of another make, other people's programs, packets that hurt."""

import os
import socket
from contextlib import contextmanager

import pytest

from tests.e2e.telling import wait_ready, wait_reason
from tests.kernel import tiny_bpf
from tests.lab.by_hand import ByHand
from tests.lab.capture import Capture
from tests.lab.cluster import wait_for
from tests.lab.frames import ethernet, inject, ipv4, mac_of
from tests.lab.kernels import KERNEL, TCX
from tests.lab.network import inside, run
from tests.lab.traffic import Echo, exchange

HAND = "n4"
SENT = 20
N2 = mac_of(2)


# --- a peer made by hand -----------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(enrolled):
    """Node n4 with pod p4a, set up with ip and nft only, a member of the cluster by what it publishes."""
    lab = enrolled
    psk = os.urandom(36).hex()
    before = lab.cluster.spi("n1")
    assert lab.cluster.kmeshctl("secret", f"--key={psk}").returncode == 0
    lab.wait_spi(before + 1)
    node = lab.network.add_node()
    lab.cluster.node(node)
    pod = lab.network.add_pod("p4a", node, 10)
    echo = Echo(pod)
    lab.cluster.pod(pod)
    spi = before + 1
    made = ByHand(lab.cluster, node, lab.network.nodes[0])
    made.take_key(psk, spi)
    made.send_with(spi)
    lab.wait_managed(pod.address(4))
    wait_for("n1 sends to it", lambda: "src 10.10.0.1 dst 10.10.0.4" in run("ip -n n1 xfrm policy"))
    yield pod, spi
    echo.close()
    lab.cluster.withdraw(HAND)
    lab.cluster.delete_pod("p4a")
    lab.network.delete_pod("p4a")
    lab.cluster.delete_node(HAND)
    lab.network.delete_node(node)


def test_a_peer_made_by_hand_with_keys_derived_by_hand_is_understood_both_ways_without_esn(enrolled, by_hand):
    lab, (pod, spi) = enrolled, by_hand
    with Capture(lab.network) as seen:
        to_it = exchange(lab.pod("p1a"), pod.address(4), SENT)
        from_it = exchange(pod, lab.pod("p1b").address(4), SENT)
    print(f"by hand: to it {to_it}, from it {from_it}, ESP {seen.esp('10.10.0.1', '10.10.0.4')}")
    assert (to_it.lost, from_it.lost, seen.pods_in_clear()) == (0, 0, 0)
    assert set(seen.esp("10.10.0.1", "10.10.0.4")) == set(seen.esp("10.10.0.4", "10.10.0.1")) == {spi}
    ours = run("ip -n n1 xfrm state list dst 10.10.0.4")
    assert "esn" not in ours
    assert "replay-window 0" in ours


# --- other people's policies and programs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "undo", "words"),
    [
        (
            "policy add dst 10.244.2.10 dir out priority 1 action allow",
            "policy delete dst 10.244.2.10 dir out",
            ("10.244.2.10/32", "comes before ours"),
        ),
        ("policy setdefault fwd block", "policy setdefault fwd accept", ("XFRM drops", "setdefault fwd accept")),
    ],
    ids=["a policy", "a default"],
)
def test_what_others_have_xfrm_do_ahead_of_ours_is_named_and_lets_nothing_out(enrolled, command, undo, words):
    lab = enrolled
    pair = lab.pod("p1a"), lab.pod("p2a").address(4)
    run(f"ip -n n1 xfrm {command}")
    try:
        wait_reason(lab, "n1", *words)
        with Capture(lab.network) as seen:
            count = exchange(*pair, SENT)
        assert (count.received, seen.pods_in_clear()) == (0, 0)
    finally:
        run(f"ip -n n1 xfrm {undo}")
    wait_ready(lab, "n1")
    assert exchange(*pair, SENT).lost == 0


AHEAD, BEHIND = 0x10000, 0x20000  # bits that nobody here uses, and that ours must keep


@contextmanager
def program(mark_bits, verdict):
    fd = tiny_bpf.load(mark_bits, verdict, shift=0)
    try:
        yield fd
    finally:
        os.close(fd)


def counted(node, chain, match):
    """Count with nft what a hook of a node sees."""
    run(
        f"nsenter --net=/run/netns/{node} nft -f -",
        f"table inet look {{ chain {chain} {{ type filter hook {chain} priority -400; {match} counter; }}; }}",
    )


def packets(node):
    words = run(f"nsenter --net=/run/netns/{node} nft list table inet look").split()
    return int(words[words.index("packets") + 1])


@pytest.mark.skipif(KERNEL < TCX, reason="this kernel has no TCX")
def test_tcx_programs_of_others_ahead_and_behind_run_and_traffic_stays_encrypted(enrolled):
    lab = enrolled
    counted("n1", "prerouting", f"ip saddr 10.244.1.10 meta mark & {AHEAD | BEHIND:#x} == {AHEAD | BEHIND:#x}")
    links = []
    with inside("n1"), program(AHEAD, tiny_bpf.TC_ACT_UNSPEC) as ahead, program(BEHIND, tiny_bpf.TC_ACT_OK) as behind:
        for device in ("eth0", lab.pod("p1a").device):
            ifindex = socket.if_nametoindex(device)
            for direction in (tiny_bpf.TCX_INGRESS, tiny_bpf.TCX_EGRESS):
                links.append(tiny_bpf.attach(ahead, ifindex, direction, first=True))
                links.append(tiny_bpf.attach(behind, ifindex, direction, first=False))
    try:
        with Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT)
        print(f"TCX among others: {count}, passed both others {packets('n1')}")
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
        assert packets("n1") >= SENT
    finally:
        for link in links:
            os.close(link)
        run("nsenter --net=/run/netns/n1 nft delete table inet look")


@pytest.mark.skipif(KERNEL < TCX, reason="this kernel has no TCX")
def test_tcx_programs_of_others_that_come_ahead_and_end_the_chain_get_round_ours_for_a_moment_only(enrolled):
    lab = enrolled
    links = []
    with inside("n1"), program(AHEAD, tiny_bpf.TC_ACT_OK) as ahead:
        for device in ("eth0", lab.pod("p1a").device):
            for direction in (tiny_bpf.TCX_INGRESS, tiny_bpf.TCX_EGRESS):
                links.append(tiny_bpf.attach(ahead, socket.if_nametoindex(device), direction, first=True))
    try:
        there, back = (lab.pod("p1a"), lab.pod("p2a").address(4)), (lab.pod("p2a"), lab.pod("p1a").address(4))
        wait_for("ours are ahead again", lambda: exchange(*there, 3).lost == 0)
        with Capture(lab.network) as seen:
            counts = [exchange(*pair, SENT) for pair in (there, back)]
        assert ([count.lost for count in counts], seen.pods_in_clear()) == ([0, 0], 0)
    finally:
        for link in links:
            os.close(link)


def test_clsact_filters_of_others_ahead_and_behind_run_and_traffic_stays_encrypted(enrolled):
    lab = enrolled
    pins = lab.daemons["n2"].pin_root
    esp_seen_by_both = f"ip protocol esp meta mark & {AHEAD | BEHIND:#x} == {AHEAD | BEHIND:#x}"
    counted("n2", "prerouting", esp_seen_by_both)
    places = {"ahead": ("pref 1 handle 1", AHEAD), "behind": ("pref 5 handle 1", BEHIND)}
    try:
        for name, (place, bits) in places.items():
            with program(bits, tiny_bpf.TC_ACT_UNSPEC) as fd:
                tiny_bpf.pin(fd, pins / name)
            for device in ("eth0", lab.pod("p2a").device):
                # Not `tc -n`: it hides bpffs.
                run(
                    f"nsenter --net=/run/netns/n2 tc filter add dev {device} ingress {place} bpf da object-pinned {pins / name}"
                )
        with Capture(lab.network) as seen:
            count = exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT)
        print(f"clsact among others: {count}, ESP passed both others {packets('n2')}")
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
        assert packets("n2") >= SENT
    finally:
        for name, (place, _) in places.items():
            for device in ("eth0", lab.pod("p2a").device):
                run(f"nsenter --net=/run/netns/n2 tc filter del dev {device} ingress {place} bpf || :")
            (pins / name).unlink(missing_ok=True)
        run("nsenter --net=/run/netns/n2 nft delete table inet look")


# --- packets that hurt parsers -----------------------------------------------------------------------------------

PADDED_OPTIONS_HEADER = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # next header filled in by the kernel, PadN


@pytest.mark.parametrize(
    ("version", "options", "size"),
    [
        (4, (socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1, 1, 1, 0])), 64),
        (6, (socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, PADDED_OPTIONS_HEADER), 64),
        (6, (socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, PADDED_OPTIONS_HEADER), 64),
        (4, None, 4000),
        (6, None, 4000),
    ],
    ids=["IPv4 options", "IPv6 destination options", "IPv6 hop-by-hop options", "IPv4 fragments", "IPv6 fragments"],
)
def test_options_extension_headers_and_fragments_are_encrypted_like_any_other(enrolled, version, options, size):
    lab = enrolled
    # Routers do not fragment IPv6: the sender learns the tunnel's path MTU from the first packets that do not fit.
    exchange(lab.pod("p1a"), lab.pod("p2a").address(version), 3, size=size)
    with Capture(lab.network) as seen:
        count = exchange(lab.pod("p1a"), lab.pod("p2a").address(version), SENT, size=size, options=options)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    assert sum(seen.esp(*[("10.10.0.1", "10.10.0.2"), ("fd00:10::1", "fd00:10::2")][version == 6]).values()) >= SENT


@pytest.mark.parametrize("vlan", [None, 7], ids=["untagged", "VLAN tag"])
def test_clear_text_that_pretends_to_come_from_a_managed_pod_is_dropped_and_counted(enrolled, vlan):
    lab = enrolled
    forged = ipv4("10.244.1.10", "10.244.2.10", socket.IPPROTO_UDP, bytes(8))
    before = lab.counters("n2")["dropped_clear_text"]
    inject(2, ethernet(N2, forged, vlan=vlan), SENT)
    assert lab.counters("n2")["dropped_clear_text"] - before == SENT


def test_esp_of_strangers_is_counted_and_harms_nobody(enrolled):
    lab = enrolled
    stranger = ipv4("10.10.0.77", "10.10.0.2", socket.IPPROTO_ESP, bytes([0, 0, 0, 1, 0, 0, 0, 9]) + bytes(48))
    forged = ipv4("10.10.0.1", "10.10.0.2", socket.IPPROTO_ESP, bytes([0, 0, 0, 1, 0, 0, 0, 9]) + bytes(48))
    before = lab.counters("n2")
    inject(2, ethernet(N2, stranger), SENT)
    inject(2, ethernet(N2, forged), SENT)
    after = lab.counters("n2")
    assert after["esp_unknown_peer"] - before["esp_unknown_peer"] == SENT
    assert after["esp_known_peer"] - before["esp_known_peer"] == SENT
    assert after["decrypted"] == before["decrypted"]
    count = exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT)
    assert count.lost == 0
    assert lab.counters("n2")["decrypted"] - after["decrypted"] >= SENT


def test_packets_cut_short_are_counted_and_harm_nobody(enrolled):
    lab = enrolled
    before = lab.counters("n2")["parse_failure"]
    for kind, first in ((b"\x08\x00", 0x45), (b"\x86\xdd", 0x60)):
        inject(2, ethernet(N2, bytes([first]) + bytes(11), kind), SENT)
    assert lab.counters("n2")["parse_failure"] - before == 2 * SENT
    assert exchange(lab.pod("p1a"), lab.pod("p2a").address(6), SENT).lost == 0

# SPDX-License-Identifier: Apache-2.0
"""Ours stays in place: what somebody removes or alters is back within a second, and forged sources lead nowhere."""

import shutil
import socket
import time

import pytest

from tests.lab.capture import Capture
from tests.lab.cluster import wait_for
from tests.lab.network import inside, run
from tests.lab.traffic import Flow, exchange

SENT = 20


def test_links_that_somebody_unpins_detach_nothing(enrolled):
    lab = enrolled
    links = lab.daemons["n1"].pin_root / "links"
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 100) as count:
        time.sleep(0.5)
        for pin in links.iterdir():
            pin.unlink()
        wait_for("they are pinned again", lambda: any(links.iterdir()))
        time.sleep(1)
    print(f"links unpinned: sent {count.sent} lost {count.lost} in clear {seen.pods_in_clear()}")
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_an_entry_that_somebody_removes_from_the_pod_map_is_back_within_a_second_or_two(enrolled):
    from ipaddress import ip_address  # noqa: PLC0415 # in the VM, each import at the head costs seconds

    from kmesh_bpf import open_maps  # noqa: PLC0415

    lab = enrolled
    target = lab.pod("p2a").address(4)
    maps = open_maps(lab.daemons["n1"].pin_root)
    try:
        with Capture(lab.network) as seen, Flow(lab.pod("p1a"), target, 100) as count:
            time.sleep(0.5)
            maps.delete_pod(ip_address(target))
            took = wait_for("the entry is back", lambda: ip_address(target) in maps.pods())
            time.sleep(1)
    finally:
        maps.close()
    print(
        f"entry removed: back after {took:.1f} s, sent {count.sent} lost {count.lost} in clear {seen.pods_in_clear()}"
    )
    assert took < 5  # a second, under emulation
    assert seen.pods_in_clear() < 500


def test_a_pin_root_that_somebody_removes_is_made_again_and_nothing_leaves_in_clear(enrolled):
    lab = enrolled
    daemon = lab.daemons["n1"]
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 100) as count:
        time.sleep(0.5)
        shutil.rmtree(daemon.pin_root)
        took = wait_for("it is there again", lambda: len(list(daemon.pin_root.glob("links/*"))) > 1)
        time.sleep(2)
    print(
        f"pin root removed: back after {took:.1f} s, sent {count.sent} lost {count.lost} clear {seen.pods_in_clear()}"
    )
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    daemon.stop()
    daemon.start()
    daemon.wait_ready()
    assert "nothing compiled" in daemon.text()
    assert exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT).lost == 0


def udp(src, dst):
    payload = b"\x00\x07\x00\x63\x00\x10\x00\x00" + bytes(8)
    header = bytes([0x45, 0]) + (20 + len(payload)).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, 17, 0, 0])
    header += socket.inet_aton(src) + socket.inet_aton(dst)
    words = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (words & 0xFFFF) + (words >> 16)
    return header[:10] + (~total & 0xFFFF).to_bytes(2, "big") + header[12:] + payload


@pytest.mark.parametrize("forged", ["p2a", "p1a", "stranger"])
def test_a_managed_pod_s_device_carries_no_address_but_its_own(enrolled, forged):
    """Of a pod of another node, of its neighbour, of nobody at all."""
    lab = enrolled
    src = "192.0.2.7" if forged == "stranger" else lab.pod(forged).address(4)
    pod, victim = lab.pod("p1b"), lab.pod("p2b" if forged == "p1a" else "p1a")
    gateway = run("ip -n n1 link show vp1b | grep -o 'link/ether [0-9a-f:]*'").split()[1]
    mac = bytes.fromhex(gateway.replace(":", ""))
    before = lab.counters("n1")["dropped_spoofed"]
    with inside(pod.name), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for _ in range(SENT):
            raw.send(mac + b"\x02\0\0\0\0\x0f" + b"\x08\x00" + udp(src, victim.address(4)))
    time.sleep(0.5)
    assert lab.counters("n1")["dropped_spoofed"] - before == SENT
    assert exchange(pod, lab.pod("p2a").address(4), SENT).lost == 0

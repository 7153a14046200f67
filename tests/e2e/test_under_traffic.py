# SPDX-License-Identifier: Apache-2.0
"""Pods and nodes that come and go while others talk. Counts are printed; what must not happen is asserted."""

import time

from tests.lab.capture import Capture
from tests.lab.cluster import wait_for
from tests.lab.network import run
from tests.lab.traffic import Flow, exchange

NODES = ("10.10.0.1", "10.10.0.2")


def report(what, count, seen=None):
    clear = "" if seen is None else f", pods in clear {seen.pods_in_clear()}"
    print(f"{what}: sent {count.sent} lost {count.lost}{clear}")


def test_pods_enrolled_under_traffic_go_from_clear_to_esp_and_stay_there(lab):
    lab.label("")
    target = lab.pod("p2a").address(4)
    with Flow(lab.pod("p1a"), target, 100) as count:
        time.sleep(1)
        assert count.lost < 20
        before = count.lost
        lab.label("Kmesh")
        time.sleep(1)
        settled = count.lost
        with Capture(lab.network) as seen:
            time.sleep(2)
    report("enrolled", count, seen)
    print(f"lost before {before}, while the label spread {settled - before}")
    assert seen.pods_in_clear() == 0
    assert set(seen.esp(*NODES)) == set(seen.esp(*reversed(NODES))) == {lab.cluster.spi("n1")}
    assert count.lost - settled <= 1  # one may be under way when it is asked


def test_pods_un_enrolled_under_traffic_go_back_to_clear(enrolled):
    lab = enrolled
    a, b = lab.pod("p1a").address(4), lab.pod("p2a").address(4)
    with Flow(lab.pod("p1a"), b, 100) as count:
        time.sleep(1)
        lab.label("")
        time.sleep(1)
        settled = count.lost
        with Capture(lab.network) as seen:
            time.sleep(2)
    report("un-enrolled", count, seen)
    assert count.lost - settled <= 1
    assert seen.clear(a, b) > 100
    assert not seen.esp(*NODES)


def test_a_pod_deleted_and_re_created_with_its_address_under_traffic_is_encrypted_again(enrolled):
    lab = enrolled
    address = lab.pod("p2b").address(4)
    with Flow(lab.pod("p1a"), address, 100) as count, Flow(lab.pod("p1b"), lab.pod("p2a").address(4), 100) as other:
        time.sleep(0.5)
        with Capture(lab.network) as going:
            lab.delete_pod("p2b")
            lab.wait_managed(address, managed=False)
            lab.add_pod("p2b", 2, 11)
            lab.wait_managed(address)
            wait_for(
                "its device has its program",
                lambda: "clsact" in run("nsenter --net=/run/netns/n2 tc qdisc show dev vp2b"),
            )
        time.sleep(1)
        settled = count.lost
        with Capture(lab.network) as seen:
            time.sleep(2)
    report("deleted and re-created", count, seen)
    report("others meanwhile", other)
    # While it was nobody's, its address was sent to in clear, and rightly so: nobody was there to answer.
    assert going.clear(lab.pod("p1b").address(4), lab.pod("p2a").address(4)) == 0
    assert seen.pods_in_clear() == 0
    assert count.lost - settled <= 1
    assert other.lost == 0


def test_a_node_whose_announcement_somebody_deletes_announces_itself_anew_and_is_talked_to_under_new_keys(enrolled):
    lab = enrolled
    was = lab.cluster.info("n2")["spec"]["bootID"]
    with Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 100) as count, Capture(lab.network) as seen:
        time.sleep(0.5)
        lab.cluster.withdraw("n2")
        wait_for(
            "a new incarnation", lambda: (lab.cluster.info("n2") or {"spec": {"bootID": was}})["spec"]["bootID"] != was
        )
        time.sleep(4)
        settled = count.lost
        time.sleep(2)
    report("announcement deleted", count, seen)
    assert seen.pods_in_clear() == 0
    assert count.lost - settled <= 1
    assert count.received > count.sent / 2


def test_a_daemon_that_comes_back_with_other_settings_replaces_its_programs_without_a_gap(enrolled):
    lab = enrolled
    daemon = lab.daemons["n2"]
    with Capture(lab.network) as seen, Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 50) as count:
        for flags in (("--permissive",), ()):
            daemon.stop()
            daemon.start(*flags)
            daemon.wait_ready()
            assert "programs compiled" in daemon.text()
    report("other settings", count, seen)
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_a_node_joins_and_leaves_and_the_others_lose_nothing(enrolled):
    lab = enrolled
    with (
        Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 50) as four,
        Flow(lab.pod("p3a"), lab.pod("p1b").address(6), 50) as six,
    ):
        node = lab.join()
        pod = lab.add_pod("p4a", node.index, 10)
        lab.wait_managed(pod.address(4))
        wait_for("all know n4", lambda: all("10.10.0.4" in run(f"ip -n {n} xfrm policy") for n in ("n1", "n2", "n3")))
        time.sleep(3)
        for version in (4, 6):
            with Capture(lab.network) as seen:
                there = exchange(pod, lab.pod("p1a").address(version), 20)
                back = exchange(lab.pod("p3b"), pod.address(version), 20)
            report(f"joined, from it, IPv{version}", there, seen)
            report(f"joined, to it, IPv{version}", back, seen)
            assert (there.lost, back.lost, seen.pods_in_clear()) == (0, 0, 0)
        lab.delete_pod("p4a")
        lab.leave(node)
        wait_for("all forget n4", lambda: not any("10.10.0.4" in run(f"ip -n {n} xfrm state") for n in lab.daemons))
    report("others, IPv4", four)
    report("others, IPv6", six)
    assert (four.lost, six.lost) == (0, 0)

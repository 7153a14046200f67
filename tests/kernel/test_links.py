# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses and their changes, in namespaces of the test's own."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from kmesh_bpf.core import devices
from kmesh_bpf.core.state import Link, Program
from kmesh_bpf.errors import DecodeError, KernelError
from kmesh_bpf.kernel import links as module
from kmesh_bpf.kernel.links import (
    FRESH,
    LONGEST_LISTED,
    FarEnd,
    Links,
    LinkWatcher,
    far_addresses,
    list_links,
    open_iproute,
    open_socket,
)
from tests.kernel.device import by_name, links
from tests.lab.network import inside, run


def test_a_veth_whose_other_end_lives_elsewhere_is_told_from_one_at_home(
    netns: str, new_netns: Callable[[], str]
) -> None:
    run(f"ip link add pod0 type veth peer name eth0 netns {new_netns()}; ip link add near type veth peer name far")
    found = by_name()
    assert {name: (link.kind, link.peer_elsewhere) for name, link in found.items()} == {
        "lo": ("", False),
        "pod0": ("veth", True),
        "near": ("veth", False),
        "far": ("veth", False),
    }


def test_a_bridge_port_is_found_like_any_other_veth(netns: str, new_netns: Callable[[], str]) -> None:
    run(f"ip link add br0 type bridge; ip link add pod0 type veth peer name eth0 netns {new_netns()}")
    run("ip link set pod0 master br0")
    found = by_name()
    assert found["br0"].kind == "bridge"
    assert found["pod0"].peer_elsewhere


def test_a_tunnel_made_in_another_namespace_is_no_veth_with_an_end_elsewhere(
    netns: str, new_netns: Callable[[], str]
) -> None:
    other = new_netns()
    run(f"ip link add over0 type vxlan id 7 dstport 4789 local 127.0.0.1; ip link set over0 netns {other}")
    with inside(other):
        found = by_name()["over0"]
    assert (found.kind, found.peer_elsewhere) == ("vxlan", False)


def test_only_addresses_of_global_scope_and_of_this_end_are_given(netns: str) -> None:
    run("ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up")
    run("ip addr add 10.1.0.1/24 dev d0; ip addr add 10.2.0.1 peer 10.2.0.2/32 dev d0")
    run("ip addr add 169.254.7.7/16 scope link dev d0; ip addr add fd00::1/64 dev d0 nodad")
    assert set(by_name()["d0"].addresses) == {ip_address(text) for text in ("10.1.0.1", "10.2.0.1", "fd00::1")}
    assert by_name()["lo"].addresses == ()


def test_an_overlay_device_is_told_by_its_kind(netns: str) -> None:
    run("ip link add over0 type vxlan dstport 4789 external")
    assert by_name()["over0"].kind == "vxlan"


def test_a_name_that_is_no_utf8_is_a_name_all_the_same(netns: str) -> None:
    run("ip link add d\udcff type bridge")
    assert by_name()["d\udcff"].kind == "bridge"


@pytest.mark.parametrize("fails", [NetlinkError(16, "busy"), OSError(16, "busy")])
def test_a_list_that_the_kernel_refuses_is_an_error_that_names_it(netns: str, fails: Exception) -> None:
    def refuse(**_: object) -> None:
        raise fails

    with open_iproute() as ip, open_socket() as sock:
        ip.get_links = refuse
        with pytest.raises(KernelError, match="list network devices"):
            list_links(ip, sock)


def test_a_list_that_changed_under_way_is_asked_for_again_and_not_for_ever(netns: str) -> None:
    with open_iproute() as ip, open_socket() as sock:
        real, interrupted = ip.get_addr, [True]

        def get_addr() -> list[dict[str, object]]:
            found = list(real())
            if interrupted.pop() if interrupted else False:
                found[0]["header"]["flags"] |= 0x10  # NLM_F_DUMP_INTR
            return found

        run("ip link set lo up")
        ip.get_addr = get_addr
        assert list_links(ip, sock) == links()
        interrupted[:] = [True] * 99
        with pytest.raises(DecodeError, match="addresses changed during each"):
            list_links(ip, sock)


def test_two_hundred_devices_are_listed_whole(netns: str) -> None:
    run("ip -b -", "\n".join(f"link add a{index} type veth peer name b{index}" for index in range(100)))
    found = by_name()
    assert len(found) == 201
    assert len({link.ifindex for link in found.values()}) == 201


def test_what_is_listed_leads_to_attachments_for_pod_and_uplink(netns: str, new_netns: Callable[[], str]) -> None:
    there = {name: new_netns() for name in ("eth0", "pod0")}
    for name, other in there.items():
        run(f"ip link add {name} type veth peer name there netns {other}")
    run("ip addr add 10.10.0.1/24 dev eth0")
    run(f"ip -n {there['pod0']} addr add 10.244.1.7/24 dev there")
    wanted = devices.decide(links(), [ip_address("10.10.0.1")], (), [ip_address("10.244.1.7")])
    assert {(one.device, one.program) for one in wanted.attachments} == {
        ("lo", Program.MARK_DECRYPT),
        ("lo", Program.INNER_GUARD),
        ("eth0", Program.MARK_DECRYPT),
        ("eth0", Program.LEAK_GUARD),
        ("pod0", Program.MARK_ENCRYPT),
        ("pod0", Program.POD_GUARD),
    }
    assert wanted.sources == {ip_address("10.244.1.7"): socket.if_nametoindex("pod0")}
    assert wanted.problems == ()


@pytest.mark.parametrize(
    "change",
    [
        "ip link add more type veth peer name evenmore",
        "ip link del d0",
        "ip addr add 10.1.0.1/24 dev d0",
        "ip addr add fd00::1/64 dev d0 nodad",
        "ip link set d0 name renamed",
    ],
)
def test_each_kind_of_change_is_told_once(netns: str, change: str) -> None:
    run("ip link add d0 type veth peer name d1")
    with LinkWatcher() as watcher:
        assert not watcher.drain()
        run(change)
        assert select.select([watcher], [], [], 5)[0]
        assert watcher.drain()
        assert not watcher.drain()


@pytest.mark.parametrize("gone", ["tc filter del dev d0 ingress", "tc qdisc del dev d0 clsact"])
def test_a_filter_or_qdisc_that_goes_is_told_and_a_program_that_comes_is_not(netns: str, gone: str) -> None:
    run("ip link add d0 type veth peer name d1")
    with LinkWatcher() as watcher:
        run("tc qdisc add dev d0 clsact; tc filter add dev d0 ingress prio 7 bpf bytecode '1,6 0 0 4294967295,' da")
        assert not watcher.drain()
        run(gone)
        assert select.select([watcher], [], [], 5)[0]
        assert watcher.drain()


def test_a_device_that_comes_from_another_namespace_is_told(netns: str, new_netns: Callable[[], str]) -> None:
    other = new_netns()
    with LinkWatcher() as watcher:
        run(f"ip -n {other} link add eth0 type veth peer name pod0 netns {netns}")
        assert select.select([watcher], [], [], 5)[0]
        assert watcher.drain()


def test_changes_elsewhere_are_not_told(netns: str, new_netns: Callable[[], str]) -> None:
    other = new_netns()
    with LinkWatcher() as watcher:
        run(f"ip -n {other} link add near type veth peer name far")
        assert not watcher.drain()


def test_an_overrun_counts_as_a_change(netns: str) -> None:
    with LinkWatcher() as watcher:
        # 4 MB of buffer hold a few thousand notifications of some 2 kB.
        run("ip -b -", "link add d0 type veth peer name d1\n" + "link set d0 alias x\nlink set d0 alias y\n" * 5000)
        assert watcher.drain()
        assert not watcher.drain()


TOLD_WITHIN = 2.0
"""Seconds: far less than a list serves without any notification, so that it is one that has come."""


def settled(cached: Links) -> tuple[Link, ...]:
    """What is listed, as if no device were fresh."""
    return tuple(replace(link, fresh=False) for link in cached.list())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """An entry for each time that the kernel was asked for its devices."""
    made: list[object] = []
    real = Links._list_devices

    def count(self: Links, now: float) -> None:
        made.append(now)
        real(self, now)

    monkeypatch.setattr(Links, "_list_devices", count)
    return made


def test_devices_are_listed_again_after_whatever_changes_them_and_not_otherwise(
    netns: str, new_netns: Callable[[], str], counted: list[object]
) -> None:
    one, other = new_netns(), new_netns()
    changes = [
        f"ip link add pod0 type veth peer name eth0 netns {one}",
        "ip link set pod0 name pod1",
        "ip link set pod1 up",
        "ip addr add 10.1.0.1/24 dev pod1",
        "ip addr add fd00::1/64 dev pod1 nodad",
        "ip addr del 10.1.0.1/24 dev pod1",
        f"ip -n {one} link set eth0 netns {other}",
        f"nsenter --net=/run/netns/{other} ip link set eth0 netns {netns}",
        f"ip link set eth0 netns {one}",
        "ip link add br0 type bridge",
        f"ip -n {one} link del eth0",
    ]
    with closing(Links()) as cached:
        for change in changes:
            run(change)
            # The kernel tells of an IPv6 address from a work queue (addrconf_dad_work) when it stands in lists already.
            told_by = time.monotonic() + TOLD_WITHIN
            while settled(cached) != links() and time.monotonic() < told_by:
                time.sleep(0.01)
            assert settled(cached) == links(), change
            time.sleep(0.1)  # a carrier that comes up, and what IPv6 does about it, is told a little later
            cached.list()
            before = len(counted)
            assert settled(cached) == links(), change
            assert len(counted) == before, f"listed again though nothing had changed since: {change}"


def test_devices_are_listed_again_after_some_time_whatever_notifications_say(netns: str, counted: list[object]) -> None:
    now = 100.0
    with closing(Links(lambda: now)) as cached:
        for passed, times in ((0.0, 1), (LONGEST_LISTED, 1), (0.1, 2), (LONGEST_LISTED, 2), (1.0, 3)):
            now += passed
            cached.list()
            assert len(counted) == times


def test_a_list_that_failed_is_not_served(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("list", "network devices", 5, "no")

    with closing(Links()) as cached:
        before = cached.list()
        run("ip link add br0 type bridge")
        with monkeypatch.context() as patched:
            patched.setattr(module, "_devices", refuse)
            with pytest.raises(KernelError):
                cached.list()
            with pytest.raises(KernelError):
                cached.list()
        assert {link.name for link in cached.list()} == {link.name for link in before} | {"br0"}


def test_addresses_of_the_other_end_are_asked_for_in_its_namespace(netns: str, new_netns: Callable[[], str]) -> None:
    there = new_netns()
    run(
        f"ip link add pod0 type veth peer name eth0 netns {there}; ip link add pod1 type veth peer name eth1 netns {there}"
    )
    assert by_name()["pod0"].far_addresses == ()
    run(f"ip -n {there} addr add 10.244.1.7/24 dev eth0; ip -n {there} addr add fd00:244::7/64 dev eth0 nodad")
    run(f"ip -n {there} addr add 169.254.1.1/32 dev eth0 scope link; ip -n {there} link set eth0 up")
    found = by_name()
    assert set(found["pod0"].far_addresses or ()) == {ip_address("10.244.1.7"), ip_address("fd00:244::7")}
    assert (found["pod1"].far_addresses, found["lo"].far_addresses) == ((), None)


def test_an_address_that_the_other_end_gets_later_is_found_though_nobody_tells(
    netns: str, new_netns: Callable[[], str], counted: list[object]
) -> None:
    there, now = new_netns(), 100.0
    with closing(Links(lambda: now)) as cached:
        cached.list()
        run(f"ip link add pod0 type veth peer name eth0 netns {there}")
        (pod,) = (one for one in cached.list() if one.name == "pod0")
        assert (pod.far_addresses, pod.fresh) == ((), True)
        time.sleep(0.1)
        cached.list()
        before = len(counted)
        now += FRESH
        (pod,) = (one for one in cached.list() if one.name == "pod0")
        assert (pod.far_addresses, pod.fresh) == ((), False)
        run(f"ip -n {there} addr add 10.244.1.7/24 dev eth0")
        (pod,) = (one for one in cached.list() if one.name == "pod0")
        assert pod.far_addresses == (ip_address("10.244.1.7"),)
        assert len(counted) == before
        run(f"ip -n {there} addr add 10.244.1.8/24 dev eth0")
        (pod,) = (one for one in cached.list() if one.name == "pod0")
        assert pod.far_addresses == (ip_address("10.244.1.7"),), "one that has an address is asked rarely"
        now += LONGEST_LISTED
        (pod,) = (one for one in cached.list() if one.name == "pod0")
        assert len(pod.far_addresses or ()) == 2


def test_the_second_address_of_a_device_that_has_just_come_is_found_with_the_next_list(
    netns: str, new_netns: Callable[[], str]
) -> None:
    there, now = new_netns(), 100.0
    with closing(Links(lambda: now)) as cached:
        cached.list()
        run(f"ip link add pod0 type veth peer name eth0 netns {there}; ip -n {there} addr add 10.244.1.7/24 dev eth0")
        for address in ("10.244.1.7", "fd00:244::7"):
            run(f"ip -n {there} addr replace {address}/64 dev eth0" if ":" in address else "true")
            (pod,) = (one for one in cached.list() if one.name == "pod0")
            assert ip_address(address) in (pod.far_addresses or ())


def test_the_other_end_of_a_namespace_that_is_not_ours_to_ask_is_unknown(netns: str) -> None:
    with open_socket() as sock:
        assert far_addresses(sock, FarEnd(4711, 2)) is None


def test_a_bridge_s_ports_name_it(netns: str) -> None:
    run("ip link add br0 type bridge; ip link add d0 type veth peer name d1; ip link set d0 master br0")
    found = by_name()
    assert (found["d0"].master, found["d1"].master) == (found["br0"].ifindex, 0)

"""Devices, addresses and their changes, in namespaces of the test's own."""

import select
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address

import pytest
from pyroute2 import IPRoute

from kmesh_bpf.core import devices
from kmesh_bpf.core.state import Link, Program
from kmesh_bpf.errors import KernelError
from kmesh_bpf.kernel import links as module
from kmesh_bpf.kernel.links import LONGEST_LISTED, Links, LinkWatcher
from tests.kernel.device import links
from tests.lab.network import inside, run


def by_name() -> dict[str, Link]:
    return {link.name: link for link in links()}


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


def test_two_hundred_devices_are_listed_whole(netns: str) -> None:
    run("ip -b -", "\n".join(f"link add a{index} type veth peer name b{index}" for index in range(100)))
    found = by_name()
    assert len(found) == 201
    assert len({link.ifindex for link in found.values()}) == 201


def test_what_is_listed_leads_to_attachments_for_pod_and_uplink(netns: str, new_netns: Callable[[], str]) -> None:
    for name in ("eth0", "pod0"):
        run(f"ip link add {name} type veth peer name there netns {new_netns()}")
    run("ip addr add 10.10.0.1/24 dev eth0")
    wanted = devices.attachments(links(), [ip_address("10.10.0.1")], ())
    assert {(one.device, one.program) for one in wanted} == {
        ("eth0", Program.MARK_DECRYPT),
        ("eth0", Program.LEAK_GUARD),
        ("pod0", Program.MARK_ENCRYPT),
    }


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
def test_a_filter_or_qdisc_that_goes_is_told_and_one_that_comes_is_not(netns: str, gone: str) -> None:
    run("ip link add d0 type veth peer name d1")
    with LinkWatcher() as watcher:
        run("tc qdisc add dev d0 clsact; tc filter add dev d0 ingress prio 7 protocol all u32 match u32 0 0")
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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[IPRoute]:
    """An entry for each time that the kernel was asked for its devices."""
    made: list[IPRoute] = []
    real = module.list_links

    def count(ip: IPRoute) -> tuple[Link, ...]:
        made.append(ip)
        return real(ip)

    monkeypatch.setattr(module, "list_links", count)
    return made


def test_devices_are_listed_again_after_whatever_changes_them_and_not_otherwise(
    netns: str, new_netns: Callable[[], str], counted: list[IPRoute]
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
            assert cached.list() == links(), change
            time.sleep(0.1)  # a carrier that comes up, and what IPv6 does about it, is told a little later
            cached.list()
            before = len(counted)
            assert cached.list() == links(), change
            assert len(counted) == before, f"listed again though nothing had changed since: {change}"


def test_devices_are_listed_again_after_some_time_whatever_notifications_say(
    netns: str, counted: list[IPRoute]
) -> None:
    now = 100.0
    with closing(Links(lambda: now)) as cached:
        for passed, times in ((0.0, 1), (LONGEST_LISTED, 1), (0.1, 2), (LONGEST_LISTED, 2), (1.0, 3)):
            now += passed
            cached.list()
            assert len(counted) == times


def test_a_list_that_failed_is_not_served(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ip: object) -> None:
        raise KernelError("list", "network devices", 5, "no")

    with closing(Links()) as cached:
        before = cached.list()
        run("ip link add br0 type bridge")
        with monkeypatch.context() as patched:
            patched.setattr(module, "list_links", refuse)
            with pytest.raises(KernelError):
                cached.list()
            with pytest.raises(KernelError):
                cached.list()
        assert {link.name for link in cached.list()} == {link.name for link in before} | {"br0"}

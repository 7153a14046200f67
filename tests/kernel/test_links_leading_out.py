# SPDX-License-Identifier: Apache-2.0
"""Which devices lead out of the node, by their routes, and which of these XFRM does not see."""

import time
from contextlib import closing

import pytest

from kmesh_bpf.kernel.links import (
    ROUTES_LISTED,
    Links,
)
from tests.kernel.device import by_name
from tests.lab.network import run


@pytest.mark.parametrize(
    ("route", "leads"),
    [
        ("10.244.1.7 dev d0", False),
        ("10.244.1.0/24 dev d0", True),
        ("default dev d0", True),
        ("10.244.1.7 via 10.9.0.2 dev d0", True),
        ("10.244.1.7 via inet6 fe80::1 dev d0", True),
        ("10.244.1.7 dev d0 table 77", False),
        ("default via 10.9.0.2 dev d0 table 77", True),
        ("10.77.0.0/16 nexthop via 10.9.0.2 dev d0 nexthop dev d2", True),
        ("169.254.0.0/16 dev d0", False),
        ("224.0.0.0/4 dev d0", False),
        ("fd77::7 dev d0", False),
        ("fd77::/64 dev d0", True),
        ("fd77::7 via fe80::1 dev d0", True),
        ("blackhole 10.66.0.0/16", False),
    ],
)
def test_which_routes_lead_out(netns: str, route: str, leads: bool) -> None:
    run("ip link add d0 type veth peer name d1; ip link add d2 type veth peer name d3")
    run("for d in d0 d1 d2 d3; do ip link set $d up; done; ip addr add 10.9.0.1 peer 10.9.0.2/32 dev d0")
    assert not by_name()["d0"].leads_out
    run(f"ip {'-6 ' if route.startswith('fd') else ''}route add {route}")
    assert by_name()["d0"].leads_out is leads


@pytest.mark.parametrize("compat", [0, 1])
def test_a_route_by_a_nexthop_object_leads_out(netns: str, compat: int) -> None:
    run("ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up; ip addr add 10.9.0.1/32 dev d0")
    run(f"sysctl -qw net.ipv4.nexthop_compat_mode={compat}")
    run("ip nexthop add id 5 via 10.9.0.2 dev d0 onlink; ip route add 10.77.0.0/16 nhid 5")
    assert by_name()["d0"].leads_out


def test_routes_are_told_only_if_they_change_which_devices_lead_out(netns: str) -> None:
    now = 100.0
    run(
        "for d in a b; do ip link add ${d}0 type veth peer name ${d}1; ip link set ${d}0 up; ip link set ${d}1 up; done"
    )
    run("ip route add 10.1.0.0/16 dev a0")

    def leading(cached: Links) -> set[str]:
        return {link.name for link in cached.list() if link.leads_out}

    with closing(Links(lambda: now)) as cached:
        time.sleep(0.1)
        assert leading(cached) == {"a0"}
        run("ip route add 10.2.0.0/16 dev a0; ip route add 10.244.0.7 dev b0; ip route del 10.2.0.0/16 dev a0")
        assert not cached.watcher.drain()
        run("ip route add 10.3.0.0/16 dev b0")
        assert cached.watcher.drain()
        assert leading(cached) == {"a0", "b0"}
        run("ip route del 10.3.0.0/16 dev b0")
        assert not cached.watcher.drain()
        assert leading(cached) == {"a0", "b0"}, "it is in no hurry"
        now += ROUTES_LISTED + 1
        assert leading(cached) == {"a0"}


@pytest.mark.parametrize(("sysctl", "kept"), [("disable_xfrm", "xfrm_disabled"), ("disable_policy", "unchecked")])
def test_a_device_kept_from_xfrm_is_found_by_its_own_sysctl_or_that_of_all(netns: str, sysctl: str, kept: str) -> None:
    run("ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up; ip route add default dev d0")
    assert not getattr(by_name()["d0"], kept)
    for name in ("d0", "all"):
        run(f"sysctl -qw net.ipv4.conf.{name}.{sysctl}=1")
        found = by_name()
        assert getattr(found["d0"], kept)
        assert not getattr(found["d1"], kept), "nothing leaves by it"
        run(f"sysctl -qw net.ipv4.conf.{name}.{sysctl}=0")

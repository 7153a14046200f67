# SPDX-License-Identifier: Apache-2.0
"""Policies of others that come before ours, and defaults, as the kernel tells of them."""

from ipaddress import ip_network

import pytest

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.state import Direction, Mark, Rival
from kmesh_bpf.kernel import xfrm_defaults
from kmesh_bpf.kernel.netlink import NetlinkSocket
from kmesh_bpf.kernel.xfrm import Xfrm
from tests.kernel.test_policies import planned
from tests.lab.network import run


@pytest.fixture
def netlink(netns):
    sock = NetlinkSocket()
    yield sock
    sock.close()


ANY = ip_network("0.0.0.0/0")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("dst 10.244.2.10 dir out priority 1", Rival(Direction.OUT, ANY, ip_network("10.244.2.10"), Mark(0, 0), 1)),
        ("dst 0.0.0.0/0 dir fwd priority 100", Rival(Direction.FWD, ANY, ANY, Mark(0, 0), 100)),
        (
            "src 10.10.0.1/24 dir in priority 0 mark 0xd0 mask 0xff",
            Rival(Direction.IN, ip_network("10.10.0.0/24"), ANY, Mark(0xD0, 0xFF), 0),
        ),
        (
            "src fd00::/64 dst fd00:1::/64 dir out tmpl src fd00::1 dst fd00::2 proto esp reqid 1 mode tunnel",
            Rival(Direction.OUT, ip_network("fd00::/64"), ip_network("fd00:1::/64"), Mark(0, 0), 0),
        ),
        (
            "dst 10.244.2.10 dir out ptype sub priority 5000 action block",
            Rival(Direction.OUT, ANY, ip_network("10.244.2.10"), Mark(0, 0), 5000),
        ),
        ("dst 10.244.2.10 dir out ptype sub priority 1 action allow", None),
        ("src 0.0.0.0/0 dir out priority 101", None),
        ("src 0.0.0.0/0 dir out priority 1 if_id 7", None),
    ],
    ids=[
        "a pod's",
        "of our priority",
        "host bits, a mark",
        "with a template",
        "of type sub, that blocks",
        "of type sub, that does nothing",
        "behind ours",
        "of an xfrm interface",
    ],
)
def test_policies_of_others_are_found_if_they_come_before_ours(netlink, line, found):
    run(f"ip xfrm policy add {line}")
    wanted = planned()
    xfrm = Xfrm(netlink)
    assert xfrm.apply([ops.SetPolicy(one) for one in wanted.values()]) == ()
    assert {one.id: one for one in xfrm.dump_policies()} == wanted
    assert xfrm.rivals == ((found,) if found else ())


@pytest.mark.parametrize("refusing", [(), ("fwd",), ("in", "out"), ("in", "fwd", "out")])
def test_defaults_that_drop_are_found(netlink, refusing):
    assert xfrm_defaults.refusing(netlink) == frozenset()
    words = " ".join(f"{one} {'block' if one in refusing else 'accept'}" for one in ("in", "fwd", "out"))
    run(f"ip xfrm policy setdefault {words}")
    assert {one.value for one in xfrm_defaults.refusing(netlink)} == set(refusing)

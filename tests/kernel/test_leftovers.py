# SPDX-License-Identifier: Apache-2.0
"""What Go Kmesh's IPsec leaves on a node, made by `ip` and `tc` as it makes it, is named once, with the way out."""

import socket
import sys
from pathlib import Path

import pytest

from kmesh_bpf import contract
from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core import interference
from kmesh_bpf.core import operations as ops
from kmesh_bpf.kernel import leftovers
from kmesh_bpf.kernel.leftovers import GoKmesh
from kmesh_bpf.kernel.links import Links
from kmesh_bpf.kernel.netlink import NetlinkSocket, attribute
from kmesh_bpf.kernel.rules import RARELY, SOON
from kmesh_bpf.kernel.xfrm import Xfrm
from tests.kernel.test_policies import planned
from tests.lab.network import run
from tests.unit.core import mesh

POLICIES = """
ip xfrm policy add src 0.0.0.0/0 dst 10.244.1.0/24 dir in  tmpl src 10.10.0.2 dst 10.10.0.1 proto esp reqid 1 mode tunnel mark 0xd0 mask 0xffffffff
ip xfrm policy add src 0.0.0.0/0 dst 10.244.1.0/24 dir fwd tmpl src 10.10.0.2 dst 10.10.0.1 proto esp reqid 1 mode tunnel mark 0xd0 mask 0xffffffff
ip xfrm policy add src 0.0.0.0/0 dst 10.244.2.0/24 dir out tmpl src 10.10.0.1 dst 10.10.0.2 proto esp spi 1 reqid 1 mode tunnel mark 0xe0 mask 0xffffffff
"""  # fmt: skip
FILTER = (
    "ip link add up0 type veth peer name up1; tc qdisc add dev up0 clsact;"
    " tc filter add dev up0 ingress prio 1 handle 1 bpf bytecode '1,6 0 0 4294967295,' da"
)


@pytest.fixture
def now(monkeypatch):
    monkeypatch.setattr(leftovers, "GO_PINS", ())
    return [0.0]


@pytest.fixture
def go(netns, now):
    with NetlinkSocket() as sock:
        yield GoKmesh(sock, lambda: now[0])


def devices():
    links = Links()
    try:
        return links.list()
    finally:
        links.close()


def sentences(go: GoKmesh) -> list[str]:
    found = go.suspects(devices())
    return [one.sentence for one in interference.judge(found, (), [mesh.node(1).addresses[0]], 0xFF)]


def test_what_it_left_is_named_with_the_way_out_and_no_more_once_it_has_gone(go, now, tmp_path, monkeypatch):
    run("; ".join(POLICIES.strip().splitlines()))
    monkeypatch.setattr(leftovers, "GO_PINS", (tmp_path, tmp_path / "none"))
    assert sentences(go) == [
        f"Go Kmesh's IPsec: 3 policies with reqid 1 in XFRM, pins in {tmp_path}, ahead of ours; once its daemon has gone "
        "from this node (docs/migrating.md): ip xfrm policy flush; ip xfrm state flush"
    ]
    run("ip xfrm policy flush")
    now[0] += SOON
    assert sentences(go) == []


def test_what_comes_later_is_found(go, now):
    assert sentences(go) == []
    run("; ".join(POLICIES.strip().splitlines()))
    assert sentences(go) == [], "it is read rarely"
    now[0] += RARELY
    assert len(sentences(go)) == 1


def test_ours_and_other_people_s_are_none_of_its(go):
    with NetlinkSocket() as sock:
        assert Xfrm(sock).apply([ops.SetPolicy(policy) for policy in planned().values()]) == ()
    run(
        "ip xfrm policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out tmpl src 10.10.0.1 dst 10.10.0.9 proto esp reqid 1 mode tunnel;"
        "ip xfrm policy add src 10.0.0.0/8 dst 10.2.0.0/16 dir out tmpl src 10.10.0.1 dst 10.10.0.9 proto esp reqid 1 mode tunnel"
        " mark 0xe00 mask 0xf00; ip xfrm policy add src 10.0.0.0/8 dst 10.3.0.0/16 dir out action block"
    )
    run(FILTER)
    assert sentences(go) == []


@pytest.mark.parametrize(
    ("reqid", "output", "mark", "its"),
    [
        (1, 0xD0, None, True),
        (1, 0xD0, 0x1D0, False),
        (1, None, None, False),
        (1, 0xE0, None, False),
        (contract.REQID, 0xD0, None, False),
    ],
)
def test_its_sas_are_known_by_their_form(reqid, output, mark, its):
    """This kernel may have no ESP to make one; tests/e2e has."""
    info = ffi.new("struct xfrm_usersa_info *")
    info.reqid, info.id.proto = reqid, socket.IPPROTO_ESP
    body = bytes(ffi.buffer(info))
    if output is not None:
        body += attribute(lib.XFRMA_SET_MARK, output.to_bytes(4, sys.byteorder))
    if mark is not None:
        body += attribute(lib.XFRMA_MARK, bytes(ffi.buffer(ffi.new("struct xfrm_mark *", (mark, 0xFFFFFFFF)))))
    assert leftovers._is_sa(body) is its


def test_pins_alone_are_in_nobody_s_way(go, monkeypatch, tmp_path):
    monkeypatch.setattr(leftovers, "GO_PINS", (Path("/"), tmp_path))
    assert sentences(go) == []


def test_filters_are_known_by_their_names(go, monkeypatch):
    run(FILTER)
    real = leftovers.clsact.names_by_device
    monkeypatch.setattr(
        leftovers.clsact,
        "names_by_device",
        lambda: {one: ("tc_ingress-up0",) for one, names in real().items() if names},
    )
    assert sentences(go) == [
        "Go Kmesh's IPsec: filters on up0, ahead of ours; once its daemon has gone from this node (docs/migrating.md): "
        "tc filter del dev up0 ingress"
    ]

# SPDX-License-Identifier: Apache-2.0
"""scripts/dump_maps, run as a person does, over pinned maps that no daemon stands behind."""

import json
import subprocess
from ipaddress import ip_address

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core.state import Program
from tests.bpf.node import ADDRESSES, LOCAL, NODE_MARK, REMOTE, NodeUnderTest
from tests.bpf.packets import frame
from tests.lab.cluster import PINS, ROOT

INCARNATION = "6c8f8b1e-3a0a-4d52-9b7e-1f6a2c3d4e5f"
PODS = {
    "10.10.0.1": ["candidate", "own"],
    "10.10.0.2": ["ready", "candidate", "peer"],
    "10.10.0.3": ["candidate", "peer"],
    "10.244.1.10": ["local"],
    "10.244.2.10": ["remote", "ready"],
    "10.244.2.11": ["remote", "ready", "peer"],
    "10.244.3.10": ["remote"],
    "203.0.113.7": ["candidate"],
    "2001:db8:f::7": ["candidate"],
    "fd00:1::10": ["local"],
    "fd00:2::10": ["remote", "ready"],
    "fd00:2::11": ["remote", "ready", "peer"],
    "fd00:3::10": ["remote"],
    "fd00:10::1": ["candidate", "own"],
    "fd00:10::2": ["ready", "candidate", "peer"],
    "fd00:10::3": ["candidate", "peer"],
}
NO_DEVICE = 2**31 - 1
SOURCES = {"10.244.1.10": (1, "lo"), "fd00:1::10": (NO_DEVICE, "")}
PEERS = ["10.10.0.2", "fd00:10::2"]
FORMERS = {"000000000000002a": 1, "ffffffffffffffff": 4294967295}
THRESHOLDS = [32, 16, 128, 64]
SERVICES = ["10.96.0.0/16", "fd00:96::/64"]
COUNTERS = {name: 2 if name == "marked" else 0 for name in contract.COUNTERS}
ALL = ["unshare", "--mount", "bash", "-ec", f'mount --bind "$0" {PINS}; exec "$@"']
"""Lets a program find the folder named next in the place of bpffs: what is pinned beside it is not this test's."""


def dump(*arguments, prefix=()):
    """Give status, output and complaints of the script, called from somewhere else."""
    command = [*prefix, ROOT / "scripts/dump_maps", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def pinned(root):
    """Give a pin root whose programs have marked two packets; whoever filled the maps has let go of them."""
    node = NodeUnderTest(root)
    node.maps.set_identity(INCARNATION, contract.NODE_MARK_MASK)
    for version, named in ADDRESSES.items():
        node.run(Program.MARK_ENCRYPT, frame(version, named[LOCAL], named[REMOTE]))
    for address, (ifindex, _) in SOURCES.items():
        node.maps.set_source(ip_address(address), ifindex)
        node.maps.add_pod_device(ifindex)
    for pair, spi in FORMERS.items():
        node.maps.set_former(int(pair, 16), spi)
    node.maps.set_thresholds(tuple(THRESHOLDS))
    node.maps.close()
    return root


def test_the_tables_show_what_every_map_holds(pinned):
    status, out, err = dump("--pin-root", pinned)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        [str(pinned), "incarnation", INCARNATION],
        [
            "policy",
            "hash",
            "thresholds",
            "before",
            "they",
            "were",
            "lowered:",
            "hthresh4",
            "32",
            "16",
            "hthresh6",
            "128",
            "64",
        ],
        [],
        ["POD", "FLAGS"],
        *([address, *flags] for address, flags in PODS.items()),
        [],
        ["SOURCE", "DEVICE", "IFINDEX"],
        ["10.244.1.10", "lo", "1"],
        ["fd00:1::10", "(gone)", str(NO_DEVICE)],
        [],
        f"devices that carry no other source: lo (gone: {NO_DEVICE})".split(),
        [],
        ["PEER", "NODE", "ID", "NODE", "MARK", "SPI", "RETIRED", "INCARNATIONS", "PAIR"],
        *([address, "5", f"{NODE_MARK:#x}", "1", "0", "0000000000000007", "0000000000000009"] for address in PEERS),
        [],
        ["FORMER", "PAIR", "SPI"],
        *([pair, str(spi)] for pair, spi in FORMERS.items()),
        [],
        ["services:", *SERVICES],
        [],
        ["COUNTER", "PACKETS"],
        *([name, str(packets)] for name, packets in COUNTERS.items()),
    ]


def test_json_holds_the_same_under_the_names_that_its_help_tells(pinned):
    status, out, err = dump("--json", "--pin-root", pinned)
    assert (status, err) == (0, "")
    assert json.loads(out) == [
        {
            "pinRoot": str(pinned),
            "incarnation": INCARNATION,
            "thresholds": THRESHOLDS,
            "pods": [{"address": address, "flags": flags} for address, flags in PODS.items()],
            "sources": [
                {"address": address, "ifindex": ifindex, "device": device}
                for address, (ifindex, device) in SOURCES.items()
            ],
            "devices": [{"ifindex": ifindex, "device": device} for ifindex, device in SOURCES.values()],
            "peers": [
                {
                    "address": one,
                    "nodeId": 5,
                    "nodeMark": NODE_MARK,
                    "spi": 1,
                    "retired": 0,
                    "incarnations": "0000000000000007",
                    "pair": "0000000000000009",
                }
                for one in PEERS
            ],
            "formers": [{"pair": pair, "spi": spi} for pair, spi in FORMERS.items()],
            "services": SERVICES,
            "counters": COUNTERS,
        }
    ]


def test_all_shows_every_pin_root_that_stands_directly_in_bpffs_and_says_which_cannot_be_read(root):
    for name in ("b", "a", "below/c"):
        NodeUnderTest(root / name)
    status, out, err = dump("--all", "--json", prefix=[*ALL, root])
    assert (status, err) == (0, "")
    assert [one["pinRoot"] for one in json.loads(out)] == [f"{PINS}/a", f"{PINS}/b"]
    (root / "older/maps-0-4").mkdir(parents=True)
    status, out, err = dump("--all", prefix=[*ALL, root])
    assert (status, out.count("COUNTER"), len(err.splitlines())) == (1, 2, 1)
    assert f"dump_maps: {PINS}/older holds maps-0-4" in err


def test_where_nothing_is_pinned_all_says_so(root):
    root.mkdir()
    assert dump("--all", "--json", prefix=[*ALL, root]) == (1, "[]\n", f"dump_maps: no pin root of ours is in {PINS}\n")

# SPDX-License-Identifier: Apache-2.0
"""Claims are measured by what the node sees itself: on its pods' devices, and in its own kernel's peer map."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from kmesh.launcher.daemon import SETTLE

from kmesh_bpf.core.state import PodFlags
from tests.unit.cluster import kube
from tests.unit.core import mesh
from tests.unit.launcher.standin import Node

SHARED = "10.244.9.9"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.key(1)
    return made


def flags(node: Node, address: str) -> PodFlags:
    return node.memory.pods.get(ip_address(address), PodFlags(0))


def two_at_one_address(node: Node) -> None:
    node.put(kube.node(2))
    node.put(kube.pod("there", 2, addresses=[SHARED], created="2026-01-01T00:00:00Z"))
    node.put(kube.pod("here", 1, addresses=[SHARED], created="2026-02-02T00:00:00Z"))


def carrying(node: Node, *addresses: str) -> None:
    """Let the other end of the pod's device have these addresses."""
    far = tuple(map(ip_address, addresses))
    node.memory.links = (*mesh.LINKS[:2], replace(mesh.LINKS[2], far_addresses=far))


def test_without_evidence_the_older_pod_has_an_address(node):
    two_at_one_address(node)
    node.steps()
    assert PodFlags.REMOTE in flags(node, SHARED)


def test_a_pod_whose_device_carries_its_address_has_it_on_its_own_node(node):
    two_at_one_address(node)
    carrying(node, SHARED)
    node.steps()
    assert flags(node, SHARED) == PodFlags.LOCAL


def test_what_a_device_carries_now_counts_in_the_very_pass(node):
    two_at_one_address(node)
    node.steps()
    carrying(node, SHARED)
    assert node.step() > SETTLE
    assert flags(node, SHARED) == PodFlags.LOCAL


def test_what_a_pass_brings_to_light_about_a_claim_is_acted_on_at_once(node):
    two_at_one_address(node)
    node.memory.links = mesh.LINKS[:2]
    node.steps()
    carrying(node, SHARED)  # by a device that only this pass gives a pod's program
    assert node.step() == SETTLE
    assert PodFlags.REMOTE in flags(node, SHARED)
    assert node.step() > SETTLE
    assert flags(node, SHARED) == PodFlags.LOCAL


def test_what_it_brings_to_light_of_what_nobody_claims_starts_no_other_pass(node):
    node.steps()
    carrying(node, "10.244.9.10")
    assert node.step() > SETTLE


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, True),
        ({"phase": "Pending"}, False),
        ({"phase": "Succeeded"}, False),
        ({"deleting": "2026-03-03T00:00:00Z"}, False),
    ],
    ids=str,
)
def test_a_running_pod_that_no_device_carries_keeps_its_node_from_being_ready_as_long_as_it_is_managed(
    node, changes, told
):
    node.put(kube.pod("machine", 1, addresses=[SHARED], **changes))
    node.steps()
    reasons = node.recorder.record.unready
    assert [f"{SHARED} of pod default/machine: " in one for one in reasons] == [True] * told
    node.put(kube.pod("machine", 1, addresses=[SHARED], labels={"istio.io/dataplane-mode": "none"}))
    node.steps()
    assert node.recorder.record.unready == ()


def test_a_daemon_that_starts_anew_goes_by_the_tunnel_ends_that_the_kernel_knows_from_its_first_pass_on(node):
    node.put(kube.node(2))
    node.steps()
    before = dict(node.memory.peers)
    node.daemon.memory.evidence = None
    node.put(kube.pod("thief", 3, addresses=["10.10.0.2"]))
    node.steps(1)
    assert PodFlags.REMOTE not in flags(node, "10.10.0.2")
    assert node.memory.peers == before

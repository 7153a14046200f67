# SPDX-License-Identifier: Apache-2.0
"""What one node says of itself, in its KmeshNodeInfo or its Node, changes nothing of what others do among themselves."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.objects import ClusterObjects, collect, parse
from kmesh.cluster.snapshot import MODE_LABEL, build_view

from kmesh_bpf import Direction, Key, Options, Plan, evidence, make_plan
from kmesh_bpf.core.state import PodFlags
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import reconcile
from tests.unit.cluster import kube
from tests.unit.core import mesh

KEYS = {1: Key(bytes(range(36)))}
KMESH = {MODE_LABEL: "Kmesh"}
NODES = (kube.node(1), kube.node(2), kube.node_info(1), kube.node_info(2))
PODS = (kube.pod("web", 1, 10, labels=KMESH), kube.pod("api", 2, 11, labels=KMESH))
OURS = {ip_address(one["ip"]) for pod in PODS for one in pod["status"]["podIPs"]}
NODE_2 = {ip_address("10.10.0.2"), ip_address("fd00:10::2")}
TARGETS = ["10.10.0.1", "10.10.0.2", "fd00:10::2", "10.10.0.3", "10.10.0.33", *map(str, sorted(OURS, key=str))]
CIDRS = ["10.244.1.0/24", "10.244.2.0/24", "10.244.2.11/32", "10.244.3.0/24", "0.0.0.0/0", "fd00:244:2::/64", "::/0"]


def lists(values: list[str], least: int = 0) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=4, unique=True)


@st.composite
def announcements(draw) -> list[dict]:
    info = kube.node_info(3, draw(st.sampled_from([0, 1, 2, (1 << 32) - 1])))
    info["metadata"]["name"] = draw(st.sampled_from(["n3", "n0"]))
    info["metadata"]["annotations"] = draw(
        st.dictionaries(
            st.sampled_from(["kmesh.net/ipsec-node-traffic", "kmesh.net/ipsec-replay-window"]),
            st.sampled_from(["true", "64", "x"]),
        )
    )
    info["spec"]["addresses"] = draw(lists(TARGETS, 1))
    info["spec"]["podCIDRS"] = draw(lists(CIDRS))
    return [info]


@st.composite
def nodes(draw, targets: list[str]) -> dict:
    node = kube.node(3, podCIDRs=draw(lists(CIDRS)))
    node["metadata"]["name"] = draw(st.sampled_from(["n3", "n0"]))
    kinds = st.sampled_from(["InternalIP", "ExternalIP"])
    node["status"]["addresses"] = [{"type": draw(kinds), "address": one} for one in draw(lists(targets))]
    return node


def objects(*manifests) -> ClusterObjects:
    return collect(parse(one) for one in manifests)


def view(found: ClusterObjects, known=frozenset(), incarnation=""):
    return build_view(
        found, "n1", keys=KEYS, services=(), announced=1, announced_at=0.0, boot_id=incarnation, known=known
    )


EXACT, BY_CIDR = Options(), Options(max_exact=0)


def kernel(*manifests, options=EXACT) -> FakeKernel:
    made = FakeKernel(mesh.LINKS, lambda: 1000.0)
    seen = view(objects(*manifests))
    assert reconcile(made, seen, options, lambda: 1000.0, lambda: "fresh".ljust(36, "0")).converged
    return made


def plan(made: FakeKernel, *manifests, options=EXACT) -> Plan:
    seen = view(objects(*manifests), evidence(made.observe()).tunnel_ends, made.remembered or "")
    return make_plan(seen, made.observe(), options, 1000.0)


def selected(found: Plan) -> tuple:
    """Give what this node does with its own pods and those of n2: policies towards it, flags of addresses."""
    policies = {key: one for key, one in found.state.policies.items() if NODE_2 & {one.tunnel_src, one.tunnel_dst}}
    return policies, {address: flags for address, flags in found.state.pods.items() if address in OURS}


def towards_n2(found: Plan) -> tuple:
    sas = {key: one for key, one in found.state.sas.items() if NODE_2 & {one.src, one.dst}}
    peers = {address: entry for address, entry in found.state.peers.items() if address in NODE_2}
    return *selected(found), sas, peers, "n2" in found.ready_peers


def told(found: Plan) -> list[str]:
    return [str(problem) for problem in found.problems]


OF_N2 = {ip_address(one["ip"]) for one in PODS[1]["status"]["podIPs"]}
HONEST = kernel(*NODES, *PODS)
EXPECTED = towards_n2(plan(HONEST, *NODES, *PODS))


def test_the_comparison_sees_something():
    policies, flags, sas, peers, ready = EXPECTED
    assert min(map(len, (policies, flags, sas, peers))) > 1
    assert ready


@given(announcements(), nodes(TARGETS))
def test_a_node_that_comes_and_lies_in_both_its_objects_changes_nothing_between_those_that_were_there(info, node):
    assert towards_n2(plan(HONEST, *NODES, *PODS, *info, node)) == EXPECTED


def between(found: Plan) -> set:
    """Give which ways the kernel may choose for what goes to, or comes from, n2's pods; block: (None, None)."""
    ways = set()
    for one in found.state.policies.values():
        pods = one.dst if one.direction is Direction.OUT else one.src
        if one.mark.mask and any(address in pods for address in OF_N2):
            ends = (None, None) if one.block else (one.tunnel_src, one.tunnel_dst)
            ways.add((one.direction, pods.version, ends))
    return ways


HONEST_BY_CIDR = kernel(*NODES, *PODS, options=BY_CIDR)
EXPECTED_BY_CIDR = plan(HONEST_BY_CIDR, *NODES, *PODS, options=BY_CIDR)


@given(announcements(), nodes(TARGETS))
def test_nor_where_pods_are_selected_by_cidr_which_a_liar_may_have_them_lose_but_not_their_encryption(info, node):
    assert EXPECTED_BY_CIDR.by_cidr == {"n2"}
    found = plan(HONEST_BY_CIDR, *NODES, *PODS, *info, node, options=BY_CIDR)
    assert between(found) == between(EXPECTED_BY_CIDR)
    assert len(between(found)) == len(Direction) * 2, "each direction and family one way"


@given(announcements())
def test_an_announcement_for_which_no_node_object_stands_changes_nothing_on_a_node_that_knows_nobody_yet(info):
    fresh = FakeKernel(mesh.LINKS, lambda: 1000.0)
    assert selected(plan(fresh, *NODES, *PODS, *info, kube.node(3))) == selected(plan(fresh, *NODES, *PODS))


@given(announcements())
def test_nor_does_one_of_addresses_that_pods_get_only_later(info):
    before = kernel(*NODES, *info, kube.node(3))
    assert selected(plan(before, *NODES, *PODS, *info, kube.node(3)))[1] == EXPECTED[1]


@pytest.mark.parametrize("target", ["10.244.2.11", "fd00:244:2::b"])
def test_nor_what_a_node_names_besides_its_tunnel_ends_in_both_its_objects_before_a_pod_has_it(target):
    info, node = kube.node_info(3), kube.node(3)
    info["spec"]["addresses"].append(target)
    node["status"]["addresses"].append({"type": "InternalIP", "address": target})
    before = kernel(*NODES, info, node)
    assert ip_address(target) in before.peers, "it was believed as long as nobody else had it"
    found = plan(before, *NODES, *PODS, info, node)
    assert towards_n2(found)[1] == EXPECTED[1]
    assert found.state.pods[ip_address(target)] == EXPECTED[1][ip_address(target)]
    assert any(f"peer n3 claims {target}, which is of pod default/api" in str(problem) for problem in found.problems)


def out_policies(found: Plan, target: str) -> list:
    wanted = ip_address(target)
    policies = (one for one in found.state.policies.values() if one.direction is Direction.OUT and one.mark.mask)
    return [one for one in policies if one.dst.num_addresses == 1 and one.dst.network_address == wanted]


@pytest.mark.parametrize("traffic", [False, True], ids=["as a Go node", "as a node of ours"])
@pytest.mark.parametrize("target", ["10.244.2.11", "fd00:244:2::b"])
def test_what_is_sent_to_a_pod_at_an_address_that_a_node_had_before_it_is_not_sent_in_clear(target, traffic):
    """The node has it first, for nobody else claims it; and tunnels lead there when the pod comes."""
    info, node = kube.node_info(3), kube.node(3)
    info["metadata"]["annotations"] = {"kmesh.net/ipsec-node-traffic": "true"} if traffic else {}
    info["spec"]["addresses"] = [target]
    node["status"]["addresses"] = [{"type": "InternalIP", "address": target}]
    before = kernel(*NODES, info, node)
    found = plan(before, *NODES, *PODS, info, node)
    (policy,) = out_policies(found, target)
    assert policy.block is not traffic, "blocked, or encrypted to the node that has it"
    assert ip_address(target) in before.peers
    assert found.state.pods[ip_address(target)] & PodFlags.CANDIDATE, "and it is marked"
    assert any(f"pod default/api of node n2 claims {target}, which is an address of node n3" in p for p in told(found))
    (other,) = OF_N2 - {ip_address(target)}
    assert found.state.pods[other] == EXPECTED[1][other], "its other address is the pod's"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("node", [2, 3])
def test_a_pod_at_another_node_s_address_takes_nothing_from_it_on_a_node_that_knows_nobody_yet(node, announced):
    liar = kube.pod("liar", node, labels=KMESH, addresses=["10.10.0.2", "fd00:10::2"])
    objects_ = [*NODES[:3], *(NODES[3:] if announced else ()), kube.node(3), *PODS, liar]
    fresh = FakeKernel(mesh.LINKS, lambda: 1000.0)
    for _ in range(2):
        seen = view(objects(*objects_), evidence(fresh.observe()).tunnel_ends, fresh.remembered or "")
        report = reconcile(fresh, seen, Options(), lambda: 1000.0, lambda: "fresh".ljust(36, "0"))
    assert any(
        f"pod default/liar of node n{node} claims 10.10.0.2, which is an address" in p for p in told(report.plan)
    )
    if announced:
        assert towards_n2(report.plan)[1:] == (*EXPECTED[1:2], *towards_n2(report.plan)[2:4], True)
    (policy,) = out_policies(report.plan, "10.10.0.2")
    assert policy.block, "of a node that takes nothing for itself encrypted: nothing is sent there in clear"
    flag = PodFlags.CANDIDATE if announced else PodFlags.REMOTE
    assert report.plan.state.pods[ip_address("10.10.0.2")] & 0xF == flag, "nor taken, if it is no tunnel's end"


@pytest.mark.parametrize("target", ["10.244.2.11", "fd00:244:2::b"])
def test_a_pod_s_address_among_this_node_s_own_is_not_sent_to_in_clear_should_no_device_here_have_it(target):
    here = kube.node(1)
    here["status"]["addresses"].append({"type": "InternalIP", "address": target})
    for before in (HONEST, FakeKernel(mesh.LINKS, lambda: 1000.0)):
        found = plan(before, here, *NODES[1:], *PODS)
        (policy,) = out_policies(found, target)
        assert policy.block
        assert found.state.pods[ip_address(target)] & PodFlags.CANDIDATE, "and it is marked"
        assert any(
            f"pod default/api of node n2 claims {target}, which is an address of this node" in p for p in told(found)
        )


def test_what_a_pod_was_known_to_have_stays_its_own_whoever_claims_it_as_a_node_s_first_address():
    node, info = kube.node(3), kube.node_info(3)
    info["spec"]["addresses"] = ["10.244.2.11"]
    node["status"]["addresses"] = [{"type": "InternalIP", "address": "10.244.2.11"}]
    assert towards_n2(plan(HONEST, *NODES, *PODS, info, node)) == EXPECTED


@given(announcements(), nodes(TARGETS))
def test_what_is_wrong_is_told_by_name(info, node):
    found = plan(HONEST, *NODES, *PODS, *info, node)
    (liar,) = (one["metadata"]["name"] for one in info)
    claimed = {ip_address(one) for one in info[0]["spec"]["addresses"]}
    alive = node["metadata"]["name"] == liar
    if claimed & (OURS | NODE_2) and (alive or ip_address("10.10.0.1") not in claimed):
        assert any(f"peer {liar} claims" in str(problem) for problem in found.problems)

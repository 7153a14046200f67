# SPDX-License-Identifier: Apache-2.0
"""Whatever objects say: in strict mode what is sent to an address that a live pod elsewhere claims is marked, and
encrypted or dropped."""

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from kmesh.cluster.objects import NODE_TRAFFIC_ANNOTATION, ClusterObjects, PodObject
from kmesh.cluster.snapshot import build_view, enrolment

from kmesh_bpf import Direction, Key, Options, Plan, evidence, impossible, make_plan
from kmesh_bpf.core.state import PodFlags
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.reconcile import reconcile
from tests.unit.cluster.test_views import HERE, INFOS, KMESH, NODE_OBJECTS, PODS, SERVICES, Namespace
from tests.unit.core import mesh

MARKED = PodFlags.REMOTE | PodFlags.CANDIDATE
TRAFFIC = {NODE_TRAFFIC_ANNOTATION: "true"}
ANNOUNCED = st.builds(replace, INFOS, annotations=st.sampled_from([{}, TRAFFIC]))
OWN_NODE = st.builds(replace, NODE_OBJECTS, name=st.just(HERE))
NAMESPACES = (Namespace("x", KMESH), Namespace("x-y", KMESH))


def named(objects, least=0):
    return st.lists(
        objects, min_size=least, max_size=5, unique_by=lambda one: (getattr(one, "namespace", ""), one.name)
    ).map(tuple)


def others(nodes):
    return [one for one in nodes if one.name != HERE]


CLUSTERS = st.builds(
    ClusterObjects,
    nodes=st.tuples(OWN_NODE, named(NODE_OBJECTS, 1)).map(lambda found: (found[0], *others(found[1]))),
    pods=named(PODS),
    node_infos=named(ANNOUNCED),
    service_objects=named(SERVICES),
    namespaces=st.just(NAMESPACES),
)
EVIDENCE = st.frozensets(st.sampled_from([ip_address("10.9.9.1"), ip_address("10.10.0.2")]))


def live_elsewhere(objects: ClusterObjects) -> list[PodObject]:
    """Give the pods that are enrolled and live on other nodes that there are."""
    spaces, nodes = {one.name: one for one in objects.namespaces}, {one.name for one in objects.nodes} - {HERE}
    enrolled = (one for one in objects.pods if enrolment(one, spaces.get(one.namespace)).managed)
    return [one for one in enrolled if one.node in nodes and one.phase not in ("Succeeded", "Failed")]


def in_clear(found: Plan, objects: ClusterObjects) -> list:
    """Give the addresses of such pods that packets of a managed pod of this node would leave to in clear."""
    state, leaks = found.state, []
    for address in {
        address for one in live_elsewhere(objects) for address in one.addresses if impossible(address) is None
    }:
        flags = state.pods.get(address, PodFlags(0))
        selected = any(
            one.direction is Direction.OUT and one.mark.mask and address in one.dst for one in state.policies.values()
        )
        if not flags & PodFlags.LOCAL and not (flags & MARKED and selected):
            leaks.append((address, flags))
    return leaks


def taken(found: Plan, objects: ClusterObjects) -> list:
    """Give the addresses of such pods from which something is taken in clear: but for peers' own, and this node's."""
    remote = {address for address, flags in found.state.pods.items() if flags & (PodFlags.REMOTE | PodFlags.LOCAL)}
    nodes = found.state.peers.keys() | {
        address for one in objects.nodes if one.name == HERE for address in one.addresses
    }
    claims = {address for one in live_elsewhere(objects) for address in one.addresses if impossible(address) is None}
    return sorted(claims - remote - nodes)


def plans(objects: ClusterObjects, options: Options, carried) -> list[Plan]:
    """Give the plan of a node that knows nobody yet, and the one that it comes to."""
    kernel, found = FakeKernel(mesh.LINKS, lambda: 1000.0), []
    for _ in range(3):
        view = build_view(
            objects,
            HERE,
            keys={1: Key(bytes(range(36))), 2: Key(bytes(range(1, 37)))},
            services=(),
            announced=2,
            announced_at=0.0,
            boot_id=kernel.remembered or "",
            evidence=carried,
            known=evidence(kernel.observe()).tunnel_ends,
        )
        found.append(make_plan(view, kernel.observe(), options, 1000.0))
        reconcile(kernel, view, options, lambda: 1000.0, lambda: "fresh".ljust(36, "0"))
    return found


@settings(max_examples=300)
@given(CLUSTERS, st.sampled_from([Options(), Options(max_exact=0)]), EVIDENCE)
def test_what_is_sent_to_a_live_pod_elsewhere_is_encrypted_or_dropped(objects, options, carried):
    found = plans(objects, options, carried)
    assert [in_clear(one, objects) for one in found] == [[]] * len(found)
    assert [taken(one, objects) for one in found] == [[]] * len(found)

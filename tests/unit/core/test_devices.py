# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.devices import LOOPBACK, attach_order, decide, with_pods_addresses, without_device
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.state import Attachment, Link, Program
from kmesh_bpf.core.view import Pod

V4, V6, OTHER = ip_address("10.10.0.1"), ip_address("fd00:10::1"), ip_address("10.10.0.9")
POD, POD6, POD2 = ip_address("10.244.1.7"), ip_address("fd00:244:1::7"), ip_address("10.244.1.8")
PODS_OWN = {Program.MARK_ENCRYPT, Program.POD_GUARD}
UPLINK = {Program.MARK_DECRYPT, Program.LEAK_GUARD}
INNER = {Program.MARK_DECRYPT, Program.INNER_GUARD}
LO = Link(LOOPBACK, "lo", "", False, ())
ETH0 = Link(2, "eth0", "", False, (V4, V6), leads_out=True)
PODS = Link(7, "pod0", "veth", True, (), far_addresses=(POD, POD6))
BRIDGE = Link(9, "cni0", "bridge", False, (ip_address("10.244.1.1"),), leads_out=True)

NAMES = ("lo", "eth0", "eth1", "pod0", "pod1", "flannel.1", "cni0")
ADDRESSES = st.lists(st.sampled_from((V4, V6, OTHER, POD, POD6, POD2)), unique=True).map(tuple)
LINKS = st.lists(
    st.builds(
        Link,
        ifindex=st.integers(1, 9),
        name=st.sampled_from(NAMES),
        kind=st.sampled_from(("", "veth", "netkit", "bridge", "dummy", "bond", "vxlan", "vlan", "openvswitch", "vrf")),
        peer_elsewhere=st.booleans(),
        addresses=ADDRESSES,
        master=st.integers(0, 9),
        far_addresses=st.none() | ADDRESSES,
        leads_out=st.booleans(),
        xfrm_disabled=st.booleans(),
        unchecked=st.booleans(),
        lower=st.integers(0, 9),
        fresh=st.booleans(),
    ),
    unique_by=(lambda link: link.ifindex, lambda link: link.name),
).map(tuple)
NODE_ADDRESSES = st.lists(st.sampled_from((V4, V6)), unique=True)
UPLINKS = st.sets(st.sampled_from((*NAMES, "absent")))
LOCAL = st.frozensets(st.sampled_from((POD, POD6, POD2)))
BOUND = st.dictionaries(st.sampled_from((POD, POD6, POD2)), st.integers(1, 9))


def programs(*links, of=None, uplinks=()) -> set[Program]:
    """Give the programs of one device, the last of those given if none is named."""
    found = decide(links, [V4, V6], uplinks, ()).attachments
    return {one.program for one in found if one.device == (of or links[-1].name)}


def kinds(*links, uplinks=()) -> list[ProblemKind]:
    return [problem.kind for problem in decide((ETH0, *links), [V4, V6], uplinks, [POD]).problems]


@pytest.mark.parametrize("kind", ["veth", "netkit"])
def test_a_pair_with_an_end_elsewhere_that_has_an_address_is_a_pods(kind):
    assert programs(replace(PODS, kind=kind)) == PODS_OWN


@pytest.mark.parametrize(
    "changed",
    [
        {"peer_elsewhere": False, "far_addresses": None},
        {"addresses": (V6,)},
        {"leads_out": True},
        {"far_addresses": ()},
        {"far_addresses": (V4,)},
        {"kind": "macvlan"},
        {"kind": ""},
    ],
    ids=str,
)
def test_what_is_not_surely_a_pods_is_guarded(changed):
    assert PODS_OWN.isdisjoint(programs(replace(PODS, **changed)))


def test_a_pair_named_as_uplink_is_no_pods_and_naming_one_takes_nothing_from_the_others():
    assert programs(PODS, uplinks=["pod0"]) == UPLINK
    assert programs(PODS, ETH0, uplinks=["pod0"]) == UPLINK
    assert programs(ETH0, PODS, uplinks=["eth0"]) == PODS_OWN


@pytest.mark.parametrize("kind", ["", "dummy", "bond", "vxlan", "geneve", "ipip", "wireguard", "tun", "nobody knows"])
def test_every_other_device_is_guarded_whatever_it_is(kind):
    assert programs(Link(5, "any0", kind, False, ())) == UPLINK


def test_a_device_that_only_hands_packets_back_to_where_they_came_by_is_not_looked_at():
    """The bandwidth plugin sends what a pod sends through one: it is marked already, and not encrypted yet."""
    assert programs(Link(5, "bwp0", "ifb", False, ())) == set()


@pytest.mark.parametrize(
    ("link", "wanted"),
    [
        (LO, INNER),
        (BRIDGE, INNER),
        (replace(BRIDGE, kind="openvswitch"), INNER),
        (replace(BRIDGE, kind="vrf"), INNER),
        (Link(5, "home0", "veth", False, ()), INNER),
        (Link(5, "cni0.7", "vlan", False, (), lower=9), INNER),
        (Link(5, "eth0.7", "vlan", False, (), lower=2), UPLINK),
        (Link(5, "vxlan0", "vxlan", False, (), lower=9), UPLINK),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_devices_that_packets_do_not_leave_the_node_by_have_the_guard_that_lets_decrypted_ones_pass(link, wanted):
    assert programs(ETH0, BRIDGE, link, of=link.name) == wanted


def test_an_end_that_cannot_be_asked_is_a_pods_unless_the_device_is_a_bridge_s_port():
    unknown = replace(PODS, far_addresses=None)
    assert programs(unknown) == PODS_OWN
    assert programs(BRIDGE, replace(unknown, master=9)) == UPLINK
    assert programs(replace(unknown, master=9)) == UPLINK, "whatever the master is"
    assert programs(replace(BRIDGE, kind="vrf"), replace(unknown, master=9)) == PODS_OWN


def test_a_bridge_port_is_a_pods_by_the_address_behind_it():
    assert programs(BRIDGE, replace(PODS, master=9)) == PODS_OWN
    assert programs(BRIDGE, replace(PODS, master=9, far_addresses=())) == UPLINK


@pytest.mark.parametrize(
    ("port", "told"),
    [
        (replace(ETH0, ifindex=5, name="eth1", addresses=(), leads_out=False), True),
        (Link(5, "vxlan0", "vxlan", False, ()), True),
        (replace(PODS, ifindex=5, name="eth1", far_addresses=()), True),
        (replace(PODS, ifindex=5, name="eth1", far_addresses=(), fresh=True), False),
        (replace(PODS, ifindex=5, name="pod1", far_addresses=(POD2,)), False),
        (Link(5, "home0", "veth", False, ()), False),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_pods_bridged_with_a_device_that_leads_out_are_told_by_both_names(port, told):
    port = replace(port, master=BRIDGE.ifindex)
    found = decide((ETH0, BRIDGE, replace(PODS, master=9), port), [V4, V6], (), [POD]).problems
    assert [problem.kind for problem in found] == [ProblemKind.BRIDGED] * told
    assert all(port.name in str(problem) and BRIDGE.name in str(problem) for problem in found)
    assert kinds(BRIDGE, port, replace(PODS, master=9, far_addresses=(POD6,))) == [], "no pod there is managed"


@pytest.mark.parametrize(
    ("kept", "sysctl"), [({"xfrm_disabled": True}, "disable_xfrm"), ({"unchecked": True}, "disable_policy")]
)
def test_a_device_kept_from_xfrm_or_its_policies_is_told_with_the_way_out(kept, sysctl):
    (problem,) = decide((replace(ETH0, **kept),), [V4, V6], (), ()).problems
    assert problem.kind is ProblemKind.XFRM_DISABLED
    assert f"net.ipv4.conf.eth0.{sysctl}=0" in str(problem)


def test_a_named_uplink_that_is_missing_is_told():
    assert [str(one) for one in decide([ETH0], [V4], ["eth9", "eth0"], ()).problems] == [
        "uplink eth9: there is no such device; name one that is there, or none"
    ]


def test_a_node_none_of_whose_addresses_is_on_a_device_is_told():
    (problem,) = decide((LO, replace(ETH0, addresses=(OTHER,))), [V6, V4], (), ()).problems
    assert problem.kind is ProblemKind.UPLINK
    assert "10.10.0.1, fd00:10::1" in str(problem)
    assert decide((LO, replace(ETH0, addresses=(V6,))), [V6, V4], (), ()).problems == ()


def test_managed_addresses_are_bound_to_their_devices_and_other_pods_devices_to_none():
    other = replace(PODS, ifindex=8, name="pod1", far_addresses=(POD2,))
    found = decide((ETH0, PODS, other), [V4], (), [POD, POD6, ip_address("10.244.1.99")])
    assert (found.sources, found.pod_devices) == ({POD: 7, POD6: 7}, {7})


def test_of_two_that_claim_an_address_the_one_that_has_it_keeps_it_and_the_other_is_told():
    thief = replace(PODS, ifindex=3, name="thief", far_addresses=(POD2, POD))
    first = decide((ETH0, PODS, thief), [V4], (), [POD], {POD: 3})
    assert first.sources == {POD: 3}
    assert [problem.kind for problem in first.problems] == [ProblemKind.SOURCE]
    bound = decide((ETH0, PODS, replace(thief, ifindex=8)), [V4], (), [POD], {POD: 7})
    assert bound.sources == {POD: 7}
    assert "thief" in str(bound.problems[0])
    assert decide((ETH0, thief), [V4], (), [POD], {POD: 7}).sources == {POD: 3}, "it is gone"


@pytest.mark.parametrize(("ifindex", "carried"), [(3, (POD,)), (3, (POD2, POD)), (8, (POD2, POD, POD6))])
def test_an_address_that_was_taken_before_its_pod_came_is_the_pod_s(ifindex, carried):
    squatter = replace(PODS, ifindex=ifindex, name="squatter", far_addresses=carried)
    pod = replace(PODS, far_addresses=carried[-1:])
    found = decide((ETH0, pod, squatter), [V4], (), [carried[-1]])
    assert found.sources == {carried[-1]: 7}
    assert "squatter" in str(found.problems[0])


MACHINE = Pod("default/machine", "n1", (POD2,), settled=True)
WEB = Pod("default/web", "n1", (POD, POD6), settled=True)


def lacking(*links, pods=(WEB, MACHINE), uplinks=()) -> list[Problem]:
    addresses = [address for pod in pods for address in pod.addresses]
    found = decide((ETH0, *links), [V4, V6], uplinks, addresses)
    return list(without_device((ETH0, *links), [V4, V6], uplinks, pods, found))


def test_a_managed_pod_whose_address_no_pod_s_device_carries_is_told_by_name_with_the_way_out():
    (problem,) = lacking(PODS)
    assert problem.kind is ProblemKind.NO_DEVICE
    assert str(problem) == (
        "no pod's device of this node carries 10.244.1.8 of pod default/machine: packets between there and managed pods "
        "of other nodes are dropped; a pod that shares a device, or hides its address (macvlan, ipvlan, gVisor, KubeVirt), "
        "cannot be managed: do not label it"
    )
    assert lacking(PODS, replace(PODS, ifindex=8, name="pod1", far_addresses=(POD2,))) == []


@pytest.mark.parametrize(
    "changed",
    [{"far_addresses": (POD,)}, {"leads_out": True}, {"addresses": (V4,)}, {"peer_elsewhere": False}],
    ids=str,
)
def test_each_address_of_a_pod_counts_and_only_what_a_pod_s_device_carries(changed):
    assert f"{POD6} of pod default/web: " in str(lacking(replace(PODS, **changed), pods=[WEB])[0])
    assert f"{POD}, {POD6} of pod default/web: " in str(lacking(PODS, pods=[WEB], uplinks=["pod0"])[0])


def test_nothing_is_said_of_a_pod_that_is_beginning_or_ending():
    assert lacking(PODS, pods=[WEB, replace(MACHINE, settled=False)]) == []


@pytest.mark.parametrize("changed", [{"far_addresses": None}, {"far_addresses": None, "master": 9}, {"fresh": True}])
def test_nothing_is_said_while_a_device_may_be_the_pod_s_and_it_is_not_known(changed):
    unknown = replace(PODS, **{"ifindex": 8, "name": "pod1", "far_addresses": ()} | changed)
    assert lacking(PODS, BRIDGE, unknown) == []
    assert len(lacking(PODS, BRIDGE, replace(unknown, leads_out=True))) == 1, "that one is no pod's, whatever is behind"
    assert len(lacking(PODS, BRIDGE, unknown, uplinks=["pod1"])) == 1


def test_nothing_is_said_where_no_device_was_looked_at_and_of_an_address_of_the_node_somebody_else_does():
    nothing = decide((), [V4, V6], (), [POD2])
    assert list(without_device((), [V4, V6], (), [MACHINE], nothing)) == []
    assert lacking(PODS, pods=[replace(MACHINE, addresses=(V4,))]) == []


def test_of_many_pods_without_a_device_some_are_named():
    many = [replace(MACHINE, name=f"default/p{one}", addresses=(ip_address(f"10.244.9.{one}"),)) for one in range(9)]
    (problem,) = lacking(PODS, pods=many)
    assert "10.244.9.4 of pod default/p4 and those of 4 more pods: packets between" in str(problem)


@given(LINKS, NODE_ADDRESSES, UPLINKS, LOCAL, BOUND)
def test_each_device_is_a_pods_or_guarded_both_ways(links, addresses, uplinks, local, bound):
    found = decide(links, addresses, uplinks, local, bound)
    for one in links:
        own = {attachment.program for attachment in found.attachments if attachment.ifindex == one.ifindex}
        assert own in (PODS_OWN, UPLINK, INNER)
    assert {(one.ifindex, one.device) for one in found.attachments} == {(one.ifindex, one.name) for one in links}


@given(LINKS, NODE_ADDRESSES, UPLINKS, LOCAL, BOUND)
def test_nothing_depends_on_the_order_of_devices(links, addresses, uplinks, local, bound):
    one, other = (decide(each, addresses, uplinks, local, bound) for each in (links, links[::-1]))
    assert (one.attachments, one.sources, one.pod_devices) == (other.attachments, other.sources, other.pod_devices)
    assert set(one.problems) == set(other.problems)


@given(LINKS, NODE_ADDRESSES, UPLINKS)
def test_naming_uplinks_only_ever_adds_guards(links, addresses, uplinks):
    def marked(names):
        found = decide(links, addresses, names, ()).attachments
        return {one.ifindex for one in found if one.program is Program.MARK_ENCRYPT}

    assert marked(uplinks) <= marked(())


@given(LINKS, NODE_ADDRESSES, UPLINKS)
def test_no_device_with_a_node_address_or_a_route_out_is_a_pods(links, addresses, uplinks):
    found = decide(links, addresses, uplinks, ()).attachments
    guarded = {one.ifindex for one in found if one.program is Program.MARK_DECRYPT}
    assert {one.ifindex for one in links if one.leads_out or set(addresses) & set(one.addresses)} <= guarded
    assert {one.ifindex for one in links if one.name in uplinks} <= guarded


@given(LINKS, NODE_ADDRESSES, UPLINKS, LOCAL, BOUND)
def test_only_pods_devices_are_bound_and_only_to_managed_addresses_behind_them(links, addresses, uplinks, local, bound):
    found = decide(links, addresses, uplinks, local, bound)
    marked = {one.ifindex for one in found.attachments if one.program is Program.MARK_ENCRYPT}
    assert found.pod_devices == set(found.sources.values()) <= marked
    behind = {one.ifindex: one.far_addresses or () for one in links}
    assert all(address in local and address in behind[index] for address, index in found.sources.items())
    reachable = {address for index in marked for address in behind[index]}
    assert found.sources.keys() == local & reachable


@given(LINKS, NODE_ADDRESSES, UPLINKS)
def test_devices_that_lead_out_come_first_and_lo_last(links, addresses, uplinks):
    found = decide(links, addresses, uplinks, ()).attachments
    order = attach_order(found)
    inner = {one.ifindex for one in found if one.program is Program.INNER_GUARD}
    within = {one for one in found if one.ifindex in inner or one.program is Program.POD_GUARD}
    ranks = [2 if one.ifindex == LOOPBACK else int(one in within) for one in order]
    assert ranks == sorted(ranks)
    assert set(order) == found


def test_a_guard_comes_before_what_decrypts_on_the_same_device():
    found = [one.program for one in attach_order(Attachment(2, "eth0", program) for program in UPLINK)]
    assert found == [Program.LEAK_GUARD, Program.MARK_DECRYPT]


def test_a_device_of_the_node_that_carries_a_managed_pod_s_address_is_named():
    remote, own = ip_address("10.244.2.10"), ip_address("10.10.0.1")
    links = (Link(LOOPBACK, "lo", "", False, (remote,)), Link(2, "eth0", "", False, (own,)))
    (problem,) = with_pods_addresses(links, {remote: "n2"}.get)
    assert problem == Problem(
        ProblemKind.ADDRESS,
        "device lo: it carries 10.244.2.10, which is a managed pod's on n2; what this node sends or "
        "forwards to that pod ends here: ip addr del 10.244.2.10 dev lo",
    )

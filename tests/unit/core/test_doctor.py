# SPDX-License-Identifier: Apache-2.0
"""From facts of a node to findings: each of them both ways."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.core.doctor import (
    OPTIONS,
    Device,
    Facts,
    Missing,
    Severity,
    beside_the_plan,
    findings,
    room,
)
from kmesh_bpf.core.fib_rules import FibRule
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.state import Detour, Direction, KernelState, Link, Mark, Observation, PodFlags, Rival, Suspect
from tests.unit.core import mesh

POD = ip_address("10.244.2.10")
OUT = Link(2, "eth0", "", False, mesh.node(1).addresses, leads_out=True)
OF_POD = Link(7, "veth7", "veth", True, (), far_addresses=(ip_address("10.244.1.10"),))
STATE = KernelState(
    pods={
        **dict.fromkeys(mesh.node(1).addresses, PodFlags.CANDIDATE | PodFlags.OWN),
        POD: PodFlags.REMOTE | PodFlags.READY,
        ip_address("10.244.1.10"): PodFlags.LOCAL,
    },
    sources={ip_address("10.244.1.10"): 7},
    nat_exemption=True,
)
WELL = Facts(
    (6, 12),
    Observation(STATE, links=(OUT, OF_POD)),
    running=True,
    devices=(Device("eth0", 1500, 4), Device("veth7", 1400)),
    cores=4,
    synchronised=True,
)
ANY, SUSPECT = ip_network("0.0.0.0/0"), Suspect("nft somewhere", "it drops", frozenset({4}), way_out="delete it")
DROPS = FibRule(4, 9, "blackhole", dst=ip_network("10.244.2.0/24"))
DETOUR = Detour("tc filter on eth0", "it sets marks", "tc filter del", "eth0", lost=0xFF)
ILL = {
    "missing": ({"missing": (Missing("ESP", "load esp4"),)}, Severity.ERROR, "ESP is not available", "load esp4"),
    "option": (
        {"lacking": frozenset({"CONFIG_INET_ESP"})},
        Severity.ERROR,
        "without CONFIG_INET_ESP",
        "another kernel",
    ),
    "jit option": ({"lacking": frozenset({"CONFIG_BPF_JIT"})}, Severity.WARNING, "without CONFIG_BPF_JIT", "another"),
    "act_ct": ({"lacking": frozenset({"CONFIG_NET_ACT_CT"})}, Severity.NOTE, "without CONFIG_NET_ACT_CT", "another"),
    "no configuration": ({"lacking": None}, Severity.NOTE, "configuration is not to be found", ""),
    "no TCX": ({"release": (6, 5)}, Severity.NOTE, "Linux 6.5 has no TCX", "Linux 6.6 or newer"),
    "no JIT": ({"jit": False}, Severity.WARNING, "JIT compiler is off", "sysctl -w net.core.bpf_jit_enable=1"),
    "dropped by address": ({"rules": (DROPS,)}, Severity.ERROR, "to 10.244.2.0/24 blackhole", "ip rule del priority 9"),
    "detour": (
        {"observed": replace(WELL.observed, detours=(DETOUR,))},
        Severity.ERROR,
        "is lost by it: tc filter del",
        "",
    ),
    "MTU": (
        {"devices": (Device("eth0", 1500, 4), Device("veth7", 1500))},
        Severity.NOTE,
        "more than 1426 bytes",
        "1426",
    ),
    "queues": (
        {"cores": 8},
        Severity.NOTE,
        "receives by 4 queues, on a machine of 8 cores",
        "echo ff >$queue/rps_cpus",
    ),
    "masquerade": (
        {"observed": replace(WELL.observed, state=replace(STATE, nat_exemption=False))},
        Severity.ERROR,
        "masquerade rules are not kept",
        "start the daemon",
    ),
    "foreign SAs": ({"foreign_sas": 3}, Severity.NOTE, "3 SAs of other software", "ip xfrm state"),
    "XFRM errors": ({"xfrm_errors": {"XfrmInNoStates": 5}}, Severity.NOTE, "5 (XfrmInNoStates)", "xfrm_stat"),
    "clock": ({"synchronised": False}, Severity.WARNING, "the clock is not synchronised", "timedatectl set-ntp true"),
    "rule": ({"observed": replace(WELL.observed, suspects=(SUSPECT,))}, Severity.ERROR, "it drops; delete it", ""),
    "default": (
        {"observed": replace(WELL.observed, refusing=frozenset({Direction.OUT}))},
        Severity.ERROR,
        "XFRM drops what no policy selects",
        "",
    ),
    "rival": (
        {"observed": replace(WELL.observed, rivals=(Rival(Direction.OUT, ANY, ANY, Mark(0, 0), 1),))},
        Severity.ERROR,
        "is not ours and comes before ours",
        "",
    ),
    "disable_xfrm": (
        {"observed": replace(WELL.observed, links=(replace(OUT, xfrm_disabled=True), OF_POD))},
        Severity.ERROR,
        "disable_xfrm keeps what leaves",
        "",
    ),
}


def test_of_a_node_that_is_well_nothing_is_said():
    assert findings(WELL, 0xFF) == ()
    assert beside_the_plan(WELL) == ()


@pytest.mark.parametrize("name", ILL)
def test_what_is_wrong_is_told_with_why_and_the_way_out(name):
    changes, severity, what, mend = ILL[name]
    (one,) = findings(replace(WELL, **changes), 0xFF)
    assert (one.severity, what in one.what, mend in one.mend) == (severity, True, True), one
    assert one.why


@given(st.sets(st.sampled_from(sorted(ILL)), min_size=1))
def test_together_they_are_the_same_the_worst_first(names):
    changes: dict[str, object] = {}
    for name in sorted(names):
        for field, value in ILL[name][0].items():
            changes.setdefault(field, value)
    found = findings(replace(WELL, **changes), 0xFF)
    assert [one.severity for one in found] == sorted((one.severity for one in found), reverse=True)
    assert len(set(found)) == len(found) >= len(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"xfrm_errors": {"XfrmInNoStates": 0, "XfrmOutStateModeError": 9}},
        {"synchronised": None},
        {"devices": (Device("eth0", 1500, 0), Device("veth7", 1426))},
        {"devices": (Device("eth0", 9000, 1, steered=True), Device("veth7", 1500)), "cores": 64},
        {"rp_filter": ("eth0", "veth7")},
        {"lacking": frozenset({"CONFIG_NET_CLS_BPF", "CONFIG_NET_SCH_INGRESS"})},
        {"rules": (FibRule(4, 9, "lookup", 0x200, 0xF00), FibRule(4, 0, "lookup"))},
        {"running": False, "observed": replace(WELL.observed, state=replace(STATE, nat_exemption=False))},
    ],
)
def test_what_does_no_harm_is_not_told(changes):
    assert findings(replace(WELL, **changes), 0xFF) == ()


def test_before_tcx_the_options_of_clsact_are_needed():
    old = replace(WELL, release=(6, 1), lacking=frozenset({"CONFIG_NET_CLS_BPF", "CONFIG_NET_SCH_INGRESS"}))
    assert [one.severity for one in findings(old, 0xFF)] == [Severity.ERROR, Severity.ERROR, Severity.NOTE]


def test_a_strict_filter_matters_where_several_devices_lead_out():
    second = Link(3, "eth1", "", False, (ip_address("10.20.0.1"),), leads_out=True)
    two = replace(WELL, observed=replace(WELL.observed, links=(OUT, OF_POD, second)), rp_filter=("eth1",))
    (one,) = findings(two, 0xFF)
    assert (one.check, one.mend) == ("rp_filter", "sysctl -w net.ipv4.conf.eth1.rp_filter=2")
    assert findings(replace(two, rp_filter=()), 0xFF) == ()
    overlay = replace(second, kind="vxlan")
    assert findings(replace(two, observed=replace(two.observed, links=(OUT, OF_POD, overlay))), 0xFF) == ()


def test_where_no_daemon_has_run_any_pod_may_be_managed_and_devices_tell_the_addresses():
    rival = Rival(Direction.OUT, ANY, ip_network("10.0.0.0/8"), Mark(0, 0), 1)
    bare = replace(WELL, observed=Observation(KernelState(), links=(OUT,), rivals=(rival,), suspects=(SUSPECT,)))
    assert len(findings(replace(bare, running=False), 0xFF)) == 2


def test_a_policy_that_selects_no_managed_pod_is_nobody_s_business():
    rival = Rival(Direction.OUT, ANY, ip_network("192.0.2.0/24"), Mark(0, 0), 1)
    assert findings(replace(WELL, observed=replace(WELL.observed, rivals=(rival,))), 0xFF) == ()


@pytest.mark.parametrize("name", ["rule", "default", "rival", "disable_xfrm", "detour"])
def test_what_a_plan_names_is_named_in_the_same_words(name):
    """Readiness and the doctor do not contradict each other."""
    observed = ILL[name][0]["observed"]
    plan = make_plan(mesh.view(), observed, Options(), 1000.0)
    (one,) = findings(replace(WELL, observed=observed), 0xFF)
    assert one.what in [problem.sentence for problem in plan.problems]


@pytest.mark.parametrize(
    ("mtu", "version", "most"), [(1500, 4, 1446), (1500, 6, 1426), (9000, 4, 8946), (1400, 4, 1346)]
)
def test_the_largest_packet_that_fits(mtu, version, most):
    assert room(mtu, version) == most


@given(st.integers(1280, 65535), st.sampled_from([4, 6]))
def test_one_byte_more_than_the_largest_does_not_fit(mtu, version):
    def outside(length: int) -> int:
        padded = (length + 2 + 3) // 4 * 4
        return {4: 20, 6: 40}[version] + 8 + 8 + padded + 16

    most = room(mtu, version)
    assert outside(most) <= mtu < outside(most + 1)


def test_a_daemon_that_starts_tells_no_notes_and_nothing_of_the_plan():
    changes = {}
    for one, *_ in ILL.values():
        changes = {**one, **changes}
    told = beside_the_plan(replace(WELL, **changes))
    assert told
    assert {one.check for one in told} <= {"kernel", "routing", "clock", "rp_filter"}
    assert all(one.severity > Severity.NOTE for one in told)


def test_each_option_is_known_by_one_name():
    assert len({one.name for one in OPTIONS}) == len(OPTIONS)

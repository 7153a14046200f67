# SPDX-License-Identifier: Apache-2.0
"""The real kernel in a network namespace of its own, all but SAs (this may be a kernel without ESP)."""

import ctypes
import select
import shutil
import socket
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from kmesh_bpf import LinkWatcher, LinuxKernel, Options, Settings, make_plan
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.state import Direction, KernelState, PeerEntry, PodFlags, Program, Sa
from kmesh_bpf.errors import ConfigError, ConflictError, MapFullError
from tests.unit.core import mesh

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
MODES = pytest.mark.parametrize("mode", ["tcx", "clsact"])


def sh(command):
    return subprocess.run(["bash", "-ec", command], check=True, capture_output=True, text=True).stdout


@contextmanager
def inside(name):
    home, target = Path("/proc/thread-self/ns/net").open(), Path(f"/run/netns/{name}").open()  # noqa: SIM115 # closed below, after the way home
    try:
        assert LIBC.setns(target.fileno(), CLONE_NEWNET) == 0
        yield
    finally:
        assert LIBC.setns(home.fileno(), CLONE_NEWNET) == 0
        home.close()
        target.close()


@pytest.fixture(scope="module")
def pins():
    folder = Path("/sys/fs/bpf") / f"kmesh-kernel-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node():
    """Give the name of a namespace with an uplink, a pod device, a bridged pod device, and an inner veth pair."""
    name = f"kt{uuid.uuid4().hex[:6]}"
    sh(
        f"ip netns add {name}; ip netns add {name}p;"
        # Without link-local addresses, and once there is a carrier: what comes a moment later is told as a change.
        f"ip netns exec {name} sysctl -qw net.ipv6.conf.default.addr_gen_mode=1;"
        f"ip link add eth0 netns {name} type veth peer name far netns {name}p;"
        f"ip link add pod0 netns {name} type veth peer name eth0 netns {name}p;"
        f"ip link add pod1 netns {name} type veth peer name eth1 netns {name}p;"
        f"ip -n {name} link add cni0 type bridge; ip -n {name} link set pod1 master cni0;"
        f"ip -n {name} link add in0 type veth peer name in1;"
        f"ip -n {name} addr add 10.10.0.1/24 dev eth0; ip -n {name} addr add fd00:10::1/64 dev eth0 nodad;"
        f"ip -n {name}p addr add 10.244.1.10/32 dev eth0; ip -n {name}p addr add fd00:244:1::a/128 dev eth0 nodad;"
        f"ip -n {name}p addr add 10.244.1.11/24 dev eth1;"
        f"for d in eth0 pod0 pod1 cni0; do ip -n {name} link set $d up; done;"
        f"for d in far eth0 eth1; do ip -n {name}p link set $d up; done;"
        f"for d in eth0 pod0 pod1 cni0; do until ip -n {name} link show $d | grep -q 'state UP'; do sleep 0.02; done; done"
    )
    with inside(name):
        yield name
    sh(f"ip netns del {name}; ip netns del {name}p")


@pytest.fixture
def kernel(node, pins, request):
    mode = getattr(request, "param", "auto")
    made = LinuxKernel(pins / "shared", Settings(), attach_mode=mode)
    yield made
    made.apply([op for op in diff(KernelState(), made.observe().state) if not isinstance(op, ops.DeleteSa)])
    shutil.rmtree(pins / "shared/links", ignore_errors=True)
    made.close()


def without_sas(operations):
    return [op for op in operations if not isinstance(op, ops.AddSa | ops.ReplaceSa | ops.DeleteSa)]


def reach(kernel, view=None):
    """Apply a plan but for its SAs; give the plan's state without them."""
    view = view or mesh.view(services=(mesh.node(9).pod_cidrs[0],))
    observed = kernel.observe()
    wanted = replace(make_plan(view, observed, Options(), 0.0).state, sas={})
    failures = kernel.apply(without_sas(diff(wanted, observed.state)))
    assert [str(failure.error) for failure in failures] == []
    return wanted


@pytest.mark.parametrize("kernel", ["tcx", "clsact"], indirect=True)
def test_what_was_planned_is_what_is_observed_and_a_second_pass_does_nothing(kernel):
    wanted = reach(kernel)
    found = kernel.observe().state
    assert found == wanted
    assert diff(wanted, found) == ()
    inner = [(device, Program.INNER_GUARD) for device in ("lo", "cni0", "in0", "in1")]
    assert {(one.device, one.program) for one in found.attachments} == {
        *((device, Program.MARK_DECRYPT) for device in ("lo", "cni0", "in0", "in1", "eth0")),
        *inner,
        ("eth0", Program.LEAK_GUARD),
        *((device, program) for device in ("pod0", "pod1") for program in (Program.MARK_ENCRYPT, Program.POD_GUARD)),
    }
    pod = socket.if_nametoindex("pod0")
    assert (found.sources, found.pod_devices) == (dict.fromkeys(mesh.pod(1).addresses, pod), {pod})


@pytest.mark.parametrize("kernel", ["tcx", "clsact"], indirect=True)
def test_removal_takes_ours_and_nothing_else(kernel, node):
    program = next(kernel.pin_root.glob("programs/*/tc_leak_guard"))
    sh(
        f"tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress prio 5 bpf da pinned {program};"
        "nft add table ip theirs; nft add table inet kmesh_other;"
        "ip xfrm policy add src 192.0.2.0/25 dst 192.0.2.128/25 dir out mark 0xe0 mask 0xff "
        "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel"
    )
    reach(kernel)
    assert kernel.apply(diff(KernelState(), kernel.observe().state)) == ()
    state = kernel.observe().state
    assert state == KernelState()
    assert "pref 5 bpf" in sh("tc filter show dev eth0 ingress")
    assert sh("tc qdisc show dev pod0").count("clsact") == 0
    assert sh("nft list tables").split("\n")[:2] == ["table ip theirs", "table inet kmesh_other"]
    assert sh("ip xfrm policy").count("reqid 7") == 1


@pytest.mark.parametrize("kernel", ["clsact"], indirect=True)
def test_the_lines_that_are_shown_do_the_same_when_a_person_runs_them_there_and_back(kernel):
    observed = kernel.observe()
    wanted = make_plan(mesh.view(services=(mesh.node(9).pod_cidrs[0],)), observed, Options(), 0.0).state
    wanted = replace(wanted, sas={}, policy_hash=False)  # the line for thresholds keeps nothing of what was found
    for before, after in ((observed.state, wanted), (wanted, replace(observed.state, sas={}))):
        for operation in without_sas(diff(after, before)):
            sh(kernel.render(operation))
        assert kernel.observe().state == after


def test_a_foreign_policy_in_our_place_is_a_conflict_and_stays(kernel):
    wanted = make_plan(mesh.view(), kernel.observe(), Options(), 0.0).state
    policy = next(iter(wanted.policies.values()))
    sh(
        f"ip xfrm policy add src {policy.src} dst {policy.dst} dir {policy.direction.value} "
        f"mark {policy.mark.value} mask {policy.mark.mask} tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel"
    )
    failures = kernel.apply([ops.SetPolicy(policy)])
    assert [type(failure.error) for failure in failures] == [ConflictError]
    assert "reqid 7" in sh("ip xfrm policy")


def test_a_policy_is_replaced_in_one_step_and_reads_back(kernel):
    wanted = make_plan(mesh.view(), kernel.observe(), Options(), 0.0).state
    policy = next(one for one in wanted.policies.values() if one.direction is Direction.OUT)
    for other in (replace(policy, block=True), replace(policy, spi=2), policy):
        assert kernel.apply([ops.SetPolicy(policy, replace=True), ops.SetPolicy(other, replace=True)]) == ()
        assert kernel.observe().state.policies[policy.id] == other


@MODES
def test_another_build_takes_the_place_of_the_old_one_on_every_device(node, pins, mode):
    root = pins / f"upgrade-{mode}"
    first = LinuxKernel(root, Settings(), attach_mode=mode)
    reach(first)
    second = LinuxKernel(root, Settings(strict=False), attach_mode=mode)
    stale = second.observe().state.attachments
    assert stale
    assert not any(one.current for one in stale)
    reach(second)
    assert all(one.current for one in second.observe().state.attachments)
    second.remove_stale()
    first.close()
    assert second.observe().state.attachments
    assert second.remove_everything() == ()
    assert not root.exists()
    second.close()


def test_a_full_pod_map_refuses_what_does_not_fit_by_name_and_takes_the_rest(node, pins):
    kernel = LinuxKernel(pins / "tiny", Settings(max_pods=2))
    addresses = [ip_address(f"10.244.9.{number}") for number in range(1, 5)]
    failures = kernel.apply([ops.SetPod(address, PodFlags.LOCAL) for address in addresses])
    assert [(type(one.error), one.error.map_name, one.error.capacity) for one in failures] == [
        (MapFullError, "kmesh_pods4", 2)
    ] * 2
    assert len(kernel.observe().state.pods) == 2
    assert kernel.remove_everything() == ()
    kernel.close()


def test_a_device_that_vanished_is_forgotten_and_a_new_one_gets_its_program(kernel, node):
    reach(kernel)
    sh(f"ip link del pod0; ip link add pod9 type veth peer name eth9 netns {node}p")
    wanted = reach(kernel)
    assert "pod9" in {one.device for one in wanted.attachments}
    assert kernel.observe().state.attachments == wanted.attachments


def test_a_new_device_is_notified(node):
    with LinkWatcher() as watcher:
        assert not watcher.drain()
        sh("ip link add other type bridge")
        assert watcher.drain()
        assert not watcher.drain()


def test_changes_of_others_are_noticed_and_our_own_are_not(kernel):
    kernel.subscribe()
    reach(kernel)
    assert not kernel.changed()
    sh("ip xfrm policy flush")
    assert kernel.changed()
    assert not kernel.changed()


@pytest.mark.parametrize(
    "change", ["flush ruleset", "delete table ip6 kmesh_ipsec", "flush chain ip kmesh_ipsec postrouting"]
)
def test_a_change_of_our_nft_tables_is_told_and_of_others_not(kernel, change):
    told = kernel.subscribe()
    reach(kernel)
    assert not kernel.changed(), "our own"
    sh(
        "nft add table ip other; nft add chain ip other one; nft add rule ip other one counter; nft delete table ip other"
    )
    assert not kernel.changed()
    sh(f"nft {change}")
    assert select.select(told, [], [], 5)[0]
    assert kernel.changed()
    assert not kernel.changed()
    reach(kernel)
    assert kernel.observe().state.nat_exemption
    assert not kernel.changed(), "our own"


def test_nft_tables_that_somebody_emptied_are_noticed_and_put_back(kernel):
    reach(kernel)
    sh("nft flush chain ip kmesh_ipsec postrouting")
    assert not kernel.observe().state.nat_exemption
    reach(kernel)
    assert kernel.observe().state.nat_exemption


@pytest.mark.parametrize("kernel", ["tcx", "clsact"], indirect=True)
def test_packets_cut_short_on_a_real_device_are_counted_and_do_no_harm(kernel, node):
    reach(kernel)
    before = kernel.counters()
    with inside(f"{node}p"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for length in range(1, 40):
            raw.send(b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + b"\x45" * length)
            raw.send(b"\xff" * 6 + b"\x02" * 6 + b"\x86\xdd" + b"\x60" * length)
    after = kernel.counters()
    assert after["parse_failure"] - before["parse_failure"] == 19 + 39
    assert after["marked"] == before["marked"]


def test_pins_of_others_in_our_pin_root_stay(node, pins):
    kernel = LinuxKernel(pins / "mixed", Settings())
    (pins / "mixed/theirs").mkdir()
    assert kernel.remove_everything() == ()
    kernel.close()
    assert [path.name for path in (pins / "mixed").iterdir()] == ["theirs"]


def test_the_mount_point_of_bpffs_is_refused_as_a_pin_root(node):
    with pytest.raises(ConfigError, match="name a folder below it"):
        LinuxKernel(Path("/sys/fs/bpf"), Settings(), load=False)


def test_xfrm_errors_are_those_of_the_namespace_that_the_caller_lives_in(kernel, node):
    before = kernel.xfrm_errors()
    sh(f"ip -n {node} xfrm policy add src 0.0.0.0/0 dst 10.10.0.9/32 dir out action block")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(3):
            with pytest.raises(OSError):
                one.sendto(b"x", ("10.10.0.9", 9))
    sh(f"ip -n {node} xfrm policy delete dst 10.10.0.9/32 src 0.0.0.0/0 dir out")
    after = kernel.xfrm_errors()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {"XfrmOutPolBlock": 3}


@pytest.mark.parametrize("there", [True, False])
def test_the_peer_map_is_as_it_was_where_the_kernel_refuses_the_sa_that_it_was_to_tell_of(kernel, there):
    kernel.observe()
    view = mesh.view()
    told = PeerEntry(3, 0x300000, 2, 7)
    remote = mesh.node(2).addresses[0]
    if there:
        kernel.apply([ops.SetPeer(remote, replace(told, spi=1))])
    refused = [
        ops.AddSa(Sa(mesh.node(1).addresses[0], remote, 0, view.keys[1]), told),  # SPI 0 is none
        ops.AddSa(Sa(mesh.node(1).addresses[0], remote, 0, view.keys[1], replay_window=64), told),
    ]
    failures = kernel.apply([*refused, ops.SetPeer(mesh.node(3).addresses[0], told)])
    assert [failure.operation for failure in failures] == refused
    assert kernel.observe().state.peers.get(remote) == (replace(told, spi=1) if there else None)
    assert kernel.observe().state.peers[mesh.node(3).addresses[0]] == told

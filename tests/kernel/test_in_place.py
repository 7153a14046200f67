# SPDX-License-Identifier: Apache-2.0
"""What is ours stays in place while a daemon runs, whoever removes what nobody notifies of; and what that costs."""

import os
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from kmesh_bpf import LinuxKernel, Settings, claim
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.devices import decide
from kmesh_bpf.core.state import Attachment, PeerEntry, PodFlags, Program
from kmesh_bpf.errors import ConflictError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.interface import AttachMode
from kmesh_bpf.kernel.maps import open_maps
from tests.kernel import tiny_bpf
from tests.lab.network import run

NODE = [ip_address("10.10.0.1")]
POD, REMOTE = ip_address("10.244.1.7"), ip_address("10.244.2.7")
ALL_MODES = pytest.mark.parametrize("kernel", ["tcx", "clsact"], indirect=True)


@pytest.fixture
def root(pin_root: Path) -> Path:
    return pin_root / "node"


@pytest.fixture
def kernel(
    netns: str, new_netns: Callable[[], str], root: Path, request: pytest.FixtureRequest
) -> Iterator[LinuxKernel]:
    """A node with an uplink, a managed pod and one managed pod elsewhere, all in place and observed."""
    run(f"ip link add eth0 type veth peer name far netns {new_netns()}; ip addr add 10.10.0.1/24 dev eth0")
    there = new_netns()
    run(f"ip link add pod0 type veth peer name eth0 netns {there}; ip -n {there} addr add {POD}/32 dev eth0")
    mode: AttachMode = getattr(request, "param", "auto")
    root.mkdir()
    with claim(root), closing(LinuxKernel(root, Settings(), attach_mode=mode)) as made:
        put_in_place(made)
        assert not finds(made)
        yield made


def put_in_place(kernel: LinuxKernel) -> None:
    """Do what a pass does, as far as devices and maps go."""
    observed = kernel.observe()
    wanted = decide(observed.links, NODE, (), [POD])
    kernel.apply([ops.Attach(one) for one in wanted.attachments - observed.state.attachments])
    kernel.apply([ops.SetPod(POD, PodFlags.LOCAL), ops.SetPod(REMOTE, PodFlags.REMOTE)])
    kernel.apply([ops.SetSource(address, ifindex) for address, ifindex in wanted.sources.items()])
    kernel.apply([ops.AddPodDevice(ifindex) for ifindex in wanted.pod_devices])
    if kernel.incarnation() is None:
        kernel.remember("one".ljust(36, "0"))
    state = kernel.observe().state
    assert state.attachments == wanted.attachments
    assert (state.sources, state.pod_devices) == (wanted.sources, wanted.pod_devices)


def finds(kernel: LinuxKernel) -> bool:
    """Look, to the end."""
    return any([*kernel.look()])


def attachments(operations: Iterable[ops.Operation]) -> list[Attachment]:
    return [one.attachment for one in operations if isinstance(one, ops.Attach)]


def program_ids(root: Path) -> set[int]:
    return {bpf.program_id(path) for path in root.glob("programs/*/*")}


def pins(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_whoever_unpins_links_detaches_nothing_and_the_pins_are_back_at_the_next_look(kernel, root):
    before, attached = pins(root), kernel.observe().state.attachments
    shutil.rmtree(root / "links")
    assert kernel.observe().state.attachments == attached
    assert pins(root) == before
    for path in (root / "links").iterdir():
        path.unlink()
    assert not finds(kernel), "nothing was ever off"
    assert pins(root) == before


@ALL_MODES
def test_a_pin_root_that_was_removed_is_made_again_whole_and_nothing_is_compiled(kernel, root):
    before, ids, state = pins(root), program_ids(root), kernel.observe().state
    shutil.rmtree(root)
    assert finds(kernel), "a pass should see to it that all is well"
    assert (pins(root), program_ids(root)) == (before, ids)
    assert kernel.observe().state == state
    assert not finds(kernel)
    with closing(LinuxKernel(root, Settings())) as another:
        assert not another.compiled
        assert another.observe().state == state


def test_a_pass_itself_makes_a_removed_pin_root_again(kernel, root):
    before, state = pins(root), kernel.observe().state
    shutil.rmtree(root)
    assert kernel.observe().state == state
    assert pins(root) == before


def test_a_removed_pin_root_is_claimed_again_and_a_second_daemon_is_refused(kernel, root):
    for _ in range(2):
        shutil.rmtree(root)
        finds(kernel)
        with pytest.raises(ConflictError), claim(root):
            pass


def test_a_second_daemon_that_was_faster_is_told_of(kernel, root):
    shutil.rmtree(root)
    with claim(root), pytest.raises(ConflictError, match="a second daemon"):
        finds(kernel)


@pytest.mark.parametrize(
    "change",
    [
        lambda maps: maps.delete_pod(REMOTE),
        lambda maps: maps.set_pod(REMOTE, PodFlags.LOCAL),
        lambda maps: maps.set_pod(ip_address("10.244.2.8"), PodFlags.REMOTE),
        lambda maps: maps.delete_source(POD),
        lambda maps: maps.set_source(POD, 999),
        lambda maps: [maps.delete_pod_device(one) for one in maps.pod_devices()],
        lambda maps: maps.add_pod_device(999),
        lambda maps: maps.set_identity("another", 0),
        lambda maps: maps.add_service(ip_network("10.96.0.0/12")),
        lambda maps: maps.set_peer(ip_address("10.10.0.2"), PeerEntry(1, 1 << 20, 0, 1)),
        lambda maps: maps.set_former(7, 1),
    ],
)
def test_an_entry_that_is_removed_altered_or_added_by_hand_is_seen_at_the_next_look(kernel, root, change):
    with closing(open_maps(root)) as maps:
        change(maps)
    assert finds(kernel)
    kernel.observe()
    assert not finds(kernel), "a pass has looked into it"


@ALL_MODES
def test_a_program_that_is_taken_off_by_force_is_seen_and_put_back(kernel, root):
    link = root / "links" / f"{socket.if_nametoindex('eth0')}-tc_leak_guard"
    if link.exists():
        run(f"bpftool link detach pinned {link}")
    else:
        run("tc qdisc del dev eth0 clsact")
    assert finds(kernel)
    put_in_place(kernel)
    assert not finds(kernel)


@pytest.mark.parametrize("direction", [tiny_bpf.TCX_INGRESS, tiny_bpf.TCX_EGRESS])
@pytest.mark.parametrize("device", ["eth0", "pod0"])
def test_a_program_that_somebody_puts_ahead_of_ours_is_seen_and_ours_goes_ahead_again(kernel, device, direction):
    """One that ends the chain would have everything leave in clear, and come in so."""
    fd = tiny_bpf.load(0xA, tiny_bpf.TC_ACT_OK)
    ahead = tiny_bpf.attach(fd, socket.if_nametoindex(device), direction, first=True)
    try:
        assert finds(kernel)
        put_in_place(kernel)
        assert not finds(kernel)
        assert tiny_bpf.running(socket.if_nametoindex(device), direction)[1:] == [bpf.program_number(fd, device)]
    finally:
        os.close(ahead)
        os.close(fd)


def test_counters_that_count_are_no_reason_to_look_closer(kernel, netns):
    before = kernel.counters()
    run("ip link set eth0 up; ip link set lo up")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", 9))
    kernel.observe()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", 9))
    assert not finds(kernel)
    assert kernel.counters().keys() == before.keys()


@ALL_MODES
def test_a_device_that_comes_has_its_programs_at_once_and_no_other_device_is_touched(kernel, new_netns):
    there, told = new_netns(), kernel.subscribe()
    kernel.changed()
    run(f"ip link add late0 type veth peer name far netns {there}")
    assert select.select(told, [], [], 5)[0]
    assert kernel.changed()
    done, failures = kernel.attach_missing(NODE, ())
    attached = attachments(done)
    index = socket.if_nametoindex("late0")
    assert [one.program for one in attached] == [Program.LEAK_GUARD, Program.MARK_DECRYPT]
    assert {one.ifindex for one in attached} == {index}
    assert failures == ()
    assert len(done) == len(attached)
    assert set(attached) <= kernel.observe().state.attachments
    assert kernel.attach_missing(NODE, ()) == ((), ())


def test_a_pod_that_is_made_again_under_its_address_is_bound_to_its_new_device_before_that_has_its_program(
    kernel, new_netns
):
    old, there = kernel.observe().state.sources[POD], new_netns()
    run(f"ip link del pod0; ip link add pod0 type veth peer name eth0 netns {there}; ip link set pod0 up")
    run(f"ip -n {there} -b -", f"addr add {POD}/32 dev eth0\nlink set eth0 up\nroute add {REMOTE} dev eth0")
    run(f"ip -n {there} neigh add {REMOTE} lladdr 02:00:00:00:00:01 dev eth0")
    new = socket.if_nametoindex("pod0")
    done, failures = kernel.attach_missing(NODE, ())
    programs = (ops.Attach(Attachment(new, "pod0", program)) for program in (Program.MARK_ENCRYPT, Program.POD_GUARD))
    assert done == (ops.DeletePodDevice(old), ops.SetSource(POD, new), ops.AddPodDevice(new), *programs)
    assert failures == ()
    before = kernel.counters()
    run(f"ip netns exec {there} bash -c 'echo x > /dev/udp/{REMOTE}/9'")
    after = kernel.counters()
    assert (after["marked"], after["dropped_spoofed"]) == (before["marked"] + 1, before["dropped_spoofed"])
    assert kernel.attach_missing(NODE, ()) == ((), ())


def test_what_is_bound_to_a_device_that_is_gone_is_released_at_once_and_no_other_pod_is_bound_to_it(kernel, new_netns):
    old, there = kernel.observe().state.sources[POD], new_netns()
    run(f"ip link add pod1 type veth peer name eth0 netns {there}; ip -n {there} addr add {POD}/32 dev eth0")
    new, programs = socket.if_nametoindex("pod1"), (Program.MARK_ENCRYPT, Program.POD_GUARD)
    kernel.apply([ops.Attach(Attachment(new, "pod1", program)) for program in programs])
    assert kernel.attach_missing(NODE, ()) == ((), ()), "the first one has it"
    run("ip link del pod0")
    assert kernel.attach_missing(NODE, ()) == ((ops.DeletePodDevice(old), ops.DeleteSource(POD)), ())
    state = kernel.observe().state
    assert (state.sources, state.pod_devices) == ({}, frozenset())


def test_what_a_device_refuses_is_told_and_the_others_get_theirs(kernel, new_netns, monkeypatch):
    there = new_netns()
    for one in range(2):
        run(f"ip link add late{one} type veth peer name far{one} netns {there}")
    attach, refused = kernel._tc.attach, socket.if_nametoindex("late0")

    def refusing(attachment: Attachment, program: Path) -> None:
        if attachment.ifindex == refused:
            raise ConflictError("attach", attachment.device, 17)
        attach(attachment, program)

    monkeypatch.setattr(kernel._tc, "attach", refusing)
    done, failures = kernel.attach_missing(NODE, ())
    attached = attachments(done)
    assert {one.device for one in attached} == {"late1"}
    assert [type(one.error) for one in failures] == [ConflictError] * 2


@ALL_MODES
def test_what_a_look_and_a_new_device_cost_with_a_hundred_pods_and_a_hundred_thousand_entries(
    kernel, new_netns, capsys
):
    there = new_netns()
    run("ip -b -", "\n".join(f"link add v{one} type veth peer name e{one} netns {there}" for one in range(100)))
    run(f"ip -n {there} -b -", "\n".join(f"addr add 10.244.8.{one + 1}/32 dev e{one}" for one in range(100)))
    kernel.apply([ops.SetPod(ip_address((11 << 24) + one), PodFlags.REMOTE) for one in range(100_000)])
    kernel.attach_missing(NODE, ())
    kernel.observe()
    looks = [seconds(lambda: finds(kernel)) for _ in range(5)]
    assert not finds(kernel)
    told = kernel.subscribe()
    delays = []
    for one in range(5):
        kernel.changed()
        run(f"ip link add late{one} type veth peer name far{one} netns {there}")
        began = time.perf_counter()
        select.select(told, [], [], 5)
        kernel.changed()
        done, _ = kernel.attach_missing(NODE, ())
        delays.append(time.perf_counter() - began)
        assert len(attachments(done)) == 2
    with capsys.disabled():
        print(f"\n  look: {min(looks) * 1000:.1f} ms; new device to programs: {sorted(delays)[2] * 1000:.1f} ms")
    assert min(looks) < 0.5


def seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began

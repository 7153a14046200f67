# SPDX-License-Identifier: Apache-2.0
"""A whole daemon on one node without peers (no ESP is needed for that): what it keeps in place, and how soon."""

import re
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kmesh_bpf import boot_guard
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.maps import open_maps
from tests.lab.cluster import LABEL, Daemon, node_manifest, pod_manifest, wait_for
from tests.lab.network import Node, Pod, run

POD = ip_address("10.244.1.7")


@pytest.fixture
def daemon(netns: str, new_netns: Callable[[], str], tmp_path: Path) -> Iterator[Daemon]:
    """The daemon of a node with one managed pod, ready."""
    there = new_netns()
    run(
        f"ip link add eth0 type veth peer name far netns {there}; ip addr add 10.10.0.1/24 dev eth0; ip link set eth0 up"
    )
    run(f"ip link add pod0 type veth peer name eth0 netns {there}; ip -n {there} addr add {POD}/32 dev eth0")
    folder = tmp_path / "cluster"
    folder.mkdir()
    node = node_manifest(Node(1))
    node["metadata"]["name"] = netns
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {LABEL: "Kmesh"}}}
    pod = pod_manifest(Pod("p1", netns, (POD,), "pod0"))
    for name, manifest in (("node", node), ("namespace", namespace), ("pod", pod)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(manifest))
    made = Daemon(netns, SimpleNamespace(folder=folder), tmp_path)
    made.start("--health-address=")
    made.wait_ready(60)
    yield made
    made.stop()
    made.uninstall()


def pins(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def seconds_until(what: str, true: Callable[[], bool]) -> float:
    return wait_for(what, true, 10)


def test_a_pin_root_that_is_removed_is_back_within_a_second_or_so(daemon: Daemon) -> None:
    before = pins(daemon.pin_root)
    ids = {bpf.program_id(path) for path in daemon.pin_root.glob("programs/*/*")}
    shutil.rmtree(daemon.pin_root)
    assert seconds_until("the pins are not back", lambda: pins(daemon.pin_root) == before) < 2.5
    assert {bpf.program_id(path) for path in daemon.pin_root.glob("programs/*/*")} == ids
    assert "compiled" not in daemon.text().partition(" ready: ")[2]


def test_an_entry_that_is_removed_by_hand_is_back_within_a_second_or_so(daemon: Daemon) -> None:
    maps = open_maps(daemon.pin_root)
    assert POD in maps.pods()
    maps.delete_pod(POD)
    maps.delete_source(POD)
    assert seconds_until("the entry is not back", lambda: POD in maps.pods() and POD in maps.sources()) < 2.5
    maps.close()


def test_a_program_that_is_detached_by_force_is_back_within_a_second_or_so(daemon: Daemon) -> None:
    link = daemon.pin_root / "links" / f"{socket.if_nametoindex('eth0')}-tc_leak_guard"
    run(f"bpftool link detach pinned {link}")

    def runs() -> bool:
        with bpf.opened(link) as fd:
            return bpf.link_info(fd, link).ifindex != 0

    assert seconds_until("the program is not back", lambda: link.exists() and runs()) < 2.5


@pytest.mark.parametrize(
    ("command", "undo", "words"),
    [
        (
            "add dst 10.244.2.10 dir out priority 1",
            "delete dst 10.244.2.10 dir out",
            "out 0.0.0.0/0 -> 10.244.2.10/32 of priority 1 is not ours and comes before ours",
        ),
        ("setdefault fwd block", "setdefault fwd accept", "ip xfrm policy setdefault fwd accept"),
    ],
    ids=["a policy", "a default"],
)
def test_what_others_have_xfrm_do_ahead_of_ours_is_told(
    daemon: Daemon, tmp_path: Path, command: str, undo: str, words: str
) -> None:
    other = pod_manifest(Pod("p2", "n2", (ip_address("10.244.2.10"),), "eth0"))
    for name, manifest in (("node2", node_manifest(Node(2))), ("pod2", other)):
        (tmp_path / "cluster" / f"{name}.yaml").write_text(yaml.safe_dump(manifest))
    seconds_until("the pod elsewhere is not known", lambda: "10.244.2.10" in daemon.managed())
    assert words not in daemon.text()
    run(f"ip xfrm policy {command}")
    seconds_until("it is not told", lambda: words in daemon.text())
    run(f"ip xfrm policy {undo}")


def test_how_soon_a_device_that_comes_has_its_programs(
    daemon: Daemon, new_netns: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    there, delays = new_netns(), []
    for number in range(10):
        time.sleep(0.3)
        run(f"ip link add new{number} type veth peer name far{number} netns {there}")
        began, index = time.monotonic(), socket.if_nametoindex(f"new{number}")
        pinned = [daemon.pin_root / "links" / f"{index}-{name}" for name in ("tc_leak_guard", "tc_mark_decrypt")]
        while not all(pin.exists() for pin in pinned):
            assert time.monotonic() - began < 5
            time.sleep(0.0005)
        delays.append(time.monotonic() - began)
    with capsys.disabled():
        print(f"\n  new device to programs, seen from outside: {sorted(round(one * 1000, 1) for one in delays)} ms")
    assert sorted(delays)[5] < 0.5


def test_a_device_that_comes_after_a_restart_has_its_programs_though_the_cluster_is_away(
    daemon: Daemon, new_netns: Callable[[], str], tmp_path: Path
) -> None:
    daemon.stop()
    torn = tmp_path / "cluster" / "torn.yaml"
    torn.write_text("{")  # a file that was never read whole: the cluster is not known
    there = new_netns()
    run(f"ip link add early type veth peer name far0 netns {there}")
    daemon.start("--health-address=")
    wait_for("it does not say so", lambda: "the cluster is not known yet" in daemon.text(), 60)
    run(f"ip link add late type veth peer name far1 netns {there}")
    for name in ("early", "late"):
        pinned = daemon.pin_root / "links" / f"{socket.if_nametoindex(name)}-tc_leak_guard"
        seconds_until(f"{name} is not guarded", pinned.exists)
    assert " ready: " not in daemon.text()
    torn.unlink()
    daemon.wait_ready(60)


def test_a_pod_that_gets_its_address_after_its_device_came_is_found_without_any_notification(
    daemon: Daemon, new_netns: Callable[[], str]
) -> None:
    there = new_netns()
    run(f"ip link add pod1 type veth peer name eth0 netns {there}")
    index = socket.if_nametoindex("pod1")
    links = daemon.pin_root / "links"
    seconds_until("it is not guarded", (links / f"{index}-tc_leak_guard").exists)
    run(f"ip -n {there} addr add 10.244.1.8/32 dev eth0")
    took = seconds_until("it is no pod's", lambda: pins(links) >= {f"{index}-tc_mark_encrypt"})
    assert took < 2.5
    wait_for("it has the guard still", lambda: not (links / f"{index}-tc_leak_guard").exists(), 5)


def test_the_guard_of_a_boot_is_lifted_when_all_is_in_place_and_the_next_one_is_kept_until_uninstall(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The fixture's daemon has made its first pass; another start plays the next boot."""
    state = tmp_path / f"state-{daemon.node}"
    assert not state.exists(), "nothing is managed elsewhere"
    pod = pod_manifest(Pod("p2", "elsewhere", (ip_address("10.244.2.7"),), ""))
    node = node_manifest(Node(2))
    node["metadata"]["name"] = "elsewhere"
    for name, manifest in (("node2", node), ("pod2", pod)):
        (tmp_path / "cluster" / f"{name}.yaml").write_text(yaml.safe_dump(manifest))
    wait_for("nothing is kept", (state / "boot-guard.nft").exists, 15)
    assert "10.244.2.7" in (state / "boot-guard.nft").read_text()
    assert daemon.stop() == 0
    assert boot_guard.install(state)
    assert "kmesh_boot_guard" in run("nft list tables")
    daemon.start("--health-address=")
    daemon.wait_ready(60)
    wait_for("the guard is still there", lambda: "kmesh_boot_guard" not in run("nft list tables"), 5)
    assert daemon.stop() == 0
    assert daemon.uninstall().returncode == 0
    assert not state.exists()
    daemon.start("--health-address=")
    daemon.wait_ready(60)


def test_a_daemon_without_a_descriptor_left_tells_it_in_a_line_and_goes_on_when_it_has_some(
    daemon: Daemon, tmp_path: Path
) -> None:
    assert daemon.process is not None
    pid, late = daemon.process.pid, ip_address("10.244.2.9")
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    run("nft add table inet unrelated; nft add table ip kmesh_ipsec")  # what a pass has to run nft for
    pod = pod_manifest(Pod("p2", "elsewhere", (late,), ""))
    (tmp_path / "cluster" / "pod2.yaml").write_text(yaml.safe_dump(pod))
    wait_for("nothing is told", lambda: "Too many open files" in daemon.text(), 20)
    assert daemon.process.poll() is None
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    maps = open_maps(daemon.pin_root)
    wait_for("it has not gone on", lambda: late in maps.pods(), 40)
    maps.close()
    entries = re.split(r"\n(?=2)", daemon.text())  # at DEBUG, which the lab has, a fault's origin is of several lines
    assert not [one for one in entries if "\n" in one.rstrip() and " DEBUG " not in one.splitlines()[0]]
    assert [one for one in entries if "Too many open files" in one and "trying again in" in one]

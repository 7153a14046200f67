# SPDX-License-Identifier: Apache-2.0
"""The guard of a node's boot: nft takes what is kept, packets are dropped and counted, and it goes without a trace."""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from kmesh_bpf import ConfigError, boot_guard
from tests.lab.cluster import ROOT
from tests.lab.network import inside, run, socket_in

POD, REMOTE, OTHER = "10.244.1.7", "10.244.2.7", "10.244.2.8"


@pytest.fixture
def pod(netns: str, new_netns: Callable[[], str]) -> str:
    """A pod behind this namespace, which forwards to where the remote addresses are."""
    here, there = new_netns(), new_netns()
    run(
        f"ip link add pod0 type veth peer name eth0 netns {here}; ip link add up0 type veth peer name eth0 netns {there}"
    )
    run("ip link set pod0 up; ip link set up0 up; ip addr add 10.0.0.1/24 dev up0; sysctl -qw net.ipv4.ip_forward=1")
    run(f"ip route add {POD} dev pod0; ip route add 10.244.2.0/24 via 10.0.0.2")
    run(
        f"ip -n {here} addr add {POD}/32 dev eth0; ip -n {here} link set eth0 up; ip -n {here} route add default dev eth0"
    )
    run("sysctl -qw net.ipv4.conf.pod0.proxy_arp=1 net.ipv4.conf.all.rp_filter=0")
    run(f"ip -n {there} addr add 10.0.0.2/24 dev eth0; ip -n {there} link set eth0 up")
    run(f"ip -n {there} addr add {REMOTE}/32 dev lo; ip -n {there} addr add {OTHER}/32 dev lo")
    run(f"ip -n {there} route add {POD} via 10.0.0.1")
    return f"{here} {there}"


def arrives(namespaces: str, address: str) -> bool:
    here, there = namespaces.split()
    with (
        closing(socket_in(there, socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
        closing(socket_in(here, socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        receiver.bind((address, 5000))
        receiver.settimeout(1)
        sender.sendto(b"x", (address, 5000))
        try:
            return receiver.recv(10) == b"x"
        except TimeoutError:
            return False


def dropped() -> int:
    (found,) = (one for one in json.loads(run("nft -j list counters"))["nftables"] if "counter" in one)
    return int(found["counter"]["packets"])


def test_what_goes_to_an_address_that_was_managed_is_dropped_and_counted_until_it_is_lifted(
    pod: str, tmp_path: Path
) -> None:
    boot_guard.keep(tmp_path, [ip_address(REMOTE), ip_address("fd00:244:2::7")])
    assert arrives(pod, REMOTE)
    assert boot_guard.install(tmp_path)
    assert not arrives(pod, REMOTE)
    assert arrives(pod, OTHER)
    assert dropped() == 1
    assert boot_guard.install(tmp_path), "twice is as good as once"
    assert not arrives(pod, REMOTE)
    boot_guard.remove()
    assert arrives(pod, REMOTE)
    assert run("nft list ruleset") == ""
    boot_guard.remove()


def test_plain_nft_loads_the_file_so_that_a_unit_needs_nothing_else(pod: str, tmp_path: Path) -> None:
    boot_guard.keep(tmp_path, [ip_address(REMOTE)])
    unit = (ROOT / "deploy/boot/kmesh-boot-guard.service").read_text()
    (command,) = (line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
    run(command.replace("/var/lib/kmesh-ipsec", str(tmp_path)))
    assert not arrives(pod, REMOTE)


def test_the_daemon_s_command_loads_it_in_a_moment_and_says_so(pod: str, tmp_path: Path) -> None:
    command = f"{ROOT}/scripts/start_kmesh.sh boot-guard --state-dir {tmp_path} 2>&1"
    assert "nothing is kept" in run(command)
    boot_guard.keep(tmp_path, [ip_address(REMOTE)])
    began = time.monotonic()
    assert "dropped until the daemon's first pass" in run(command)
    assert time.monotonic() - began < 2
    assert not arrives(pod, REMOTE)


def test_thirty_thousand_addresses_are_loaded_at_once(netns: str, tmp_path: Path) -> None:
    boot_guard.keep(tmp_path, [ip_address((10 << 24) + number) for number in range(30_000)])
    began = time.monotonic()
    boot_guard.install(tmp_path)
    assert time.monotonic() - began < 3


def test_a_folder_is_made_and_goes_again_unless_somebody_else_uses_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    boot_guard.keep(folder, [ip_address(REMOTE)])
    assert [path.name for path in folder.iterdir()] == ["boot-guard.nft"]
    boot_guard.forget(folder)
    assert not folder.exists()
    boot_guard.forget(folder)
    boot_guard.keep(folder, [ip_address(REMOTE)])
    (folder / "theirs").touch()
    boot_guard.forget(folder)
    assert [path.name for path in folder.iterdir()] == ["theirs"]


def test_of_a_folder_that_a_container_has_mounted_only_the_file_goes(tmp_path: Path) -> None:
    node, container = tmp_path / "node", tmp_path / "container"
    node.mkdir()
    container.mkdir()
    run(f"mount --bind {node} {container}")  # of the same file system: that it is a mount is not easily seen
    try:
        boot_guard.keep(container, [ip_address("10.244.2.10")])
        assert [file.name for file in node.iterdir()] == [boot_guard.FILE]
        boot_guard.forget(container)
        assert not list(node.iterdir())
    finally:
        run(f"umount {container}")


def test_a_folder_that_cannot_be_written_into_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"--state-dir={tmp_path}/file/state"):
        boot_guard.keep(tmp_path / "file/state", [ip_address(REMOTE)])


@pytest.mark.parametrize("which", ["", boot_guard.FILE])
@pytest.mark.parametrize("how", ["owned", "open to all"])
def test_what_others_can_write_is_neither_loaded_nor_written(tmp_path: Path, netns: str, which: str, how: str) -> None:
    folder = tmp_path / "state"
    boot_guard.keep(folder, [ip_address(REMOTE)])
    odd = folder / which
    if how == "owned":
        os.chown(odd, 65534, 65534)
    else:
        odd.chmod(0o777)
    with pytest.raises(ConfigError, match=f"--state-dir={folder}: others than root may write {odd}; remove it"):
        boot_guard.install(folder)
    with pytest.raises(ConfigError, match="others than root may write"):
        boot_guard.keep(folder, [ip_address(OTHER)])
    assert run("nft list ruleset") == ""


def test_what_is_kept_is_for_nobody_else_to_write_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        boot_guard.keep(tmp_path / "state", [ip_address(REMOTE)])
    finally:
        os.umask(before)
    boot_guard.keep(tmp_path / "state", [ip_address(OTHER)])


def test_other_namespaces_are_not_touched(netns: str, new_netns: Callable[[], str], tmp_path: Path) -> None:
    boot_guard.keep(tmp_path, [ip_address(REMOTE)])
    boot_guard.install(tmp_path)
    with inside(new_netns()):
        assert run("nft list ruleset") == ""

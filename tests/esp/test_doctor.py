# SPDX-License-Identifier: Apache-2.0
"""kmeshctl doctor where ESP is: nothing is missing, and what tc sets marks with is named."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmesh_bpf.core.doctor import Severity
from kmesh_bpf.kernel.node_facts import diagnose
from kmesh_bpf.kernel.programs import Settings
from tests.lab.network import inside, run

ROOT = Path("/sys/fs/bpf/kmesh-test-none")


@pytest.fixture
def node() -> Iterator[str]:
    run("ip netns add doctor; ip -n doctor link set lo up; ip -n doctor link add eth0 type veth peer name far")
    run("ip -n doctor addr add 10.10.0.1/24 dev eth0; ip -n doctor link set eth0 up; ip -n doctor link set far up")
    run("ip -n doctor route add default via 10.10.0.2")
    with inside("doctor"):
        yield "doctor"
    run("ip netns del doctor")


def test_nothing_is_missing_and_trying_leaves_no_sa(node: str) -> None:
    found = [one for one in diagnose(ROOT, Settings()) if one.severity > Severity.NOTE]
    assert [one for one in found if one.check != "clock"] == []
    assert run("ip xfrm state; ip xfrm policy; nft list ruleset") == ""


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_a_filter_that_sets_marks_is_named(node: str, way: str) -> None:
    run(f"tc qdisc add dev eth0 clsact; tc filter add dev eth0 {way} matchall action skbedit mark 5")
    (one,) = [one for one in diagnose(ROOT, Settings()) if one.check == "in the way"]
    assert one.what.startswith(f"tc filter on eth0, {way}, priority")
    assert "it sets packets' marks (skbedit)" in one.what


def test_the_command_s_exit_status_is_by_the_worst_and_json_has_all_of_it(node: str) -> None:
    command = [str(Path(sys.executable).parent / "kmeshctl"), "doctor", "--pin-root", str(ROOT)]
    well = subprocess.run(command, capture_output=True, text=True, check=False)
    assert well.returncode in (0, 3), well.stdout  # an emulated machine's clock is kept by nobody
    run("ip rule add fwmark 0xd0/0xff blackhole")
    ill = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
    assert ill.returncode == 1
    assert "ip -4 rule del pref 32765" in ill.stdout

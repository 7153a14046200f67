# SPDX-License-Identifier: Apache-2.0
"""The doctor's reader: each thing that can be set up in a namespace is found there, and is gone when it is taken back."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmesh_bpf.core.doctor import Finding, Severity
from kmesh_bpf.kernel import node_facts
from kmesh_bpf.kernel.node_facts import diagnose, look_around
from kmesh_bpf.kernel.programs import Settings
from tests.lab.network import run


@pytest.fixture
def uplink(netns: str, new_netns: Callable[[], str]) -> Iterator[str]:
    there = new_netns()
    run(
        f"ip link add eth0 type veth peer name far netns {there}; ip addr add 10.10.0.1/24 dev eth0; ip link set eth0 up"
    )
    run(f"ip -n {there} link set far up; ip route add default via 10.10.0.2")
    yield "eth0"


def found(root: Path) -> dict[tuple[str, str], Finding]:
    """Give what was found, but for what this machine's kernel lacks."""
    return {(one.check, one.what): one for one in diagnose(root, Settings()) if one.check not in ("kernel", "clock")}


SET_UP = {
    "a rule that drops what was decrypted": (
        "ip rule add fwmark 0xd0/0xff blackhole",
        "ip -4 rule 32765: it chooses a routing table by fwmark 0xd0/0xff",
        "ip rule del priority 32765 fwmark 0xd0/0xff",
        Severity.ERROR,
    ),
    "the same of IPv6, by the device": (
        "ip addr add fd00:10::1/64 dev eth0 nodad; ip -6 rule add iif eth0 unreachable",
        "ip -6 rule 32765: iif eth0 unreachable",
        "ip -6 rule del priority 32765 iif eth0",
        Severity.ERROR,
    ),
    "a rule that reads our marks": (
        "ip rule add fwmark 0xe0/0xf0 lookup 100",
        "ip -4 rule 32765: it chooses a routing table by fwmark 0xe0/0xf0",
        "ip rule del priority 32765 fwmark 0xe0/0xf0",
        Severity.ERROR,
    ),
    "a filter that redirects": (
        "tc qdisc add dev eth0 clsact;"
        " tc filter add dev eth0 ingress protocol ip u32 match u32 0 0 action mirred egress redirect dev lo",
        "it redirects packets to lo (mirred)",
        "tc qdisc del dev eth0 clsact",
        Severity.ERROR,
    ),
    "a rule of nft that restores marks": (
        "nft -f - <<<'table inet fw { chain pre { type filter hook prerouting priority -150; meta mark set ct mark; }; }'",
        "setting the packet's mark from the connection's",
        "nft delete table inet fw",
        Severity.ERROR,
    ),
    "a device kept from XFRM": (
        "sysctl -qw net.ipv4.conf.eth0.disable_xfrm=1",
        "disable_xfrm keeps what leaves",
        "sysctl -qw net.ipv4.conf.eth0.disable_xfrm=0",
        Severity.ERROR,
    ),
    "a default that drops": (
        "ip xfrm policy setdefault out block",
        "XFRM drops what no policy selects",
        "ip xfrm policy setdefault out accept",
        Severity.ERROR,
    ),
    "a policy of others": (
        "ip xfrm policy add src 10.0.0.0/8 dst 10.0.0.0/8 dir out priority 1",
        "is not ours and comes before ours",
        "ip xfrm policy flush",
        Severity.ERROR,
    ),
}


@pytest.mark.parametrize("name", SET_UP)
def test_what_is_set_up_is_found_and_gone_when_it_is_taken_back(uplink: str, pin_root: Path, name: str) -> None:
    set_up, words, take_back, severity = SET_UP[name]

    def told() -> list[Finding]:
        return [one for (_, what), one in found(pin_root / "none").items() if words in what]

    assert told() == []
    run(set_up)
    (finding,) = told()
    assert finding.severity is severity
    run(take_back)
    assert told() == []


def test_nothing_is_left_and_nothing_is_touched(uplink: str, pin_root: Path) -> None:
    everything = "nft list ruleset; ip xfrm state; ip xfrm policy; ls /sys/class/net; ip rule; ls -R /sys/fs/bpf"
    before = run(everything)
    diagnose(pin_root / "none", Settings())
    assert run(everything) == before


def test_without_bpffs_or_nft_that_is_said(uplink: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    sentences = {one.what: one.mend for one in diagnose(tmp_path / "ours", Settings()) if one.check == "kernel"}
    assert sentences[f"bpffs at {tmp_path} is not available"] == f"mount -t bpf bpf {tmp_path}"
    assert "install Debian's nftables" in sentences["nft is not available"]


def test_sizes_are_the_kernel_s_and_of_another_namespace_s_queues_nothing_is_said(uplink: str) -> None:
    run("ip link set eth0 mtu 1400")
    (device,) = [one for one in node_facts.devices() if one.name == "eth0"]
    assert (device.mtu, device.steered) == (1400, False)


def test_a_daemon_that_starts_tells_of_what_its_passes_do_not_find_out(
    uplink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ip rule add fwmark 0xd0/0xff blackhole")
    assert {one.check for one in look_around()} <= {"kernel", "clock"}, "the rule is the plan's business"
    monkeypatch.setattr(node_facts, "synchronised", lambda: False)
    assert "the clock is not synchronised" in [one.what for one in look_around()]
    monkeypatch.setattr(node_facts, "synchronised", lambda: True)
    assert "the clock is not synchronised" not in [one.what for one in look_around()]


@pytest.mark.parametrize("text", ["", "CONFIG_BPF_SYSCALL=y\n# CONFIG_BPF_JIT is not set\nCONFIG_INET_ESP=m\n"])
def test_the_kernel_s_options_are_read_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(node_facts, "CONFIGURATIONS", (str(tmp_path / "no"), str(tmp_path / "config-{release}")))
    assert node_facts.lacking("6.1") is None
    (tmp_path / "config-6.1").write_text(text)
    lacking = node_facts.lacking("6.1")
    assert lacking is not None
    assert "CONFIG_BPF_JIT" in lacking
    assert ("CONFIG_BPF_SYSCALL" in lacking, "CONFIG_INET_ESP" in lacking) == (not text, not text)


def test_the_command_says_it_and_its_exit_status_is_by_the_worst(uplink: str, pin_root: Path) -> None:
    run("ip rule add fwmark 0xd0/0xff blackhole")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "kmeshctl"), "doctor", "--pin-root", str(pin_root / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "ERROR    in the way: ip -4 rule 32765: it chooses a routing table by fwmark 0xd0/0xff" in done.stdout

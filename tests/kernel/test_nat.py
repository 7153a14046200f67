# SPDX-License-Identifier: Apache-2.0
"""Our nft tables among other people's; what they do to packets is shown in tests/esp/test_nat_exemption.py."""

import errno
import json
import subprocess
from collections.abc import Callable

import pytest

from kmesh_bpf.errors import KernelError, UnsupportedError
from kmesh_bpf.kernel import nat, nft
from kmesh_bpf.kernel.netlink import NetlinkSocket
from tests.lab.network import run

FOREIGN = """
table ip cni {
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0" masquerade
	}
}
table inet kmesh_ipsec {
	chain other {
		meta mark 7 counter
	}
}
"""


def listed() -> str:
    return run("nft -s list ruleset")


def test_installed_is_what_install_writes_and_remove_takes_away(netns: str) -> None:
    assert not nat.installed()
    nat.install()
    assert nat.installed()
    text = listed()
    nat.install()
    assert listed() == text
    nat.remove()
    assert not nat.installed()
    assert listed() == ""
    nat.remove()


def test_the_rules_say_what_the_design_says(netns: str) -> None:
    nat.install()
    for family in ("ip", "ip6"):
        lines = [line.strip() for line in run(f"nft -s list table {family} kmesh_ipsec").splitlines()]
        assert lines[2:5] == [
            "type nat hook postrouting priority srcnat - 10; policy accept;",
            f"meta mark & 0x000000ff == 0x000000e0 rt ipsec exists snat to {family} saddr",
            f"meta l4proto esp meta mark & 0x000000ff == 0x000000e0 snat to {family} saddr",
        ]
        assert lines[8:10] == [
            "type filter hook forward priority filter; policy accept;",
            "meta mark & 0x000000ff == 0x000000f0 ct direction reply ct status snat rt ipsec missing "
            "meta mark set meta mark & 0xffffffcf",
        ]


def test_the_rules_compare_the_bits_that_are_ours_only(netns: str) -> None:
    nat.install(0x7F)
    assert nat.installed(0x7F)
    assert not nat.installed()
    assert nat.Tables(0x7F).installed()
    assert not nat.Tables().installed()
    assert listed().count("meta mark & 0x0000007f == 0x00000060") == 4
    nat.Tables().install()
    assert nat.installed()


def test_other_peoples_tables_stay(netns: str) -> None:
    run("nft -f -", FOREIGN)
    before = listed()
    nat.install()
    assert nat.installed()
    nat.remove()
    assert listed() == before


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table ip kmesh_ipsec",
        "nft flush chain ip6 kmesh_ipsec postrouting",
        "nft add rule ip kmesh_ipsec postrouting accept",
        "nft insert rule ip6 kmesh_ipsec postrouting meta mark 5 return",
        "nft add chain ip kmesh_ipsec more",
        "nft add set ip kmesh_ipsec some '{ type ipv4_addr; }'",
        "nft flush ruleset",
        "nft add chain ip kmesh_ipsec postrouting '{ policy drop; }'",
    ],
)
def test_any_change_to_our_tables_is_noticed_and_put_right(netns: str, damage: str) -> None:
    nat.install()
    text = listed()
    run(damage)
    assert not nat.installed()
    nat.install()
    assert nat.installed()
    assert listed() == text


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Families of which nft was asked for a listing."""
    asked: list[str] = []
    real = nat._listed
    monkeypatch.setattr(nat, "_listed", lambda family: asked.append(family) or real(family))
    return asked


def test_tables_are_listed_again_only_when_any_rule_of_the_namespace_has_changed(
    netns: str, listings: list[str]
) -> None:
    tables = nat.Tables()
    assert not tables.installed()
    nat.install()
    listings.clear()
    assert [tables.installed() for _ in range(3)] == [True] * 3
    assert listings == ["ip", "ip6"]
    run("nft -f -", FOREIGN)
    assert [tables.installed() for _ in range(3)] == [True] * 3
    assert listings == ["ip", "ip6"] * 2
    run("nft flush chain ip kmesh_ipsec postrouting")
    assert not tables.installed()
    assert not tables.installed()
    nat.install()
    assert tables.installed()


def test_other_namespaces_have_generations_of_their_own(netns: str, new_netns: Callable[[], str]) -> None:
    nat.install()
    here = nat.generation()
    assert isinstance(here, int)
    other = new_netns()
    for _ in range(3):
        run(f"nsenter --net=/run/netns/{other} nft add table ip another")
    assert nat.generation() == here
    run("nft add table ip another")
    assert nat.generation() not in (None, here)


def test_where_the_kernel_tells_no_generation_the_tables_are_listed_each_time(
    netns: str, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: NetlinkSocket, request: bytes) -> bytes:
        raise KernelError("get", "netlink object", errno.EINVAL)

    nat.install()
    listings.clear()
    monkeypatch.setattr(NetlinkSocket, "get", refuse)
    tables = nat.Tables()
    assert [tables.installed() for _ in range(2)] == [True] * 2
    assert listings == ["ip", "ip6"] * 2


def test_a_change_of_one_mark_is_noticed(netns: str) -> None:
    nat.install()
    handle = run("nft -a list chain ip kmesh_ipsec postrouting | sed -n 's/.*rt ipsec.*# handle //p'").strip()
    run(
        f"nft replace rule ip kmesh_ipsec postrouting handle {handle}"
        " meta mark and 0xff == 0xe1 rt ipsec exists snat to ip saddr"
    )
    assert not nat.installed()


def test_a_missing_nft_is_named_with_the_way_out(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not nat.installed()
    with pytest.raises(UnsupportedError, match="install Debian's nftables"):
        nat.install()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("netlink: Error: cache initialization failed: Protocol not supported", UnsupportedError),
        ("internal:0:0-0: Error: Could not process rule: No such file or directory", UnsupportedError),
        ("internal:0:0-0: Error: Could not process rule: Operation not supported", UnsupportedError),
        ("internal:0:0-0: Error: Could not process rule: Operation not permitted", KernelError),
        ("internal:0:0-0: Error: something new", KernelError),
    ],
)
def test_what_nft_says_becomes_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, message: str, error: type[Exception]
) -> None:
    refused = subprocess.CompletedProcess([], 1, "", message + "\n")
    monkeypatch.setattr(nft, "finish", lambda *arguments, **options: refused)
    with pytest.raises(error, match=message.rpartition(": ")[2]) as caught:
        nat.install()
    assert type(caught.value) is error


def test_a_listing_in_another_form_than_written_is_an_error_not_an_endless_repetition(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = nft.finish

    def altered(command: list[str], script: str) -> "subprocess.CompletedProcess[str]":
        done = real(command, script)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.replace("255", "256"), done.stderr)

    monkeypatch.setattr(nft, "finish", altered)
    with pytest.raises(KernelError, match="lists other rules than were written"):
        nat.install()


def test_a_protocol_printed_as_a_number_is_the_same(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nft.finish

    def numbers(command: list[str], script: str) -> "subprocess.CompletedProcess[str]":
        done = real(command, script)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.replace('"esp"', "50"), done.stderr)

    nat.install()
    assert '"esp"' in json.dumps(json.loads(run("nft -j list table ip kmesh_ipsec")))
    monkeypatch.setattr(nft, "finish", numbers)
    assert nat.installed()

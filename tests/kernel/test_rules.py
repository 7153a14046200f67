# SPDX-License-Identifier: Apache-2.0
"""Rules of others are found where they are, and their number costs nothing."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmesh_bpf.kernel import rules
from kmesh_bpf.kernel.rules import RARELY, SOON, Rules
from tests.lab.network import run

FILTER = "chain pre { type filter hook prerouting priority -300; fib saddr . mark . iif oif missing drop; }"


def test_a_rule_is_found_in_whatever_chain_prerouting_leads_to(netns: str) -> None:
    assert Rules().suspects() == ()
    run("nft -f -", f"table inet fw {{ {FILTER}\n}}")
    run(
        "nft -f -",
        "table ip more {\nchain deep {\nmeta mark set ct mark\n}\n"
        "chain pre {\ntype filter hook prerouting priority 0\njump deep\n}\n"
        "chain out {\ntype filter hook output priority 0\nmeta mark set ct mark\n}\n}\n",
    )
    found = Rules().suspects()
    assert {(one.where.partition(", handle")[0], one.lost) for one in found} == {
        ("nft table inet fw, chain pre", 0),
        ("nft table ip more, chain deep", 0xFF),
    }


def test_they_are_read_again_rarely_and_only_if_something_changed(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now, read = [0.0], []
    real: Callable[[Callable[[], bool]], object] = rules._read
    monkeypatch.setattr(rules, "_read", lambda in_time: read.append(now[0]) or real(in_time))
    one = Rules(lambda: now[0])
    run("nft add table ip theirs")
    one.suspects()
    run("nft -f -", f"table inet fw {{ {FILTER}\n}}")
    assert one.suspects() == ()
    now[0] += RARELY
    assert len(one.suspects()) == 1
    now[0] += RARELY
    assert len(one.suspects()) == 1
    assert read == [0.0, RARELY]
    run("nft delete table inet fw")
    now[0] += SOON
    assert one.suspects() == (), "what is in the way is looked at more often"


@pytest.mark.parametrize(("took", "wait"), [(0.0, SOON), (0.1, 50.0), (5.0, RARELY)])
def test_what_is_new_is_read_the_sooner_the_less_reading_costs(
    netns: str, monkeypatch: pytest.MonkeyPatch, took: float, wait: float
) -> None:
    now, read = [0.0], []

    def reading(in_time: Callable[[], bool]) -> object:
        read.append(now[0])
        now[0] += took
        return iter(())

    monkeypatch.setattr(rules, "_read", reading)
    one = Rules(lambda: now[0])
    one.suspects()
    run("nft add table ip theirs")
    now[0] = took + wait - 0.01
    one.suspects()
    assert read == [0.0]
    now[0] = took + wait
    one.suspects()
    assert read == [0.0, took + wait]


def test_ten_thousand_rules_of_a_proxy_cost_nothing_worth_noticing(netns: str, tmp_path: Path) -> None:
    chains = "".join(f"chain KUBE-SVC-{one} {{ ip daddr 10.96.0.1 counter; }}\n" for one in range(10_000))
    jump = "".join(f"ip daddr 10.97.{one // 250}.{one % 250} jump KUBE-SVC-{one}\n" for one in range(2000))
    script = tmp_path / "many"
    script.write_text(
        f"table ip proxy {{\n{chains}chain KUBE-ALL {{\n{jump}}}\n"
        "chain pre { type filter hook prerouting priority 0; jump KUBE-ALL; }\n}\n"
    )
    run(f"nft -f {script}")
    began = time.monotonic()
    assert Rules().suspects() == ()
    assert time.monotonic() - began < 2


def test_without_nft_nothing_is_found_and_nothing_fails(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("nft -f -", f"table inet fw {{ {FILTER}\n}}")
    monkeypatch.setenv("PATH", "/nowhere")
    assert Rules().suspects() == ()

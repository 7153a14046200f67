# SPDX-License-Identifier: Apache-2.0
"""Each alert rule, evaluated by promtool over series made up: when it fires, what it says then, and when it does not."""

import re
from dataclasses import dataclass

import pytest
import yaml

from tests.monitoring.promtool import promtool, rules

RULES = {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]}
WELL = "n2"
"""An instance for which the alert may not fire; it is in the series beside those that make it fire."""


@dataclass(frozen=True)
class Case:
    """An alert over series, a sample a minute: still ``quiet`` in one minute, it ``fires`` in another, of these labels.

    Series are written without the prefix of their names. ``value``: how the sentences show the expression's.
    """

    alert: str
    series: dict[str, str]
    quiet: int
    fires: int
    labels: dict[str, str]
    value: str = ""


N1 = {"instance": "n1"}
N3 = {"peer": "n3"}
CASES = [
    Case("NotReady", {'ready{instance="n1"}': "1x4 0x20", 'ready{instance="n2"}': "1x25"}, 9, 10, N1),
    Case(
        "NoSuccessfulPass",
        {
            'last_success_timestamp_seconds{instance="n1"}': "0x20",
            'last_success_timestamp_seconds{instance="n2"}': "0+60x20",
        },
        10,
        11,
        N1,
        "11m 0s",
    ),
    Case(
        "PeersMissing",
        {
            'peers_expected{instance="n1"}': "2x20",
            'peers_ready{instance="n1"}': "1x20",
            'peers_expected{instance="n2"}': "2x20",
            'peers_ready{instance="n2"}': "2x20",
        },
        9,
        10,
        N1,
    ),
    Case("KeyRefused", {'key_refused{instance="n1"}': "0x4 1x9", 'key_refused{instance="n2"}': "0x14"}, 4, 5, N1),
    Case("NoKey", {'key_spi{instance="n1"}': "0x20", 'key_spi{instance="n2"}': "1x20"}, 9, 10, N1),
    Case(
        "KeyReplacementStuck",
        {
            'key_spi{instance="n1"}': "4x40",
            'key_settled_spi{instance="n1"}': "3x40",
            'key_spi{instance="n2"}': "4x40",
            'key_settled_spi{instance="n2"}': "4x40",
            # The first key of all replaces none.
            'key_spi{instance="n4"}': "4x40",
            'key_settled_spi{instance="n4"}': "0x40",
        },
        29,
        30,
        N1,
        "3",
    ),
    Case(
        "KeyOld",
        {'key_age_seconds{instance="n1"}': "7776060x70", 'key_age_seconds{instance="n2"}': "7775940x70"},
        59,
        60,
        N1,
    ),
    Case(
        "SequenceNumbersRunOut",
        {
            'peer_sequence_use_ratio{instance="n1",peer="n3",direction="out"}': "0.75x4 0.76x9",
            'peer_sequence_use_ratio{instance="n2",peer="n3",direction="out"}': "0.75x14",
        },
        4,
        5,
        N1 | N3 | {"direction": "out"},
        "76%",
    ),
    Case(
        "IntegrityFailures",
        {
            'peer_integrity_failures_total{instance="n1",peer="n3"}': "0+1x20",
            'peer_integrity_failures_total{instance="n2",peer="n3"}': "7x20",
        },
        10,
        11,
        N1 | N3,
    ),
    Case(
        "NothingDecrypted",
        {
            'peer_integrity_failures_total{instance="n1",peer="n3"}': "0+1x20",
            'peer_packets_total{instance="n1",peer="n3",direction="in"}': "7x20",
            'peer_packets_total{instance="n1",peer="n3",direction="out"}': "0+9x20",
            'peer_integrity_failures_total{instance="n2",peer="n3"}': "0+1x20",
            'peer_packets_total{instance="n2",peer="n3",direction="in"}': "0+1x20",
            # Idle, and nothing fails.
            'peer_integrity_failures_total{instance="n4",peer="n3"}': "0x20",
            'peer_packets_total{instance="n4",peer="n3",direction="in"}': "7x20",
        },
        10,
        11,
        N1 | N3,
    ),
    Case(
        "Replays",
        {
            'peer_replay_errors_total{instance="n1",peer="n3"}': "0+120x20",
            'peer_replay_errors_total{instance="n2",peer="n3"}': "0+30x20",
        },
        12,
        13,
        N1 | N3,
    ),
    Case(
        "XfrmDrops",
        {
            'xfrm_errors_total{instance="n1",reason="XfrmInNoPols"}': "0+120x20",
            'xfrm_errors_total{instance="n2",reason="XfrmInNoPols"}': "0+30x20",
        },
        12,
        13,
        N1 | {"reason": "XfrmInNoPols"},
        "2",
    ),
    Case(
        "ClearTextDropped",
        {
            'datapath_packets_total{instance="n1",reason="dropped_by_guard"}': "0+1x20",
            'datapath_packets_total{instance="n2",reason="marked"}': "0+99x20",
        },
        10,
        11,
        N1 | {"reason": "dropped_by_guard"},
    ),
    Case(
        "ClearTextAllowed",
        {
            'datapath_packets_total{instance="n1",reason="allowed_clear_text"}': "0+1x20",
            'datapath_packets_total{instance="n2",reason="allowed_clear_text"}': "5x20",
        },
        10,
        11,
        N1 | {"reason": "allowed_clear_text"},
    ),
    Case(
        "ViewOld",
        {'view_age_seconds{instance="n1"}': "0+60x20", 'view_age_seconds{instance="n2"}': "60x20"},
        6,
        7,
        N1,
        "7m 0s",
    ),
    Case(
        "Problems",
        {'problems{instance="n1",scope="plan"}': "2x20", 'problems{instance="n2",scope="plan"}': "0x20"},
        14,
        15,
        N1 | {"scope": "plan"},
        "2",
    ),
    Case(
        "SlowPasses",
        {
            'reconcile_duration_seconds_bucket{instance="n1",le="5.0"}': "0x40",
            'reconcile_duration_seconds_bucket{instance="n1",le="10.0"}': "0+1x40",
            'reconcile_duration_seconds_bucket{instance="n1",le="+Inf"}': "0+1x40",
            'reconcile_duration_seconds_bucket{instance="n2",le="5.0"}': "0+1x40",
            'reconcile_duration_seconds_bucket{instance="n2",le="10.0"}': "0+1x40",
            'reconcile_duration_seconds_bucket{instance="n2",le="+Inf"}': "0+1x40",
        },
        30,
        31,
        N1,
        "9.5s",
    ),
]


def shown(sentence: str, case: Case) -> str:
    """Fill in a sentence of a rule as Prometheus should."""
    sentence = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: case.labels[found[1]], sentence)
    return re.sub(r"\{\{ \$value( \| \w+)? \}\}", case.value, sentence)


def document(case: Case, rule_file: str) -> dict:
    """Give what promtool shall find, in the form of its test files."""
    rule = RULES[f"KmeshIpsec{case.alert}"]
    fired = {
        "exp_labels": rule["labels"] | case.labels,
        "exp_annotations": {name: shown(text, case) for name, text in rule["annotations"].items()},
    }
    series = [{"series": f"kmesh_ipsec_{name}", "values": values} for name, values in case.series.items()]
    asked = [
        {"eval_time": f"{minute}m", "alertname": rule["alert"], "exp_alerts": alerts}
        for minute, alerts in ((case.quiet, []), (case.fires, [fired]))
    ]
    return {
        "rule_files": [rule_file],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": asked}],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_when_it_should_for_whom_it_should_and_fills_in_its_sentences(case, tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(document(case, "rules.yaml")))
    done = promtool("test", "rules", str(tmp_path / "case.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_with_an_instance_that_is_well():
    assert {f"KmeshIpsec{case.alert}" for case in CASES} == set(RULES)
    assert all(any(f'instance="{WELL}"' in name for name in case.series) for case in CASES)

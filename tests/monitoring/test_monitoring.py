# SPDX-License-Identifier: Apache-2.0
"""The metrics as Prometheus takes them, and what stands on them: alerts, dashboard, the page for operators."""

import json
import re
import subprocess

import yaml
from kmesh.telling import process
from kmesh.telling.metrics import FAMILIES, render
from kmesh.telling.readiness import judged

from tests.monitoring.promtool import ALERTS, DASHBOARD, ROOT, promtool, rules
from tests.unit.core import mesh
from tests.unit.launcher.standin import Passes

NAME = re.compile(r"\bkmesh_ipsec_[a-z_]+")
DERIVED = re.compile(r"_(bucket|sum|count)$")
NAMES = {family.full_name for family in FAMILIES}
PANELS = json.loads(DASHBOARD.read_text())["panels"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]


def sample() -> str:
    passes = Passes()
    passes.run(mesh.view())
    for identity in passes.kernel.sas:
        passes.kernel.use(identity, 1234.0, packets=5)
    return render(judged(passes.run(mesh.view()), 2000.0, 0.0))


def test_promtool_finds_nothing_to_say_about_the_metrics():
    done = promtool("check", "metrics", stdin=sample())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_promtool_does_find_what_is_wrong_with_a_metric():
    assert promtool("check", "metrics", stdin="# TYPE bad_total gauge\nbad_total 1\n").returncode != 0


def test_promtool_takes_the_alert_rules_as_the_command_in_their_file_gives_them(tmp_path):
    (command,) = re.findall(r"^#     (sed .*)$", ALERTS.read_text().partition("apiVersion")[0], re.MULTILINE)
    given = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S602 # our own words
    assert yaml.safe_load(given) == rules()
    (tmp_path / "rules.yaml").write_text(given)
    done = promtool("check", "rules", str(tmp_path / "rules.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_runbook_of_its_own_that_is_there():
    page = (ROOT / "docs/troubleshooting.md").read_text().partition("\n## Alerts\n")[2]
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    alerts = [rule for group in rules()["groups"] for rule in group["rules"]]
    assert headings == [rule["alert"] for rule in alerts]
    for rule in alerts:
        anchor = rule["alert"].lower()  # as the forges make them of headings
        assert rule["annotations"]["runbook_url"] == f"docs/troubleshooting.md#{anchor}"


def test_promtool_finds_nothing_to_say_about_the_process_s_metrics():
    done = promtool("check", "metrics", stdin=process.text(process.PROC))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_dashboard_begins_with_a_row_of_numbers_that_turn_red_or_tell_that_they_do():
    first = [panel for panel in PANELS if panel["gridPos"]["y"] == 0]
    assert first == PANELS[: len(first)]
    assert [panel["title"] for panel in first] == [
        "Nodes",
        "Packets in clear, last hour",
        "Drops, last hour",
        "Age of the key",
    ]
    for panel in first:
        assert panel["type"] == "stat"
        assert panel["options"]["colorMode"] == "background"
        assert "red" in json.dumps(panel["fieldConfig"])
        assert panel["description"]


def test_no_two_panels_of_the_dashboard_lie_on_each_other_and_each_fits():
    taken = [
        (x, y)
        for where in (panel["gridPos"] for panel in PANELS)
        for x in range(where["x"], where["x"] + where["w"])
        for y in range(where["y"], where["y"] + where["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_every_metric_that_alerts_and_dashboard_name_is_there():
    for path in (ALERTS, DASHBOARD):
        named = {DERIVED.sub("", one) for one in NAME.findall(path.read_text())}
        assert named
        assert named <= NAMES, path


def test_the_sample_shows_every_metric():
    assert {DERIVED.sub("", name) for name in re.findall(r"^(kmesh_ipsec_\w+)", sample(), re.MULTILINE)} == NAMES


def test_every_panel_has_a_title_of_its_own_and_lines_that_can_be_told_apart():
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        for field in ("expr", "legendFormat", "refId"):
            assert len({target[field] for target in panel["targets"]}) == len(panel["targets"]) > 0, panel["title"]


def test_promtool_takes_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": "asked", "expr": target["expr"]} for target in TARGETS]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=none", str(tmp_path / "rules.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_query_of_the_dashboard_joins_with_or():
    # Of series with the same labels it gives the left one only: the others need queries of their own.
    assert not [target["expr"] for target in TARGETS if re.search(r"\bor\b", target["expr"])]

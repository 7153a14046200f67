"""The metrics as Prometheus takes them, and what stands on them: alerts, dashboard, the page for operators."""

import json
import re
import subprocess
from pathlib import Path

from kmesh.launcher.metrics import FAMILIES, Now, render

from tests.unit.core import mesh
from tests.unit.launcher.standin import Passes

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
NAME = re.compile(r"\bkmesh_ipsec_[a-z_]+")
DERIVED = re.compile(r"_(bucket|sum|count)$")
NAMES = {family.full_name for family in FAMILIES}


def sample() -> str:
    passes = Passes()
    passes.run(mesh.view())
    for identity in passes.kernel.sas:
        passes.kernel.use(identity, 1234.0, packets=5)
    return render(Now(passes.run(mesh.view()), 2000.0, 0.0, ready=True))


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)


def test_promtool_finds_nothing_to_say_about_the_metrics():
    done = promtool("check", "metrics", stdin=sample())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_promtool_does_find_what_is_wrong_with_a_metric():
    assert promtool("check", "metrics", stdin="# TYPE bad_total gauge\nbad_total 1\n").returncode != 0


def test_promtool_takes_the_alert_rules():
    done = promtool("check", "rules", str(MONITORING / "alerts.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_alerts_and_dashboard_name_is_there():
    for name in ("alerts.yaml", "dashboard.json"):
        named = {DERIVED.sub("", one) for one in NAME.findall((MONITORING / name).read_text())}
        assert named
        assert named <= NAMES, name


def test_the_sample_shows_every_metric():
    assert {DERIVED.sub("", name) for name in re.findall(r"^(kmesh_ipsec_\w+)", sample(), re.MULTILINE)} == NAMES


def test_every_metric_is_documented_with_its_type_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert dict(rows) == {family.full_name: family.kind for family in FAMILIES}


def test_every_panel_has_a_query_and_a_title_of_its_own():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])

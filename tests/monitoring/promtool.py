# SPDX-License-Identifier: Apache-2.0
"""Prometheus' own tool, and what we give to Prometheus."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/monitoring/alerts.yaml"
DASHBOARD = ROOT / "deploy/monitoring/dashboard.json"


def rules() -> dict[str, Any]:
    """Give the alert rules as a file of Prometheus' own has them: the spec of the operator's object."""
    spec: dict[str, Any] = yaml.safe_load(ALERTS.read_text())["spec"]
    return spec


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)

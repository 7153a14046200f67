# SPDX-License-Identifier: Apache-2.0
"""The pages for operators tell of everything that is there, and of nothing else."""

import re
from pathlib import Path

import pytest
from kmesh.launcher import config
from kmesh.telling import conditions
from kmesh.telling.metrics import FAMILIES

from kmesh_bpf import contract

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("[A-Z]*.md")])
PAGES.append(ROOT / "deploy/monitoring/alerts.yaml")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_every_flag_of_the_daemon_is_documented_and_no_other():
    flags = {word for action in config._parser()._actions for word in action.option_strings if word.startswith("--")}
    assert set(re.findall(r"^\| `(--[a-z0-9-]+)", page("flags.md"), re.MULTILINE)) == flags


def test_every_metric_is_documented_as_it_says_of_itself_and_no_other():
    rows = re.findall(r"^\| `(kmesh_ipsec_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|", page("metrics.md"), re.MULTILINE)
    labels = {"reconcile_duration_seconds": ("le",)}  # of a histogram's buckets
    assert [(name, kind, tuple(re.findall(r"\w+", names)), text) for name, kind, names, text in rows] == [
        (family.full_name, family.kind, labels.get(family.name, family.labels), family.help) for family in FAMILIES
    ]


def test_every_counter_is_explained_and_no_other():
    section = page("troubleshooting.md").partition("## Counters")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(contract.COUNTERS)


def leads_somewhere(page: Path, link: str) -> bool:
    """Tell whether there is what a link on a page, or in it (``#heading``), leads to."""
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    if not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.+)", target.read_text(), re.MULTILINE) if target.exists() else []
    return heading in {one.lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(path):
    text = path.read_text()
    links = [one for one in re.findall(r"\]\(([^)]+)\)", text) if "://" not in one]
    missing = [one for one in links if not leads_somewhere(path, one)]
    named = re.findall(r"(?<![\w/.])(?:docs|deploy|scripts|tests|bpf|kmesh_bpf|python)/[\w./#-]*\w(?![\w*/])", text)
    missing += [one for one in named if not leads_somewhere(ROOT / "README.md", one)]
    assert missing == []


def test_every_condition_is_explained_and_no_other():
    section = page("troubleshooting.md").partition("## Events and conditions")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(conditions.TYPES)

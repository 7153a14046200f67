# SPDX-License-Identifier: Apache-2.0
"""The README begins with a folder of manifests: its very lines work, and say what they are said to."""

import os
import re
import subprocess

import pytest
import yaml

from tests.lab.apiserver import ROOT

SECTION = (ROOT / "README.md").read_text().partition("## A look without a cluster")[2].partition("\n## ")[0]
LINES = re.findall(r"^ {4}(\S.*)$", SECTION, re.MULTILINE)
FOLDER = ROOT / "docs/examples/cluster"


def test_the_readme_begins_with_it():
    first = re.search(r"^## (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert first[1] == "A look without a cluster"


def test_its_lines_make_a_key_and_tell_that_a_service_is_reached_encrypted(tmp_path):
    text = "\n".join(line for line in LINES if not line.startswith("scripts/setup")).replace(
        "/tmp/cluster", f"{tmp_path}/cluster"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    ran = subprocess.run(["bash", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    assert ran.returncode == 1, "the last one is status"
    assert "key stored: SPI 1, " in ran.stdout
    assert "10.244.1.10 -> 10.244.2.10: ENCRYPTED with SPI 1" in ran.stdout
    assert "10.244.2.10 -> 10.244.1.10: ENCRYPTED with SPI 1" in ran.stdout
    assert "0 of 3 nodes ready, 3 unknown, key SPI 1" in ran.stdout
    assert "n1, n2: it announces itself, and there is no report of it; does its daemon run?" in ran.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_of_each_kind_in_it_the_format_s_page_has_a_row(path):
    page = (ROOT / "docs/manifests.md").read_text()
    for one in yaml.safe_load_all(path.read_text()):
        for item in one.get("items", [one]):
            assert f"| {item['kind']}, `{item['apiVersion']}` |" in page


def test_no_key_lies_in_the_repository():
    assert not any("ipSec" in path.read_text() for path in FOLDER.parent.rglob("*.yaml"))

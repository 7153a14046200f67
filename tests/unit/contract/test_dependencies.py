# SPDX-License-Identifier: Apache-2.0
"""The bounds of every dependency are what the tests run with, and the image holds what is pinned."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    name: [Requirement(one) for one in ones] for name, ones in PYPROJECT["project"]["optional-dependencies"].items()
}
IN_THE_IMAGE = [Requirement(one) for one in PYPROJECT["project"]["dependencies"]]
NEEDED = [*IN_THE_IMAGE, *EXTRAS["kubeconfig"]]
DEVELOPED = EXTRAS["dev"]
BUILT = [Requirement(one) for one in PYPROJECT["build-system"]["requires"]]
PINS = re.findall(
    r"^([\w.-]+)==([\w.]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$",
    (ROOT / "deploy/constraints.txt").read_text(),
    re.M,
)


def lowest(one: Requirement) -> Version:
    (found,) = [Version(bound.version) for bound in one.specifier if bound.operator == ">="]
    return found


@pytest.mark.parametrize("one", [*NEEDED, *DEVELOPED, *BUILT], ids=str)
def test_each_has_a_lower_and_an_upper_bound(one):
    assert sorted(bound.operator for bound in one.specifier) == ["<", ">="]


@pytest.mark.parametrize("one", [*NEEDED, *DEVELOPED], ids=str)
def test_what_runs_here_is_within_them_and_in_the_environment_of_the_lowest_it_is_these(one):
    try:
        found = Version(version(one.name))
    except PackageNotFoundError:
        assert one in DEVELOPED, "of the tools, lint's are in one environment only"
        return
    assert found in one.specifier
    if Path(sys.prefix).name == "lowest" and one.name not in ("import-linter", "mypy", "ruff", "types-PyYAML"):
        assert found == lowest(one)


def test_the_image_s_versions_are_pinned_each_with_its_hashes_and_within_the_bounds():
    pins = {canonicalize_name(name): Version(found) for name, found, _ in PINS}
    assert all(hashes for _, _, hashes in PINS)
    assert len(pins) == len(re.findall(r"==", (ROOT / "deploy/constraints.txt").read_text())), (
        "every line was understood"
    )
    for one in (*IN_THE_IMAGE, *BUILT):
        assert pins[canonicalize_name(one.name)] in one.specifier
    assert "pip" in pins, "it is what installs them"


def test_they_name_no_index_of_a_machine():
    text = (ROOT / "deploy/constraints.txt").read_text()
    assert "://" not in text
    assert "--index" not in text

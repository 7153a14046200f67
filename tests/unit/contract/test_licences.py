# SPDX-License-Identifier: Apache-2.0
"""Every source file says its licence in its first lines, as SPDX and REUSE have it, and each licence's text is there."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = (".ci", "bpf", "deploy", "docs", "kmesh_bpf", "python", "scripts", "tests")
OURS, PROGRAMS = "Apache-2.0", "GPL-2.0-only OR BSD-2-Clause"
COMMENTS = {
    ".py": "# {}",
    ".sh": "# {}",
    "": "# {}",
    ".yaml": "# {}",
    ".service": "# {}",
    ".c": "// {}",
    ".h": "/* {} */",
    ".tpl": "{{{{- /* {} */ -}}}}",
}
"""How a line of each kind looks; of files without a suffix those that are scripts, and the Containerfile."""
NOT_SOURCES = ("__pycache__", ".egg-info", "_abi.c", "build/", "corpus/")
HEAD = 2
"""Lines in which it stands: the second one of a script."""


def sources() -> Iterator[Path]:
    for path in (ROOT / "setup.py", *(one for folder in FOLDERS for one in sorted((ROOT / folder).rglob("*")))):
        name = str(path.relative_to(ROOT))
        if path.suffix not in COMMENTS or not path.is_file() or any(part in name for part in NOT_SOURCES):
            continue
        if path.suffix or path.name == "Containerfile" or path.read_bytes().startswith(b"#!"):
            yield path


def wanted(path: Path) -> str:
    of_the_kernel = path.is_relative_to(ROOT / "bpf") and path.suffix in (".c", ".h")
    line = f"SPDX-License-Identifier: {PROGRAMS if of_the_kernel else OURS}"
    if path.parent.name == "templates" and path.suffix == ".yaml":
        return COMMENTS[".tpl"].format(line)
    return COMMENTS[path.suffix].format(line)


def test_every_source_file_says_its_licence():
    files = list(sources())
    assert len(files) > 400, "they are looked at"
    missing = {
        str(path.relative_to(ROOT)): wanted(path)
        for path in files
        if wanted(path) not in path.read_text(errors="replace").splitlines()[:HEAD]
    }
    assert missing == {}, "put these lines at the head of these files, below the first line of a script"


def test_each_licence_s_text_is_there_and_no_other_and_the_wheels_name_them():
    identifiers = {one for line in (OURS, PROGRAMS) for one in line.split(" OR ")}
    assert {path.stem for path in (ROOT / "LICENSES").iterdir()} == identifiers
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "LICENSES/Apache-2.0.txt").read_bytes()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == f"{OURS} AND ({PROGRAMS})"


@pytest.mark.parametrize("page", ["README.md"])
def test_the_readme_says_which_is_which(page):
    section = (ROOT / page).read_text().partition("\n## Licences\n")[2]
    assert re.findall(r"`([^`]+)`", section) == ["bpf/", PROGRAMS]

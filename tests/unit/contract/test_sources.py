# SPDX-License-Identifier: Apache-2.0
"""What holds of every source file: it can be read from top to bottom, and what it cites is there."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("bpf", "deploy", "kmesh_bpf", "python", "scripts", "tests")
SUFFIXES = ("", ".py", ".pyi", ".c", ".h", ".sh")
NOT_OURS = ("_abi.c", "_abi.pyi", "__pycache__", "build", "corpus", ".egg-info")
LONGEST = 400
"""Lines."""


def sources() -> Iterator[tuple[str, str]]:
    """Give path and text of each program, module and script; those without a suffix are scripts by their first line."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = str(path.relative_to(ROOT))
            if path.is_file() and path.suffix in SUFFIXES and not any(part in name for part in NOT_OURS):
                text = path.read_text(errors="replace")
                if path.suffix or text.startswith("#!"):
                    yield name, text


def test_no_source_is_longer_than_can_be_read_in_one_go():
    lengths = {name: text.count("\n") for name, text in sources()}
    assert len(lengths) > 300, "they are looked at"
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_every_heading_of_the_design_that_is_cited_is_there():
    design = (ROOT / "docs/design.md").read_text()
    headings = set(re.findall(r"^#+ (.+)$", design, re.MULTILINE))
    pages = {name: (ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md")}
    # A citation may be broken over two lines, of a docstring or of a comment.
    cited = [
        (name, re.sub(r"\s*\n[ #*]*", " ", heading))
        for name, text in (*sources(), *pages.items())
        for heading in re.findall(r'docs/design\.md,[\s#*]+"([^"]+)"', text)
    ]
    assert len(cited) >= 8
    assert [(name, heading) for name, heading in cited if heading not in headings] == []

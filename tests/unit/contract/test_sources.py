"""What holds of every source file: it can be read from top to bottom, and what it cites is there."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("bpf", "deploy", "kmesh_bpf", "python", "scripts", "tests")
SUFFIXES = ("", ".py", ".pyi", ".c", ".h", ".sh")
NOT_OURS = ("_abi.c", "__pycache__", "build", "corpus", ".egg-info")
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

# SPDX-License-Identifier: Apache-2.0
"""What we promise in writing: the README's example, the public names."""

import contextlib
import io
import re
from pathlib import Path

import kmesh_bpf

ROOT = Path(__file__).resolve().parents[3]


def test_the_readme_s_example_prints_what_it_says():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 # our own words
    assert "# " + out.getvalue().strip() == block.strip().splitlines()[-1]


def test_public_names_are_sorted_and_all_there():
    names = kmesh_bpf.__all__
    assert sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == names
    assert all(hasattr(kmesh_bpf, name) for name in names)


def test_no_key_shows_in_any_repr():
    key = kmesh_bpf.Key(b"\xabcde" * 9)
    view = kmesh_bpf.View(kmesh_bpf.Node("n", (), "b"), keys={1: key})
    assert "hidden" in repr(view)
    assert key.reveal().hex() not in repr(view)
    assert "\\xab" not in repr(view)

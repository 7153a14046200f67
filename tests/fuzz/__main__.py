# SPDX-License-Identifier: Apache-2.0
"""The command behind scripts/fuzz."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.fuzz.inputs import corpus
from tests.fuzz.search import ROUND, examine, keep, rounds, search
from tests.fuzz.targets import TARGETS

EPILOG = """\
A find is written to tests/fuzz/corpus/TARGET/, where scripts/test reads it from then on; commit it with what mends it.

exit status: 0 nothing found, 1 something was, 2 refused
"""


def main() -> int:
    """Fuzz for the seconds given; give the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Searches for inputs that a parser neither reads nor refuses with an error of ours.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one of them only")
    flags = parser.parse_args()
    tried: Counter[str] = Counter()
    finds: dict[tuple[str, str], str] = {}
    for name in TARGETS:
        for path in corpus(name):
            try:
                examine(name, path.read_bytes())
            except Exception as error:  # noqa: BLE001 # each is a find
                finds[name, type(error).__name__] = f"{path}: {error!r}"
    began = shown = time.monotonic()
    for name, number in rounds(began + flags.seconds):
        if flags.target not in (None, name):
            continue
        found = search(name, number)
        tried[name] += ROUND
        if found is not None:
            data, error = found
            finds.setdefault((name, repr(error)[:80]), f"{keep(name, data)}: {error!r}")
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            print(f"fuzz: {shown - began:.0f} s, {tried.total()} inputs, {len(finds)} finds", file=sys.stderr)
    print(f"{tried.total()} inputs for {len(tried)} targets in {time.monotonic() - began:.0f} s, {len(finds)} finds")
    for (name, _), what in sorted(finds.items()):
        print(f"{name}: {what[:300]}")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())

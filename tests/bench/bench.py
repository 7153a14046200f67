# SPDX-License-Identifier: Apache-2.0
"""What an event, a start, a packet and standing still cost, each beside a baseline measured in the same run.

Absolute times are the machine's, ratios are ours. No result is a test: the exit status does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import audits, chain, messages, packets, standing, starts
from tests.bench.results import HEAD, Result
from tests.bench.sizes import SIZES, Size

PAGE = Path(__file__).resolve().parents[2] / "docs/benchmarks.md"
BEGIN, END = "<!-- table: scripts/bench --write -->", "<!-- end of the table -->"

PARTS: dict[str, tuple[Callable[[Size], Iterator[Result]], str]] = {
    "event": (chain.event, "one event, from the source to the operation handed to the kernel; no kernel behind it"),
    "view": (chain.scratch, "one event, from the source to the view, beside the view from scratch"),
    "kernel": (chain.kernel, "one event with the real kernel behind it; a namespace labelled at once"),
    "start": (starts.start, "cold start and warm restart, beside ip"),
    "rotation": (starts.rotation, "a key's replacement; needs ESP"),
    "policy": (starts.policy, "updating and deleting a policy among many"),
    "audit": (audits.audits, "what an event may wait for: the longest step of a look and of an audit"),
    "idle": (standing.idle, "an hour in which nothing happens"),
    "memory": (standing.memory, "resident memory"),
    "scrape": (standing.scrape, "the size of the metrics"),
    "packets": (packets.packets, "what the programs add to a packet"),
    "messages": (messages.messages, "a netlink message, a map entry"),
    "plan": (starts.passes, "planning and comparing from scratch"),
}


def machine() -> str:
    """Tell what it is measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = (models or [platform.machine()])[0]
    return (
        f"{os.cpu_count()} processors ({model}), Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}; load when it began: {os.getloadavg()[0]:.1f}"
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure, each cost as a ratio to a baseline of the same run. Root; bpffs; ESP for rotation only.",
        epilog="parts: " + "; ".join(f"{name}: {what}" for name, (_, what) in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--size", choices=SIZES, default="full", help="default: %(default)s, of up to 5,000 peers")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts")
    form.add_argument("--markdown", action="store_true", help="as a table")
    form.add_argument("--write", action="store_true", help="put the table in the place of docs/benchmarks.md's")
    flags = parser.parse_args()
    unknown = [name for name in flags.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}: {', '.join(PARTS)}")
    results: list[Result] = []
    quiet, began_on = flags.json or flags.markdown, machine()
    if not quiet:
        print(began_on, flush=True)
    for name in flags.parts or PARTS:
        began = time.monotonic()
        try:
            for result in PARTS[name][0](SIZES[flags.size]):
                results.append(result)
                print(result.line(), file=sys.stderr if quiet else sys.stdout, flush=True)
        except starts.NotHereError as error:
            print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
        print(f"--- {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if flags.json:
        print(json.dumps({"machine": began_on, "results": [one.fields() for one in results]}, indent=2))
    elif flags.markdown or flags.write:
        table = "\n".join((f"{began_on}; sizes: {flags.size}.", "", HEAD, *(one.row() for one in results)))
        if flags.write:
            PAGE.write_text(replaced(PAGE.read_text(), table))
        else:
            print(table)
    return 0


def replaced(page: str, table: str) -> str:
    """Give a page with another table between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n{table}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())

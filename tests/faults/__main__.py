# SPDX-License-Identifier: Apache-2.0
"""What scripts/faults is: chooses rows, has them run where the kernel has ESP, keeps and publishes what they cost."""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults import page
from tests.faults.matrix import RESULT, SOAK, told
from tests.faults.meter import loop_seconds
from tests.faults.packages import VARIABLE, fetch
from tests.faults.registry import BY_NAME, ROWS
from tests.faults.rows import GROUPS, Outcome, Row, Shows, Soak, misses, outcome, soaked
from tests.lab.cluster import ROOT

FIRST = 400
"""Seconds that starting three nodes may take under emulation."""
EPILOG = """\
examples:
  scripts/faults --list
  scripts/faults --quick                     # a few rows that stand for all, two to five minutes under emulation
  scripts/faults --row key-replaced --row daemon-kill
  scripts/faults --soak 30 --seed 7          # rows at random for half an hour; the same seed, the same rows
  scripts/faults --quick --kernel 6.1        # on another kernel of Debian's, see scripts/vm --help

exit status: 0 every row kept its goals, 1 one missed them, 2 wrong arguments, 124 and 125 as of scripts/vm
"""


def parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="scripts/faults",
        description="Does what goes wrong on bad days to three nodes with real ESP under constant traffic, and counts what each costs. "
        "Where this kernel has no ESP, all of it happens in a virtual machine (scripts/vm).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--row",
        action="append",
        choices=sorted(BY_NAME),
        metavar="NAME",
        help="run this row; may be given several times, and they are run in that order (default: all that take no longer than ten minutes)",
    )
    made.add_argument("--list", action="store_true", help="list the rows, and what each may cost and why")
    made.add_argument("--quick", action="store_true", help="run those that e2e runs")
    made.add_argument(
        "--json",
        type=Path,
        default=ROOT / "docs/faults.json",
        metavar="FILE",
        help="where the figures are kept; rows that are not run keep theirs. The page is written beside it, with .md (default: docs/faults.json)",
    )
    made.add_argument(
        "--seed", type=int, help="what chance is taken from (default: another one each time, and it is said)"
    )
    made.add_argument(
        "--soak",
        type=float,
        metavar="MINUTES",
        help="run rows at random for so long; figures are summed up, and the sum is kept",
    )
    made.add_argument(
        "--limit",
        type=int,
        metavar="SECONDS",
        help="stop after so long, with what is measured by then (default: by rows)",
    )
    made.add_argument("--kernel", metavar="VERSION", help="of the virtual machine: passed to scripts/vm")
    return made


def listed(rows: Sequence[Row]) -> Iterator[str]:
    """Give the lines of ``--list``."""
    for group, title in GROUPS.items():
        if ours := [row for row in rows if row.group == group]:
            yield f"{group}. {title}"
            for row in ours:
                yield f"  {row.name:<24}{row.what}{' [quick]' if row.quick else ''}"
                if row.excuse:
                    yield f"{'':<26}may lose packets of {', '.join(row.excuse.nodes)}: {row.excuse.why}"


def commit() -> str:
    """Give the commit that last changed what is measured, and whether it is not quite that one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    product = ("--", "kmesh_bpf", "python", "bpf")
    changed = git("status", "--porcelain", "--untracked-files=no", *product)
    return (git("log", "-1", "--format=%h", *product) or "unknown") + ("+changes" if changed else "")


def run(names: Sequence[str], seed: int, flags: argparse.Namespace) -> tuple[int, list[Outcome]]:
    """Have rows run; give the exit status of that, and what came of it."""
    limit = flags.limit or FIRST + sum(BY_NAME[name].seconds for name in names) + round(60 * (flags.soak or 0))
    command = [str(ROOT / "scripts/vm"), "--limit", str(limit), *(["--kernel", flags.kernel] if flags.kernel else [])]
    drawn = ROWS if flags.soak else [BY_NAME[name] for name in names]
    # What is measured is this checkout's, whatever the environment was installed from.
    command += [
        "env",
        f"PYTHONPATH={ROOT}:{ROOT / 'python'}",
        f"{VARIABLE}={fetch(package for row in drawn for package in row.needs)}",
        sys.executable,
        "-m",
        "tests.faults.matrix",
        commit(),
        f"{loop_seconds(time.process_time)}",
        str(seed),
    ]
    command += [f"{SOAK}{flags.soak}"] if flags.soak else names
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(RESULT):
                found.append(outcome(json.loads(line[len(RESULT) :])))
            else:
                print(line, end="", flush=True)
    return process.returncode, found


def keep(file: Path, found: Sequence[Outcome], soak: Soak | None) -> None:
    """Write figures into the JSON and its page: those of the rows that were run, or of a soak, beside what is there."""
    text = file.read_text() if file.exists() else ""
    outcomes, soaks = page.read(text), page.soaks(text)
    if soak is None:
        outcomes = page.merged(outcomes, found, ROWS)
    else:
        soaks = (*(one for one in soaks if one.machine.kernel != soak.machine.kernel), soak)
    file.write_text(page.write(outcomes, soaks))
    file.with_suffix(".md").write_text(page.render(outcomes, ROWS, soaks))
    print(f"faults: written: {file}, {file.with_suffix('.md')}")


def main(arguments: Sequence[str]) -> int:
    """Do what a command line says; give the exit status."""
    flags = parser().parse_args(arguments)
    if flags.list:
        print("\n".join(listed(ROWS)))
        return 0
    if flags.soak and (flags.row or flags.quick):
        print("scripts/faults: --soak takes rows at random; leave out --row and --quick", file=sys.stderr)
        return 2
    usual = [row.name for row in ROWS if row.quick or not (flags.quick or row.long)]
    names = list(dict.fromkeys(flags.row)) if flags.row else usual
    seed = secrets.randbelow(1 << 31) if flags.seed is None else flags.seed
    print(
        f"faults: seed {seed}, " + (f"a soak of {flags.soak:g} minutes" if flags.soak else f"{len(names)} rows"),
        flush=True,
    )
    status, found = run(names, seed, flags)
    bad = [one for one in found if misses(BY_NAME[one.row], one)]
    if found:
        keep(
            flags.json,
            found,
            soaked(seed, flags.soak, [(BY_NAME[one.row], one) for one in found]) if flags.soak else None,
        )
    for one in bad:
        print(f"faults: missed: {told(BY_NAME[one.row], one)}")
    goals = [one for one in found if BY_NAME[one.row].shows is Shows.GOALS]
    sent, lost, clear = (sum(getattr(one.span, name) for one in goals) for name in ("sent", "lost", "clear"))
    print(
        f"faults: {len(found)} rows run, {len(bad)} missed their goals; without controls sent {sent}, lost {lost}, in clear {clear}"
    )
    return status or (1 if bad else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""scripts/simulate: lives histories of a simulated cluster by the real code, and says what became of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from tests.simulator import coverage, mistakes
from tests.simulator.events import EVENTS
from tests.simulator.history import live, make
from tests.simulator.run import Tally, prepare, run
from tests.simulator.shrink import command, shrink

EPILOG = """\
examples:
  scripts/simulate --histories 1000 --jobs 2      # seeds 0 to 999
  scripts/simulate --seconds 60 --first 5000      # as many as fit into a minute
  scripts/simulate --seed 4711 --show             # one of them, as a story
  scripts/simulate --mistakes                     # put known mistakes into the code, and see each one found

What is checked stands in tests/simulator/judge.py. A failing seed is shrunk to the fewest events that fail, and told as
a story with the command that lives it again.

exit status: 0 all held, 1 something did not, 2 refused (a flag that cannot be used)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    flags = _flags().parse_args(arguments)
    prepare()
    if flags.mistakes:
        return _mistakes(flags.budget)
    if flags.seed is not None:
        return _one(flags)
    return _many(flags)


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Lives histories of a simulated cluster: the real daemons' code, simulated kernels and API server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--histories", type=_number, default=200, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="begin no more after so many seconds")
    parser.add_argument("--jobs", type=_number, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument(
        "--branches", action="store_true", help="list branches of the pure code never reached (needs coverage)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="live one history")
    parser.add_argument("--show", action="store_true", help="with --seed: tell it as a story")
    parser.add_argument("--only", metavar="N,N", help="with --seed: only the events of these numbers, or 'none'")
    parser.add_argument("--no-shrink", action="store_true", help="leave what fails as long as it is")
    parser.add_argument("--mistakes", action="store_true", help="see whether known mistakes are found")
    parser.add_argument("--budget", type=_number, default=300, metavar="N", help="with --mistakes: histories for each")
    return parser


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return number


def _one(flags: argparse.Namespace) -> int:
    history = make(flags.seed)
    if flags.only is not None:
        kept = {int(one) for one in flags.only.split(",")} if flags.only != "none" else set()
        history = replace(history, steps=tuple(step for step in history.steps if step.number in kept))
    outcome = live(history, loud=flags.show)
    if outcome.violation is None:
        print(f"seed {flags.seed}: all held; {outcome.packets} packets, {outcome.passes} passes")
        return 0
    if not flags.show:
        print(f"seed {flags.seed}: {outcome.violation}")
    return 1


def _many(flags: argparse.Namespace) -> int:
    shown = 0.0

    def progress(tally: Tally, seconds: float) -> None:
        nonlocal shown
        if seconds - shown >= 2.0:
            shown = seconds
            rate = tally.histories / seconds * 60
            print(
                f"{tally.histories} histories, {rate:.0f} a minute, {len(tally.failed)} failed",
                file=sys.stderr,
                flush=True,
            )

    tally, seconds = run(
        flags.first, flags.histories, flags.jobs, branches=flags.branches, seconds=flags.seconds, tell=progress
    )
    _report(tally, seconds)
    for seed in sorted(tally.failed)[:1]:
        _tell_shrunk(seed, shorten=not flags.no_shrink)
    return 1 if tally.failed else 0


def _report(tally: Tally, seconds: float) -> None:
    print(f"{tally.histories} histories in {seconds:.0f} s: {tally.histories / seconds * 60:.0f} a minute")
    print(f"{tally.passes} passes, {tally.packets} packets, of which {tally.arrivals} arrived by the wire")
    kinds = ", ".join(f"{name} {number}" for name, number in tally.events.most_common())
    print(f"{len(tally.events)} of {len(EVENTS)} kinds of events: {kinds}")
    print("packets lost, by what explains it:")
    for reason, number in tally.reasons.most_common():
        print(f"  {number:7d}  {reason}")
    if tally.reached.taken:
        missed = sum(map(len, tally.reached.missed.values()))
        print(f"branches of the pure code: {tally.reached.share:.1%} taken; never, {missed}:")
        for line in coverage.lines(tally.reached):
            print(f"  {line}")
    for seed, words in sorted(tally.failed.items()):
        print(f"FAILED: seed {seed}: {words}")


def _tell_shrunk(seed: int, *, shorten: bool) -> None:
    print(f"\nseed {seed} {'is being shrunk' if shorten else 'in whole'}:", file=sys.stderr, flush=True)
    outcome = live(make(seed))
    if shorten:
        outcome = shrink(outcome, lambda words: print(f"  {words}", file=sys.stderr, flush=True))
    print("\n".join(outcome.story.lines))
    print(f"again: {command(outcome.history)}")


def _mistakes(budget: int) -> int:
    missed = 0
    for mistake in mistakes.MISTAKES:
        found = mistakes.search(mistake, budget)
        missed += found is None
        took = (
            f"{found.histories:4d} histories (seed {found.seed}): check {found.check}"
            if found
            else f"NOT FOUND in {budget} histories"
        )
        print(f"{mistake.name:45s} {took}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

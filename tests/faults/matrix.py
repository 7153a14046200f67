# SPDX-License-Identifier: Apache-2.0
"""Runs rows one after another on three nodes under constant traffic, where the kernel has ESP; an outcome a row.

``python -m tests.faults.matrix COMMIT HOST_LOOP SEED ROW…`` is what scripts/faults starts, in scripts/vm where it has to: it
prints progress, and each outcome as a line that begins with ``RESULT``.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.faults import stack
from tests.faults.meter import (
    TrafficProcess,
    Voices,
    changes,
    emulated,
    loop_seconds,
    machine,
    program_drops,
    xfrm_errors,
)
from tests.faults.moment import Beginning, Moment
from tests.faults.registry import BY_NAME, ROWS
from tests.faults.rows import ALL, Machine, Outcome, Row, Shows, misses
from tests.lab.cluster import LABEL, PATIENCE
from tests.lab.kernels import KERNEL
from tests.lab.lab import SERVICES, Lab

RESULT = "\x1e"
"""ASCII's record separator, at the head of a line that holds an outcome."""
SOAK = "soak:"
"""Instead of names: rows at random for so many minutes."""
BEFORE, CALM, LATE = 1.0, 2.0, 0.7
"""Seconds of traffic before something is done; without a loss after which it is over; that a packet may be under way."""
START = 30.0
"""Seconds that starting three daemons at once, which compile their programs, may take where nothing is emulated."""
REST = 45.0
"""Seconds at most that are waited for a calm time: nothing here takes that long, so what does is a finding."""


class Matrix:
    """The lab under traffic; :meth:`run` runs a row on it."""

    def __init__(self, lab: Lab, where: Machine, seed: int) -> None:
        self.lab, self.machine = lab, where
        self._random = random.Random(seed)
        self._traffic = TrafficProcess(lab)

    def close(self) -> None:
        self._traffic.close()

    def run(self, row: Row) -> Outcome:
        """Do what the row does; give what it cost. What goes wrong in doing so is in the outcome."""
        failed = ""
        try:
            moment = Moment(self.lab, self._random, self._begin, self._begin())
        except TimeoutError as error:
            moment = Moment(self.lab, self._random, self._begin, self._now())
            failed = str(error)
        with Voices(self.lab) as voices:
            try:
                row.act(moment)
            except (RuntimeError, TimeoutError, AssertionError, OSError) as error:
                failed = failed or f"{type(error).__name__}: {error}"
                traceback.print_exc()
            moment.cause = moment.cause or time.monotonic()
            voices.status()
            if not self._calm(moment.cause):
                failed = failed or f"packets are lost still, {REST:.0f} s after it was done"
            end = time.monotonic() - LATE
        begun = moment.beginning
        outcome = Outcome(
            row.name,
            self.machine,
            self._traffic.span(begun.start, end).beside(moment.flows),
            moment.cause,
            moment.restored,
            changes(begun.errors, xfrm_errors()),
            changes(begun.drops, program_drops(self.lab)),
            voices.said,
            tuple(moment.notes),
            failed,
            changes(begun.stack, self._stack()),
        )
        for undo in reversed(moment.undo):
            undo()
        return outcome

    def _begin(self) -> Beginning:
        """Wait for a calm time, and begin to measure."""
        if not self._calm(time.monotonic()):
            raise TimeoutError(f"packets were lost for {REST:.0f} s before anything was done")
        begun = self._now()
        time.sleep(BEFORE)
        return begun

    def _now(self) -> Beginning:
        return Beginning(time.monotonic(), xfrm_errors(), program_drops(self.lab), self._stack())

    def _stack(self) -> dict[str, int]:
        return stack.drops((*ALL, *self.lab.network.pods))

    def _calm(self, since: float) -> bool:
        """Wait until nothing was lost for a while; tell whether that came to be."""
        until = time.monotonic() + REST
        while (now := time.monotonic()) < until:
            last = self._traffic.span(since, now - LATE).last_lost if now - LATE > since else None
            quiet = now - LATE - max(since, last or since)
            if quiet >= CALM:
                return True
            time.sleep(CALM - quiet + 0.05)
        return False


def told(row: Row, was: Outcome) -> str:
    """Give the line of progress that a row ends with."""
    span = was.span
    clear = f"in clear {span.clear}"
    figures = f"sent {span.sent} lost {span.lost} gap {span.gap} ms {clear} healed {was.healed:.1f} s TCP stall {span.stall} ms"
    missed = misses(row, was)
    return f"{row.name}: {figures}: {'; '.join(missed) if missed else 'as it should be'}"


@contextmanager
def laboratory(where: Machine) -> Iterator[Lab]:
    """Have the lab with everything managed and its daemons ready."""
    lab = Lab(Path(tempfile.mkdtemp(prefix="kmesh-faults-")), *SERVICES)
    try:
        lab.cluster.namespace({LABEL: "Kmesh"})
        for daemon in lab.daemons.values():
            daemon.patience = max(PATIENCE, START * where.slowness)
        lab.begin()
        lab.label("Kmesh")
        yield lab
    finally:
        lab.close()
        if not where.emulated:  # an emulated machine is thrown away
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda daemon: daemon.uninstall(), lab.daemons.values()))


def chosen(names: Sequence[str], seed: int) -> Iterator[Row]:
    """Give the rows of these names; or rows at random, the same ones for the same seed, as long as a soak lasts."""
    if names and names[0].startswith(SOAK):
        until = time.monotonic() + 60 * float(names[0].removeprefix(SOAK))
        dice, rows = random.Random(seed), [row for row in ROWS if row.shows is Shows.GOALS and not row.long]
        while time.monotonic() < until:
            yield dice.choice(rows)
    else:
        yield from (BY_NAME[name] for name in names)


def main(commit: str, host_loop: str, seed: str, *names: str) -> None:
    """Run rows by name, in this order."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)

    slowness = max(1.0, loop_seconds() / float(host_loop)) if emulated() else 1.0
    where = machine(commit, slowness)
    say(f"{where}; building three nodes with two pods each, starting three daemons")
    with laboratory(where) as lab:
        by = {name: "TCX" if any((one.pin_root / "links").glob("*")) else "clsact" for name, one in lab.daemons.items()}
        say("ready; programs are attached by " + ", ".join(f"{how} on {name}" for name, how in by.items()))
        matrix = Matrix(lab, where, int(seed))
        try:
            for row in chosen(names, int(seed)):
                name = row.name
                if not row.is_of(KERNEL):
                    say(f"{name}: not on this kernel")
                    continue
                say(f"{name}: {row.what}")
                was = matrix.run(row)
                say(told(row, was))
                for text in was.said:
                    say(f"    {text}")
                print(RESULT + json.dumps(was.plain()), flush=True)
        finally:
            matrix.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

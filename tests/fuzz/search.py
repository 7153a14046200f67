# SPDX-License-Identifier: Apache-2.0
"""The search for an input that a target neither reads nor refuses: by Hypothesis, which makes a find as small as it can.

Hypothesis and not atheris: it is here already, knows documents and not only bytes, and a find is a file of the corpus
in either case.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.inputs import CORPUS, inputs
from tests.fuzz.targets import TARGETS, check

LONGEST = 10
"""Seconds of the processor that an input may take: none takes one on any machine; other work does not count."""
ROUND = 50
"""Inputs of a target before the next one's turn."""


@contextmanager
def bounded(seconds: int = LONGEST) -> Iterator[None]:
    """Have what takes longer end in a TimeoutError."""

    def late(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def examine(name: str, data: bytes) -> None:
    """Read one input within bounds.

    Raises:
        Exception: it is a find.

    """
    with bounded():
        check(TARGETS[name], data)


def search(name: str, number: int, examples: int = ROUND) -> tuple[bytes, Exception] | None:
    """Try so many inputs; give the smallest find. ``number``: the same one makes the same inputs."""
    found: list[tuple[bytes, Exception]] = []

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(inputs(TARGETS[name]))
    def attempt(data: bytes) -> None:
        try:
            examine(name, data)
        except Exception as error:
            found.append((data, error))
            raise

    try:
        attempt()
    except Exception:
        if not found:
            raise
        return found[-1]
    return None


def keep(name: str, data: bytes) -> Path:
    """Write a find into the corpus, where tests read it from then on."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def rounds(until: float) -> Iterator[tuple[str, int]]:
    """Give targets in turn, with another number each time, until the clock (``time.monotonic``) says so."""
    number = time.time_ns()
    while True:
        for name in TARGETS:
            if time.monotonic() >= until:
                return
            number += 1
            yield name, number

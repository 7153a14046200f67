"""Group 2: the daemon comes and goes, and so does what it knows the cluster from."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable

from tests.faults.keys import create, sent_with
from tests.faults.moment import Moment
from tests.faults.rows import Excuse, Row

AWAY = 60.0
"""Seconds that the cluster's source is away; nothing of ours has a longer time limit than the view's age, which is told after 10 minutes."""


def stopped(number: int) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        moment.daemon("n2").stop(number)
        moment.happened()
        time.sleep(1)
        moment.restart("n2")

    return act


def settings(*flags: str) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        for now in (flags, ()):
            moment.daemon("n2").stop()
            moment.restart("n2", *now)
            moment.happened()

    return act


def source_away(moment: Moment) -> None:
    folder = moment.lab.cluster.folder
    aside = folder.with_name("aside")
    folder.rename(aside)
    moment.happened()
    time.sleep(AWAY)
    aside.rename(folder)
    moment.happened()


def source_older(moment: Moment) -> None:
    """Everything as it was before a replacement, but for what nodes write themselves."""
    folder = moment.lab.cluster.folder
    aside = folder.with_name("older")
    shutil.copytree(folder, aside)
    spi = create(moment)
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)
    for file in aside.glob("*.yaml"):
        file.rename(folder / file.name)
    shutil.rmtree(aside)
    moment.happened()
    time.sleep(5)
    newer = create(moment)
    moment.lab.wait_spi(newer)
    sent_with(moment, newer)


ROWS = (
    Row("daemon-term", 2, "SIGTERM to n2's daemon, a second, start", stopped(signal.SIGTERM)),
    Row("daemon-kill", 2, "kill -9 of n2's daemon, a second, start", stopped(signal.SIGKILL)),
    Row(
        "daemon-programs",
        2,
        "n2's daemon comes back with --permissive, other programs, then without",
        settings("--permissive"),
    ),
    Row(
        "daemon-window",
        2,
        "n2's daemon comes back with --replay-window=64, then without",
        settings("--replay-window=64"),
        Excuse(
            "the window is part of an SA, another one means other keys, and peers hear of them a moment later", ("n2",)
        ),
    ),
    Row(
        "daemon-mask",
        2,
        "n2's daemon comes back with --node-mark-mask=0x0fff0000, then without",
        settings("--node-mark-mask=0x0fff0000"),
    ),
    Row("source-away", 2, f"the cluster's source is away for {AWAY:.0f} s", source_away),
    Row(
        "source-older",
        2,
        "a key is replaced, then all objects are as they were before it, then it is replaced again",
        source_older,
    ),
)

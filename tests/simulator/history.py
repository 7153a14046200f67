# SPDX-License-Identifier: Apache-2.0
"""A history: what a seed decides, as a value that can be shrunk; and living it."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tests.simulator import hands, troubles  # noqa: F401 # register their events
from tests.simulator.ending import come_to_rest
from tests.simulator.events import EVENTS
from tests.simulator.judge import ViolationError
from tests.simulator.story import Story
from tests.simulator.telling import Telling
from tests.simulator.world import World

WAITS = (0.05, 0.05, 0.3, 0.3, 1.2, 1.2, 4.0, 12.0, 12.0, 35.0, 100.0, 700.0)
"""Seconds that pass after an event; rotation, lingering, renewal and reports have bounds between these."""
OTHER_MAKE = 0.2
"""The part of histories in which a node is of another make."""
LEAST, MOST = 5, 50
"""Events in a history."""


@dataclass(frozen=True)
class Step:
    """An event and the seconds after it. ``number`` is its place in the whole history: its draws hang on it alone."""

    number: int
    name: str
    wait: float


@dataclass(frozen=True)
class History:
    """What a seed decides: how large the cluster is, and what happens to it; ``go``: some nodes are of another make."""

    seed: int
    size: int
    pods: int
    families: tuple[int, ...]
    steps: tuple[Step, ...]
    go: bool = False


@dataclass
class Outcome:
    """What became of a history. ``events``: how often each kind happened; ``violation`` None: all held.

    ``reasons``: why packets were lost, as far as explained.
    """

    history: History
    story: Story
    violation: ViolationError | None = None
    events: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    packets: int = 0
    arrivals: int = 0
    passes: int = 0


def make(seed: int) -> History:
    """Decide all by a seed.

    Of the groups of events some are left out, and of all waits some: what only shows where little else happens has its
    chance too (swarm testing, Groce et al., ISSTA 2012).
    """
    draw = Random(seed)
    size = draw.choice((3, 3, 3, 3, 4, 4, 5, 7))
    families = draw.choice(((4,), (4,), (4,), (4, 6), (6,)))
    kinds = [one for one in EVENTS.values() if draw.random() < 0.5] or list(EVENTS.values())
    waits = draw.sample(WAITS, draw.randint(2, 6))
    names = draw.choices(
        [one.name for one in kinds],
        [one.weight for one in kinds],
        k=min(draw.randint(LEAST, MOST), draw.randint(LEAST, MOST)),
    )
    steps = tuple(Step(number, name, draw.choice(waits)) for number, name in enumerate(names))
    return History(seed, size, draw.choice((1, 1, 2)), families, steps, Random(f"{seed}/go").random() < OTHER_MAKE)


def live(history: History, *, loud: bool = False) -> Outcome:
    """Live a history to its end, or to the first violation."""
    story = Story(loud)
    outcome = Outcome(history, story)
    world = World(f"{history.seed}", history.size, history.pods, history.families, story, go=history.go)
    try:
        _live(history, world, outcome)
    except ViolationError as violation:
        outcome.violation = violation
    except Exception as error:  # noqa: BLE001 # whatever the daemon raises is a finding, with its own words
        where = "".join(traceback.format_exception(error)[-3:])
        outcome.violation = ViolationError(0, f"{type(error).__name__}: {error}\n{where}")
    finally:
        world.close()
    if outcome.violation is not None:
        story.tell(str(outcome.violation))
    outcome.reasons.update(world.judge.reasons)
    outcome.packets, outcome.arrivals, outcome.passes = world.packets, world.arrivals, world.passes
    return outcome


def _live(history: History, world: World, outcome: Outcome) -> None:
    telling = Telling(world)
    story = world.story
    made = ", the first one a Go node" if history.go else ""
    families = " and IPv".join(map(str, history.families))
    story.tell(f"{history.size} nodes with {history.pods} pods each, IPv{families}{made}")
    world.quiet = True
    world.advance(3.0, 3)
    world.quiet = False
    world.advance(3.0, 2)
    for step in history.steps:
        seed = f"{history.seed}/{step.number}"
        world.random = Random(seed)
        told = EVENTS[step.name].happen(world, Random(f"{seed}/{step.name}"))
        if told is None:
            continue
        outcome.events[step.name] += 1
        story.tell(told)
        world.traffic(1)
        world.advance(step.wait, 1 if step.wait < 0.1 else 2 if step.wait < 10 else 3)
        telling.check()
    world.random = Random(f"{history.seed}/end")
    come_to_rest(world, telling)

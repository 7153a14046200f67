# SPDX-License-Identifier: Apache-2.0
"""Which branches of the pure code histories reach, and which they never do; by :mod:`coverage`.

Measuring makes a history several times as slow, so only the first of a run are measured.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PURE = (
    "kmesh_bpf/core/*.py",
    "kmesh_bpf/reconcile.py",
    "python/kmesh/cluster/objects.py",
    "python/kmesh/cluster/placed.py",
    "python/kmesh/cluster/placement.py",
    "python/kmesh/telling/reporting.py",
    "python/kmesh/cluster/secret.py",
    "python/kmesh/cluster/shared.py",
    "python/kmesh/cluster/snapshot.py",
    "python/kmesh/cluster/status.py",
    "python/kmesh/cluster/views.py",
    "python/kmesh/cluster/kubernetes/source.py",
    "python/kmesh/cluster/kubernetes/store.py",
    "python/kmesh/kmeshctl/health.py",
    "python/kmesh/kmeshctl/traffic.py",
    "python/kmesh/launcher/daemon.py",
    "python/kmesh/telling/conditions.py",
    "python/kmesh/telling/readiness.py",
    "python/kmesh/telling/record.py",
    "python/kmesh/telling/recorder.py",
    "python/kmesh/telling/totals.py",
)
"""What is measured: what decides."""


@dataclass(frozen=True)
class Reached:
    """Branches by file: as (line, line) both, those taken, and those that never were."""

    taken: dict[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    missed: dict[str, frozenset[tuple[int, int]]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The part of the branches that was taken."""
        taken, missed = (sum(map(len, one.values())) for one in (self.taken, self.missed))
        return taken / (taken + missed) if taken else 0.0


def union(parts: Iterable[Reached]) -> Reached:
    """Give what any of several runs reached."""
    taken: dict[str, frozenset[tuple[int, int]]] = {}
    every: dict[str, frozenset[tuple[int, int]]] = {}
    for part in parts:
        for file in part.taken.keys() | part.missed.keys():
            here = part.taken.get(file, frozenset())
            taken[file] = taken.get(file, frozenset()) | here
            every[file] = every.get(file, frozenset()) | here | part.missed.get(file, frozenset())
    return Reached(taken, {file: every[file] - taken[file] for file in every})


class Measuring:
    """A context in which branches are counted; ``reached`` holds them afterwards."""

    def __init__(self) -> None:
        self.reached = Reached()

    def __enter__(self) -> Measuring:
        from coverage import Coverage  # noqa: PLC0415 # a development tool: needed where branches are asked for only

        self._coverage = Coverage(
            data_file=None, branch=True, include=[str(ROOT / one) for one in PURE], messages=False
        )
        self._coverage.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._coverage.stop()
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            self._coverage.json_report(outfile=file.name)
            files = json.loads(Path(file.name).read_text(encoding="utf-8"))["files"]
        self.reached = Reached(
            {_short(name): _arcs(one["executed_branches"]) for name, one in files.items()},
            {_short(name): _arcs(one["missing_branches"]) for name, one in files.items()},
        )


def _arcs(found: Iterable[Iterable[int]]) -> frozenset[tuple[int, int]]:
    return frozenset((first, second) for first, second in map(tuple, found))


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_absolute() else name


def lines(reached: Reached) -> Iterable[str]:
    """Give sentences on what was never reached, by file, each place with its line of code."""
    for file in sorted(reached.missed):
        source = (ROOT / file).read_text(encoding="utf-8").splitlines()
        for first, second in sorted(reached.missed[file]):
            where = "leaves" if second <= 0 else f"goes to line {second}"
            yield f"{file}:{first}: never {where}: {source[first - 1].strip()}"

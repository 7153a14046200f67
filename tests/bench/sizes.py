# SPDX-License-Identifier: Apache-2.0
"""How large the clusters are that are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """``peers``: small to large, the first is the baseline of the others. Pods are managed ones, of other nodes.

    ``exact``: so many that each is selected by its address; ``wide``: so many that nodes are selected by pod CIDR.
    ``fills``: pods in the map that programs look up; ``labelled``: pods of the namespace that is labelled at once.
    ``events``: of each kind; ``runs``: repetitions of a program; ``passes``: whole ones, of an idle hour.
    """

    peers: tuple[int, ...]
    exact: int
    wide: int
    max_exact: int
    fills: tuple[int, ...]
    labelled: int
    events: int
    runs: int
    passes: int


SIZES = {
    "full": Size((100, 1_000, 5_000), 20_000, 100_000, 30_000, (10, 1_000, 100_000), 10_000, 100, 1_000_000, 5),
    "small": Size((50, 500), 2_000, 10_000, 3_000, (10, 10_000), 1_000, 50, 200_000, 3),
    "tiny": Size((3, 6), 12, 60, 20, (10, 20), 20, 4, 1_000, 2),
}

# SPDX-License-Identifier: Apache-2.0
"""Group 0: what nothing costs, and rows that show that what is counted would be noticed."""

from __future__ import annotations

import re
import time

from tests.faults.moment import Moment, within
from tests.faults.rows import Row, Shows
from tests.lab.network import WIRE

ONE_OF = 1000


def nothing(moment: Moment) -> None:
    moment.happened()
    time.sleep(5)


def encryption_off(moment: Moment) -> None:
    moment.undo.append(lambda: moment.lab.label("Kmesh"))
    moment.lab.label("")
    moment.happened()
    time.sleep(3)


def lossy_wire(moment: Moment) -> None:
    ports = ", ".join(f"u{node.index}" for node in moment.lab.network.nodes)
    rule = f"numgen inc mod {ONE_OF} == 0 counter drop"
    chain = f"chain lose {{ type filter hook ingress devices = {{ {ports} }} priority 0; {rule}; }}"
    within(WIRE, "nft -f -", f"table netdev lossy {{ {chain}; }}")
    moment.undo.append(lambda: within(WIRE, "nft delete table netdev lossy"))
    moment.happened()

    def dropped() -> int:
        found = re.search(r"packets (\d+)", within(WIRE, "nft list table netdev lossy"))
        return int(found[1]) if found else 0

    moment.meanwhile("the wire has dropped a few", lambda: dropped() >= 3)
    moment.note(f"the wire dropped {dropped()} frames, TCP's and neighbour discovery's among them")


ROWS = (
    Row("quiet", 0, "nothing is done: what this machine costs by itself", nothing, quick=True),
    Row(
        "encryption-off",
        0,
        "the namespace's label is taken off: everything is in clear",
        encryption_off,
        quick=True,
        shows=Shows.LEAK,
    ),
    Row(
        "lossy-wire",
        0,
        f"the wire drops 1 of {ONE_OF} frames (nft, netdev ingress)",
        lossy_wire,
        quick=True,
        shows=Shows.LOSS,
    ),
)

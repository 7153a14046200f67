# SPDX-License-Identifier: Apache-2.0
"""All rows of the matrix, in the order of their groups."""

from __future__ import annotations

from tests.faults import bad, controls, daemons, devices, hands, keys, others, peers, services, tunnels, wire
from tests.faults.rows import Row

ROWS: tuple[Row, ...] = (
    *controls.ROWS,
    *keys.ROWS,
    *daemons.ROWS,
    *hands.ROWS,
    *devices.ROWS,
    *peers.ROWS,
    *bad.ROWS,
    *others.ROWS,
    *services.ROWS,
    *tunnels.ROWS,
    *wire.ROWS,
)
BY_NAME = {row.name: row for row in ROWS}

# SPDX-License-Identifier: Apache-2.0
"""Is the daemon alive, and is the node ready; what each path of the health server says. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from kmesh.telling import metrics
from kmesh.telling.record import Record

SETTLING = 2.0
"""Seconds that passes may take to reach a plan: some steps can only be taken when others are seen to be done."""
TEXT, JSON = "text/plain; charset=utf-8", "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a request: HTTP status, content type, body."""

    status: int
    content_type: str
    body: str


def judged(record: Record, now: float, view_age: float) -> Record:
    """Give a record as it is to be told now; ``view_age``: how long the cluster has not been seen, in seconds."""
    record = replace(record, now=now, view_age=view_age)
    return replace(record, unready=_reasons(record))


def _reasons(record: Record) -> tuple[str, ...]:
    """Give why the node is not ready for encryption; nothing: it is. Encryption goes on in either case.

    The one list of all that say it: /readyz, the metric, the conditions, the report that `status` and `explain` show.
    Every problem of the plan is in it.
    """
    reasons = []
    if record.error:
        reasons.append(f"the last pass had to be given up: {record.error}")
    if not record.succeeded:
        reasons.append("no pass has reached its plan yet")
    if record.view_age > record.bounds.view_age:
        bound = f"more than {record.bounds.view_age:.0f}; its last content stays in force"
        reasons.append(f"the cluster has not been seen for {record.view_age:.0f} s, {bound}")
    if record.key.hindrance:
        reasons.append(f"what this node has to announce cannot be written: {record.key.hindrance}")
    if not record.key.spi:
        reasons.append("there is no key: store one with kmeshctl secret")
    elif not record.key.announced:
        reasons.append(f"the key with SPI {record.key.spi} is not announced yet")
    if record.failures:
        reasons.append(f"{len(record.failures)} operations failed, the first: {record.failures[0]}")
    elif record.drift and record.attempted - record.succeeded > SETTLING:
        reasons.append(f"{record.drift} kernel objects differ from the plan still")
    reasons.extend(map(str, record.plan_problems))
    return tuple(reasons)


def answer(path: str, record: Record) -> Page:
    """Give the page at a path, of a record that was judged."""
    match path.partition("?")[0]:
        case "/healthz":
            silent = record.now - record.attempted
            if silent > record.bounds.silence:
                return Page(503, TEXT, f"no pass was attempted for {silent:.0f} s\n")
            return Page(200, TEXT, "ok\n")
        case "/readyz":
            told = {"node": record.node, "ready": not record.unready, "reasons": record.unready}
            return Page(503 if record.unready else 200, JSON, json.dumps(told) + "\n")
        case "/status/metric" | "/metrics":
            return Page(200, metrics.CONTENT_TYPE, metrics.render(record))
        case _:
            return Page(404, TEXT, "there are /healthz, /readyz, /status/metric and /metrics\n")

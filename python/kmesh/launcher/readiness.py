"""Is the daemon alive, and is the node ready; what each path of the health server says. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kmesh.launcher import metrics
from kmesh.launcher.metrics import Now
from kmesh.launcher.record import Record

SETTLING = 2.0
"""Seconds that passes may take to reach a plan: some steps can only be taken when others are seen to be done."""
TEXT, JSON = "text/plain; charset=utf-8", "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a request: HTTP status, content type, body."""

    status: int
    content_type: str
    body: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds without an attempt at a pass after which the daemon counts as dead; a view's age that is too old."""

    silence: float
    view_age: float


def unready(record: Record, view_age: float, bounds: Bounds) -> tuple[str, ...]:
    """Give why the node is not ready for encryption; nothing: it is. Encryption goes on in either case.

    The one list of all that say it: /readyz, the metric, the conditions, the report that `status` and `explain` show.
    Every problem of the plan is in it.
    """
    reasons = []
    if record.error:
        reasons.append(f"the last pass had to be given up: {record.error}")
    if not record.succeeded:
        reasons.append("no pass has reached its plan yet")
    if view_age > bounds.view_age:
        bound = f"more than {bounds.view_age:.0f}; its last content stays in force"
        reasons.append(f"the cluster has not been seen for {view_age:.0f} s, {bound}")
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


def answer(path: str, record: Record, time: float, view_age: float, bounds: Bounds) -> Page:
    """Give the page at a path."""
    reasons = unready(record, view_age, bounds)
    match path.partition("?")[0]:
        case "/healthz":
            silent = time - record.attempted
            if silent > bounds.silence:
                return Page(503, TEXT, f"no pass was attempted for {silent:.0f} s\n")
            return Page(200, TEXT, "ok\n")
        case "/readyz":
            body = json.dumps({"node": record.node, "ready": not reasons, "reasons": reasons}) + "\n"
            return Page(503 if reasons else 200, JSON, body)
        case "/status/metric" | "/metrics":
            return Page(200, metrics.CONTENT_TYPE, metrics.render(Now(record, time, view_age, not reasons)))
        case _:
            return Page(404, TEXT, "there are /healthz, /readyz, /status/metric and /metrics\n")

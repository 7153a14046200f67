"""Writes whose outcome nobody waits for, Events and the node's report, sent by a thread of their own.

A slow API server must not hold up the loop that puts back what somebody flushes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from kmesh.cluster.source import ClusterSource
from kmesh_bpf import KmeshBpfError

log = logging.getLogger("kmesh")

MOST_EVENTS = 100
"""Events kept while the cluster cannot take them; of more the oldest are dropped."""
RETRY_SECONDS = 5.0
LAST_SECONDS = 2.0
"""How long closing waits for what is under way."""

Manifest = Mapping[str, Any]


class Outbox:
    """Hands on to a source what :meth:`tell` and :meth:`report` take; both return at once and raise nothing."""

    def __init__(self, source: ClusterSource, retry_seconds: float = RETRY_SECONDS) -> None:
        self._source, self._retry_seconds = source, retry_seconds
        self._condition = threading.Condition()
        self._events: deque[Manifest] = deque(maxlen=MOST_EVENTS)
        self._lease: Manifest | None = None
        self._closed = False
        self._complaint = ""
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def tell(self, event: Manifest) -> None:
        """Send an Event."""
        with self._condition:
            self._events.append(event)
            self._condition.notify()

    def report(self, lease: Manifest) -> None:
        """Send the node's report, in place of an older one that is still waiting."""
        with self._condition:
            self._lease = lease
            self._condition.notify()

    def close(self) -> None:
        """Send what is waiting, if that is soon done, and end."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(LAST_SECONDS)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._events or self._lease is not None)
                event = self._events.popleft() if self._events else None
                lease, self._lease = (self._lease, None) if event is None else (None, self._lease)
                closed = self._closed
            if event is None and lease is None:
                return
            sent = self._send(event, lease)
            if not sent and closed:
                return
            if not sent:
                with self._condition:
                    if event is not None:
                        self._events.appendleft(event)
                    elif self._lease is None:
                        self._lease = lease
                    self._condition.wait_for(lambda: self._closed, self._retry_seconds)

    def _send(self, event: Manifest | None, lease: Manifest | None) -> bool:
        try:
            if event is not None:
                self._source.tell(event)
            elif lease is not None:
                self._source.publish_status(lease)
        except KmeshBpfError as error:
            if str(error) != self._complaint:  # once, as long as it lasts
                self._complaint = str(error)
                log.warning("%s; trying again", error)
            return False
        self._complaint = ""
        return True

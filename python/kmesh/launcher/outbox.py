"""Writes whose outcome nobody waits for, Events, the node's report and conditions, sent by a thread of their own.

A slow API server must not hold up the loop that puts back what somebody flushes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kmesh.cluster.source import ClusterSource
from kmesh_bpf import KmeshBpfError

log = logging.getLogger("kmesh")

MOST_EVENTS = 100
"""Events kept while the cluster cannot take them; of more the oldest are dropped."""
RETRY_SECONDS = 5.0
LAST_SECONDS = 2.0
"""How long closing waits for what is under way."""

Manifest = Mapping[str, Any]


class Letter(NamedTuple):
    """What is to be sent, and how; of one ``kind`` only the newest, unless it is empty."""

    kind: str
    send: Callable[[Manifest], None]
    manifest: Manifest


class Outbox:
    """Hands on to a source what :meth:`tell`, :meth:`report` and :meth:`conditions` take; they return at once."""

    def __init__(self, source: ClusterSource, retry_seconds: float = RETRY_SECONDS) -> None:
        self._source, self._retry_seconds = source, retry_seconds
        self._condition = threading.Condition()
        self._events: deque[Letter] = deque(maxlen=MOST_EVENTS)
        self._newest: dict[str, Letter] = {}
        self._closed = False
        self._complaint = ""
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def tell(self, event: Manifest) -> None:
        """Send an Event."""
        with self._condition:
            self._events.append(Letter("", self._source.tell, event))
            self._condition.notify()

    def report(self, lease: Manifest) -> None:
        """Send the node's report, in place of an older one that is still waiting."""
        self._renew(Letter("report", self._source.publish_status, lease))

    def conditions(self, node_info: Manifest) -> None:
        """Send the conditions of the node's KmeshNodeInfo, in place of older ones that are still waiting."""
        self._renew(Letter("conditions", self._source.publish_conditions, node_info))

    def close(self) -> None:
        """Send what is waiting, if that is soon done, and end."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(LAST_SECONDS)

    def _renew(self, letter: Letter) -> None:
        with self._condition:
            self._newest[letter.kind] = letter
            self._condition.notify()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._events or self._newest)
                letter = self._next()
                closed = self._closed
            if letter is None:
                return
            sent = self._send(letter)
            if not sent and closed:
                return
            if not sent:
                with self._condition:
                    if not letter.kind:
                        self._events.appendleft(letter)
                    else:
                        self._newest.setdefault(letter.kind, letter)
                    self._condition.wait_for(lambda: self._closed, self._retry_seconds)

    def _next(self) -> Letter | None:
        """Take what is to be sent next; the lock is held."""
        if self._events:
            return self._events.popleft()
        return self._newest.pop(next(iter(self._newest))) if self._newest else None

    def _send(self, letter: Letter) -> bool:
        try:
            letter.send(letter.manifest)
        except KmeshBpfError as error:
            if str(error) != self._complaint:  # once, as long as it lasts
                self._complaint = str(error)
                log.warning("%s; trying again", error)
            return False
        self._complaint = ""
        return True

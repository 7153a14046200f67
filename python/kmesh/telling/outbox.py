# SPDX-License-Identifier: Apache-2.0
"""Writes whose outcome nobody waits for, Events, the node's report and conditions, sent by a thread of their own.

A slow API server must not hold up the loop that puts back what somebody flushes; what it refuses not what it takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from kmesh.cluster.source import ClusterSource
from kmesh.errors import ApiError
from kmesh_bpf import KmeshBpfError

log = logging.getLogger("kmesh")

MOST_EVENTS = 100
"""Events kept while the cluster cannot take them; of more the oldest are dropped."""
RETRY_SECONDS = 5.0
LAST_SECONDS = 2.0
"""How long closing waits for what is under way."""

Manifest = Mapping[str, Any]


class Letter:
    """What is to be sent, and what was said of it when it could not be."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.complaint = ""


class Tray:
    """Letters of a kind that wait, the ``most`` newest of them, and when it is worth sending again."""

    def __init__(self, what: str, send: Callable[[Manifest], None], most: int) -> None:
        self.what, self.send = what, send
        self.letters: deque[Letter] = deque(maxlen=most)
        self.due = 0.0
        self.complaint = ""

    def put_back(self, letter: Letter, *, last: bool) -> None:
        """Take a letter in again, unless newer ones fill the tray; ``last``: behind the others."""
        if len(self.letters) == self.letters.maxlen:
            return
        if last:
            self.letters.append(letter)
        else:
            self.letters.appendleft(letter)


class Outbox:
    """Hands on to a source what :meth:`tell`, :meth:`report` and :meth:`conditions` take; they return at once.

    Each kind waits for its own next try only, and Events, of which there may be many, let the others pass.
    """

    def __init__(self, source: ClusterSource, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._condition = threading.Condition()
        self._report = Tray("the node's report", source.publish_status, 1)
        self._conditions = Tray("the node's conditions", source.publish_conditions, 1)
        self._events = Tray("an Event", source.tell, MOST_EVENTS)
        self._trays = (self._report, self._conditions, self._events)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def tell(self, event: Manifest) -> None:
        """Send an Event."""
        self._put(self._events, event)

    def report(self, lease: Manifest) -> None:
        """Send the node's report, in place of an older one that is still waiting."""
        self._put(self._report, lease)

    def conditions(self, node_info: Manifest) -> None:
        """Send the conditions of the node's KmeshNodeInfo, in place of older ones that are still waiting."""
        self._put(self._conditions, node_info)

    def close(self) -> None:
        """Send what is waiting, if that is soon done, and end."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(LAST_SECONDS)

    def _put(self, tray: Tray, manifest: Manifest) -> None:
        with self._condition:
            tray.letters.append(Letter(manifest))
            self._condition.notify()

    def _work(self) -> None:
        while True:
            with self._condition:
                tray = self._next()
                if tray is None:
                    return
                letter = tray.letters.popleft()
            try:
                tray.send(letter.manifest)
            except KmeshBpfError as error:
                with self._condition:
                    self._keep(tray, letter, error)
            except Exception as error:  # a thread that ends would send nothing any more, and nobody would know
                log.error("%s cannot be sent, by a fault of this program: %s", tray.what, type(error).__name__)
                log.debug("sending %s", tray.what, exc_info=True)
            else:
                tray.complaint = ""

    def _next(self) -> Tray | None:
        """Wait for a tray whose letters are to be sent now; None: that was all. The lock is held."""
        while True:
            now = time.monotonic()
            waiting = [tray for tray in self._trays if tray.letters]
            due = next((tray for tray in waiting if self._closed or tray.due <= now), None)
            if due is not None or self._closed:
                return due
            self._condition.wait(min(tray.due for tray in waiting) - now if waiting else None)

    def _keep(self, tray: Tray, letter: Letter, error: KmeshBpfError) -> None:
        """Keep what could not be sent for another try, if one can be of use; the lock is held."""
        status = error.status if isinstance(error, ApiError) else 0
        if tray is self._events and isinstance(error, ApiError) and error.final:
            # Not so the report and the conditions, of which there is one: they are in nobody's way.
            log.warning("%s; this Event is dropped", error)
            return
        self._complain(tray, letter, str(error))
        if self._closed:
            tray.letters.clear()  # whoever ends has no time to hear the same once more
            return
        # What was refused may be alone in that, and lets the others go first; else their order is kept.
        tray.put_back(letter, last=400 <= status < 500)
        tray.due = time.monotonic() + self._retry_seconds

    def _complain(self, tray: Tray, letter: Letter, complaint: str) -> None:
        """Say it once, as long as it lasts, however many letters meet with it."""
        if complaint not in (letter.complaint, *(one.complaint for one in self._trays)):
            log.warning("%s; trying again", complaint)
        letter.complaint = tray.complaint = complaint

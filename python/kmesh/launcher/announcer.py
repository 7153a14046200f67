# SPDX-License-Identifier: Apache-2.0
"""What this node announces of itself, its KmeshNodeInfo, written by a thread of its own.

A slow API server must not hold up the loop. So the loop says what is to be announced (:meth:`Announcer.put`), and
believes it announced when it is told that the server has taken it (:meth:`Announcer.take`): a key is announced after
its inbound SAs were in the kernel, and counts as announced after it stands in the cluster. There is one place for what
is to be written: the newest is what counts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kmesh import unexpected
from kmesh.cluster.source import ClusterSource
from kmesh_bpf import KmeshBpfError

log = logging.getLogger("kmesh")

FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds between two tries, at first and at most."""
LAST_SECONDS = 2.0
"""How long closing waits for what is under way."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be written. ``recreate``: the object that is there must be deleted, not changed."""

    node_info: Mapping[str, Any]
    recreate: bool = False

    @property
    def spi(self) -> int:
        """The key version that it announces."""
        return int(self.node_info["spec"]["spi"])

    @property
    def incarnation(self) -> str:
        """The incarnation that it announces."""
        return str(self.node_info["spec"]["bootID"])


@dataclass(frozen=True, slots=True)
class Announced:
    """What the server has taken, and when: seconds since the epoch, not before it did."""

    draft: Draft
    at: float


class Announcer:
    """Keeps the draft, and what came of it; ``clock`` gives seconds since the epoch.

    Any thread may call any method; :meth:`write`, which waits for the server, is for one at a time.
    """

    def __init__(self, source: ClusterSource, clock: Callable[[], float]) -> None:
        self.hindrance = ""
        """Why the last try failed, empty if it did not."""
        self.wake: int | None = None
        """A file descriptor that is readable whenever :meth:`take` gives something new; None: there is only asking."""
        self._source, self._clock = source, clock
        self._condition = threading.Condition()
        self._draft: Draft | None = None
        self._done: Announced | None = None
        self.news = False
        """Whether something was written, or hindered otherwise, since :meth:`take` was last called."""

    def put(self, draft: Draft | None) -> None:
        """Have this written, in place of what waits to be; None: nothing, for it stands there already."""
        with self._condition:
            if draft == self._draft:
                return
            self._draft = draft
            if draft is None:
                self.hindrance = ""
            self._condition.notify_all()

    def take(self) -> Announced | None:
        """Give what was written last, once."""
        with self._condition:
            done, self._done, self.news = self._done, None, False
            return done

    def write(self) -> bool:
        """Write the draft, if there is one; tell whether nothing is left to be written."""
        with self._condition:
            draft = self._draft
        if draft is None:
            return True
        try:
            if draft.recreate:
                self._source.withdraw(str(draft.node_info["metadata"]["name"]), status=False)
            self._source.publish(draft.node_info)
        except Exception as error:  # noqa: BLE001 # a thread that ends would announce nothing any more, and nobody would know
            self._failed(draft, error)
            return False
        log.info("announced: SPI %d, incarnation %s", draft.spi, draft.incarnation)
        with self._condition:
            self._done, self.hindrance, self.news = Announced(draft, self._clock()), "", True
            if self._draft == draft:
                self._draft = None
            return self._draft is None

    def close(self) -> None:
        """End."""

    def _failed(self, draft: Draft, error: Exception) -> None:
        said = unexpected.sentence(error)
        if not isinstance(error, KmeshBpfError):
            log.debug("%s", unexpected.origin(error))
        with self._condition:
            if self._draft != draft:
                return  # it is not wanted any more
            if said != self.hindrance:
                log.warning("%s; trying again", said)
                self.hindrance, self.news = said, True


class AnnouncerThread(Announcer):
    """Writes by itself, from its making to :meth:`close`."""

    def __init__(self, source: ClusterSource, clock: Callable[[], float] = time.time) -> None:
        super().__init__(source, clock)
        self._eventfd = self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="announcer", daemon=True)
        self._thread.start()

    def take(self) -> Announced | None:
        """See :class:`Announcer`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        return super().take()

    def close(self) -> None:
        """Try once more what waits, if that is soon done, and end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(LAST_SECONDS)
        if not self._thread.is_alive():
            os.close(self._eventfd)

    def _work(self) -> None:
        retry = FIRST_RETRY
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._draft is not None)
                draft, last = self._draft, self._closed
            if draft is None:
                return
            written = self.write()
            if self.news:
                os.eventfd_write(self._eventfd, 1)
            if last:
                return
            if written:
                retry = FIRST_RETRY
                continue
            self._rest(draft, retry)
            retry = min(retry * 2, LAST_RETRY)

    def _rest(self, tried: Draft, seconds: float) -> None:
        """Wait before the next try; another draft is tried at once: what hindered the one may not concern it."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._draft != tried, seconds)

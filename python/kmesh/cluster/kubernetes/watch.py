"""One watched collection: list, then watch from there, for ever; a thread of its own keeps a shelf current.

The shelf never holds less than the server has: a list replaces it at once, when all its pages are there.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kmesh.cluster.kubernetes import decoding
from kmesh.cluster.kubernetes.connection import Answer, Connection
from kmesh.cluster.kubernetes.listing import pages
from kmesh.cluster.kubernetes.resources import (
    GONE,
    NOT_FOUND,
    REFUSED,
    Collection,
    common,
    lines,
    older,
    refusal,
    version_of,
)
from kmesh.cluster.kubernetes.store import Shelf
from kmesh.errors import ApiError

log = logging.getLogger("kmesh")

WATCH_SECONDS = 300
"""The server ends a watch after this long, and up to twice of it, so that they do not all end at once."""
SILENCE_SECONDS = 100.0
"""Of a watch; a healthy server sends a bookmark every minute."""
SHORT_SECONDS = 1.0
"""A watch that ends sooner is taken for a fault: asking again at once would be a storm."""
FIRST_RETRY, LAST_RETRY = 0.5, 30.0
ABSENT_RETRY = 300.0
"""Seconds until a kind that this server does not have is asked for again."""
CLUSTER_IDENTITY = Collection("Namespace", fields="metadata.name=kube-system")


class _RelistError(Exception):
    """What comes next cannot be told from here: the server has forgotten, or is another one."""


def retry_delay(attempt: int, random: Callable[[], float]) -> float:
    """Give the seconds to wait after so many failures in a row, from 1: growing, bounded, and spread by ``random``."""
    longest = min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(attempt - 1, 16))
    return longest * (0.1 + 0.9 * random())


class Watch:
    """Keeps a shelf current until :meth:`stop`.

    ``optional``: the server need not have this kind. ``clock`` gives seconds that only grow, ``random`` numbers from
    0 to 1.
    """

    def __init__(
        self,
        connection: Connection,
        shelf: Shelf,
        clock: Callable[[], float],
        random: Callable[[], float],
        *,
        optional: bool = False,
    ) -> None:
        self.shelf = shelf
        self._connection, self._clock, self._random, self._optional = connection, clock, random, optional
        self._collection = shelf.collection
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._cluster, self._version = "", ""
        self._open_since: float | None = None
        self._heard_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"watch {self._collection}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, now."""
        self._stopping.set()
        self._connection.comeback.nudge()
        self.cut()

    def cut(self) -> None:
        """Cut the connection under way, as a network does."""
        with self._lock:
            if self._answer is not None:
                self._answer.shut_down()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(seconds)

    def running(self) -> bool:
        """Tell whether the thread has not ended yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._keep_current()
        finally:
            if not self._stopping.is_set():
                self.shelf.lost(f"the watch of {self._collection} has ended by a fault of this program; restart it")

    def _keep_current(self) -> None:
        failures, doubt = 0, False
        while not self._stopping.is_set():
            wait, away = 0.0, False
            self._open_since = None
            try:
                if doubt and self._version:
                    self._check_cluster()
                if not self._version:
                    self._list()
                doubt = True
                self._follow()
                doubt = False
                failed = not self._was_open()
            except _RelistError as reason:
                log.info("all %s are read anew: %s", self._collection, reason)
                self.shelf.forget_writes()
                self._version, failed = "", True
            except ApiError as error:
                failed, away = True, common(error.status)
                if error.status == NOT_FOUND and self._optional:
                    self.shelf.replace(self.shelf.draft())
                    self._version, wait = "", ABSENT_RETRY
                else:
                    # That a watch breaks off is ordinary; that it cannot be taken up again is worth saying. One that
                    # fell silent has told nothing since its last event or bookmark.
                    trouble = None if self._open_since is not None else str(error)
                    self.shelf.lost(trouble, self._heard_at if self._was_silent() else None)
            failures = (0 if self._was_open() else failures) + failed
            wait = wait or (retry_delay(failures, self._random) if failures else 0.0)
            self._connection.comeback.wait(wait, self._stopping, early=away)

    def _was_open(self) -> bool:
        """Tell whether the watch just ended had been open for some time."""
        return self._open_since is not None and self._clock() - self._open_since >= SHORT_SECONDS

    def _was_silent(self) -> bool:
        """Tell whether the watch just ended had told nothing for so long that it was given up."""
        return self._open_since is not None and self._clock() - self._heard_at >= SILENCE_SECONDS

    def _list(self) -> None:
        """Read the whole collection, and the version to watch from."""
        self._cluster = self._cluster_identity()[0]
        draft, version = self.shelf.draft(), ""
        for page in pages(self._connection, self._collection):
            if page.first:
                draft = self.shelf.draft()
            for manifest in page.items:
                draft.add(manifest)
            version = page.version
        self.shelf.replace(draft, version)
        self._version = version

    def _cluster_identity(self) -> tuple[str, str]:
        """Give what tells this cluster from another one at the same address, and its newest version, where we may."""
        try:
            page = next(pages(self._connection, CLUSTER_IDENTITY))
        except ApiError as error:
            if error.status != REFUSED:
                raise
            return "", ""
        return "".join(str(one["metadata"].get("uid")) for one in page.items), page.version

    def _check_cluster(self) -> None:
        """After a failure: a server that was restored or replaced would leave us waiting for a version to come."""
        uid, newest = self._cluster_identity()
        if uid != self._cluster:
            raise _RelistError("another cluster answers at this address")
        if older(newest, self._version):
            raise _RelistError("the server has gone back to an older state")

    def _follow(self) -> None:
        """Watch from a version until the server ends it; the version of the last event is where to go on from.

        Raises:
            _RelistError: the server no longer knows what happened since.
            ApiError: the connection broke, or the server refuses.

        """
        seconds = int(WATCH_SECONDS * (1 + self._random()))
        path = self._collection.query(
            watch="1", resourceVersion=self._version, allowWatchBookmarks="true", timeoutSeconds=str(seconds)
        )
        try:
            answer = self._connection.open("watch", str(self._collection), "GET", path, seconds=SILENCE_SECONDS)
        except ApiError as error:
            if error.status == GONE:
                raise _RelistError(str(error)) from error
            raise
        with answer:
            with self._lock:
                self._answer = answer
            try:
                if self._stopping.is_set():
                    return
                self._open_since = self._heard_at = self._clock()
                self.shelf.recovered()
                for kind, manifest in self._events(answer):
                    self._take(kind, manifest)
            finally:
                with self._lock:
                    self._answer = None

    def _events(self, answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in lines(self._connection.stream(answer)):
            try:
                event = decoding.decode_event(self._collection.kind, line)
            except ValueError as error:
                raise ApiError(f"the API server {self._connection.server} sends what is no event") from error
            yield event

    def _take(self, kind: str, manifest: dict[str, Any]) -> None:
        """Act on an event."""
        self._heard_at = self._clock()
        match kind:
            case "ADDED" | "MODIFIED":
                self.shelf.put(manifest)
            case "DELETED":
                self.shelf.remove(manifest)
            case decoding.ERROR:
                status = manifest.get("code")
                if status == GONE:
                    raise _RelistError(str(manifest.get("message")))
                said = json.dumps(manifest).encode()
                raise refusal("watch", str(self._collection), status if isinstance(status, int) else 0, said)
        self._version = version_of(manifest) or self._version

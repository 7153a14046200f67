# SPDX-License-Identifier: Apache-2.0
"""One watched collection: list, then watch from there, for ever; a thread of its own keeps a shelf current.

The shelf never holds less than the server has: a list replaces it at once, when all its pages are there.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from kmesh.cluster.kubernetes import decoding
from kmesh.cluster.kubernetes.connection import Answer, Connection
from kmesh.cluster.kubernetes.listing import Listing, pages
from kmesh.cluster.kubernetes.patience import Limit
from kmesh.cluster.kubernetes.resources import (
    BAD_REQUEST,
    GONE,
    NOT_FOUND,
    REFUSED,
    Collection,
    common,
    is_named,
    lines,
    older,
    refusal,
    said_by_server,
    uid_of,
    version_of,
)
from kmesh.cluster.kubernetes.store import Draft, Shelf
from kmesh.errors import ApiError

log = logging.getLogger("kmesh")

WATCH_SECONDS = 300
"""The server ends a watch after this long, and up to twice of it, so that they do not all end at once."""
SILENCE_SECONDS = 100.0
"""Of a watch; a healthy server sends a bookmark every minute."""
SHORT_SECONDS = 1.0
"""A watch that ends sooner is taken for a fault: asking again at once would be a storm."""
MOST_EMPTY_WATCHES = 3
"""So many in a row that end at once with nothing in them are no watches."""
FIRST_RETRY, LAST_RETRY = 0.5, 30.0
ABSENT_RETRY = 300.0
"""Seconds until a kind that this server does not have is asked for again."""
EMPTY_SECONDS = 1.0
"""After which a list is asked for again that is empty, when it was not before and nobody saw a deletion."""
CLUSTER_IDENTITY = Collection("Namespace", fields="metadata.name=kube-system")


class _RelistError(Exception):
    """What comes next cannot be told from here: the server has forgotten, or is another one."""


class _SaidError(ApiError):
    """A watch ended not because a connection broke, but by what came over it, which is worth telling.

    ``nonsense``: what came can be no event, so that nobody knows what was missed.
    """

    def __init__(self, message: str, status: int = 0, *, nonsense: bool = False) -> None:
        super().__init__(message, status)
        self.nonsense = nonsense


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
        self._listing, self._draft = Listing(connection, self._collection), shelf.draft()
        self._doubt = self._missed = self._heard = False
        self._empty_watches = 0
        self._open_since: float | None = None
        self._heard_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"watch {self._collection}", daemon=True)

    def start(self) -> None:
        """Start the thread, unless it is; where the machine has no room for one the shelf tells: try again."""
        if self._thread.ident is not None:
            return
        try:
            self._thread.start()
        except RuntimeError as error:
            self.shelf.lost(f"{self._collection} cannot be watched: {error}; it is tried again")

    def read_once(self) -> None:
        """Read the collection here and now, in the place of a thread; the shelf has it, or why it could not be had."""
        try:
            self.shelf.replace(self._read(), self._listing.version)
        except ApiError as error:
            if error.status == NOT_FOUND and self._optional:
                self.shelf.replace(self.shelf.draft())
            else:
                self.shelf.lost(str(error))

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
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def running(self) -> bool:
        """Tell whether the thread has not ended yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        """Keep the shelf current until :meth:`stop`; nothing else ends this."""
        failures, away = 0, False
        while not self._stopping.is_set():
            was_away = away
            self._open_since = None
            failed, wait, away = True, 0.0, False
            with suppress(Exception):  # where memory is short, even telling of that may fail
                failed, wait, away = self._once()
            # A server that answers again is not made to wait for how long it was away.
            failures = (0 if self._was_open() or (was_away and not away) else failures) + failed
            wait = wait or (retry_delay(failures, self._random) if failures else 0.0)
            self._connection.comeback.wait(wait, self._stopping, early=away)

    def _once(self) -> tuple[bool, float, bool]:
        """Get current where need be, and watch until that ends.

        Gives whether it failed, the seconds until it is worth trying again (0: as after any failure), and whether
        the server's coming back would end that wait.
        """
        try:
            if self._doubt and self._version:
                self._check_cluster()
            if not self._version:
                self._list()
            self._doubt = True
            self._follow()
            self._doubt = False
            if not self._was_open():
                self._ended_at_once()
            return not self._was_open(), 0.0, False
        except _RelistError as reason:
            self._begin_anew(str(reason))
            return True, 0.0, False
        except ApiError as error:
            if error.status == NOT_FOUND and self._optional:
                return True, self._absent(str(error)), False
            # That a watch breaks off is ordinary; that it cannot be taken up again is worth saying. One that fell
            # silent has told nothing since its last event or bookmark.
            ordinary = self._open_since is not None and not isinstance(error, _SaidError)
            self.shelf.lost(None if ordinary else str(error), self._heard_at if self._was_silent() else None)
            if isinstance(error, _SaidError) and error.nonsense:
                self._begin_anew("a watch brought what is no event")
            elif error.status == BAD_REQUEST and self._version:
                self._begin_anew("the server does not take the version to watch from")
            return True, 0.0, common(error.status)
        except Exception as error:  # a thread that ends would leave the view as it is for ever
            name = type(error).__name__
            self.shelf.lost(f"the watch of {self._collection} met a fault of this program ({name}) and begins anew")
            log.debug("the watch of %s", self._collection, exc_info=True)
            self._begin_anew(f"a fault of this program ({name})")
            return True, 0.0, False

    def _ended_at_once(self) -> None:
        """Believe watches that end with nothing in them a few times; then only a list tells what there is."""
        self._empty_watches = 0 if self._heard else self._empty_watches + 1
        if self._empty_watches >= MOST_EMPTY_WATCHES:
            self.shelf.lost(f"the API server {self._connection.server} ends each watch of {self._collection} at once")
            self._begin_anew("watches end at once")

    def _absent(self, why: str) -> float:
        """Take it that this server does not have the kind, if it says so once more; give when to ask again."""
        self._version = ""
        if self.shelf.objects and not self._missed:
            self._missed = True
            self.shelf.lost(why)
            return EMPTY_SECONDS
        self.shelf.replace(self.shelf.draft())
        return ABSENT_RETRY

    def _begin_anew(self, why: str) -> None:
        """Go on with a list, and measure nothing by what was before."""
        log.info("all %s are read anew: %s", self._collection, why)
        self.shelf.forget_writes()
        self._version = ""
        self._listing = Listing(self._connection, self._collection)

    def _was_open(self) -> bool:
        """Tell whether the watch just ended had been open for some time."""
        return self._open_since is not None and self._clock() - self._open_since >= SHORT_SECONDS

    def _was_silent(self) -> bool:
        """Tell whether the watch just ended had told nothing for so long that it was given up."""
        return self._open_since is not None and self._clock() - self._heard_at >= SILENCE_SECONDS

    def _list(self) -> None:
        """Read the whole collection, and the version to watch from."""
        uid, newest = self._cluster_identity()
        if self._listing.begun and (uid != self._cluster or older(newest, self._listing.version)):
            self._listing = Listing(self._connection, self._collection)
        self._cluster = uid
        draft = self._read()
        if self.shelf.objects and not draft.objects:
            log.info("of %s nothing is left, and nobody saw it go: asked again", self._collection)
            self._connection.comeback.wait(EMPTY_SECONDS, self._stopping, early=False)
            draft = self._read()
        self.shelf.replace(draft, self._listing.version)
        self._version, self._missed = self._listing.version, False

    def _read(self) -> Draft:
        """Read all pages, or those that are missing."""
        for page in self._listing.pages():
            if page.first:
                self._draft = self.shelf.draft()
            for manifest in page.items:
                self._draft.add(manifest)
        return self._draft

    def _cluster_identity(self) -> tuple[str, str]:
        """Give what tells this cluster from another one at the same address, and its newest version, where we may."""
        try:
            page = next(pages(self._connection, CLUSTER_IDENTITY))
        except ApiError as error:
            if error.status != REFUSED:
                raise
            return "", ""
        return "".join(uid_of(one) for one in page.items), page.version

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
            # It was asked to end by itself before that; blanks that go on coming are no watch.
            limit = Limit(seconds + SILENCE_SECONDS, answer.shut_down)
            try:
                if self._stopping.is_set():
                    return
                self._open_since = self._heard_at = self._clock()
                self._heard = False
                self.shelf.recovered()
                for kind, manifest in self._events(answer):
                    self._take(kind, manifest)
            finally:
                limit.cancel()
                with self._lock:
                    self._answer = None

    def _events(self, answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            # A connection that breaks raises ApiError; a server that ends a watch does so between two events.
            for line in lines(self._connection.stream(answer), whole=True):
                yield decoding.decode_event(self._collection.kind, line)
        except ValueError as error:
            raise self._nonsense("what is no event") from error

    def _nonsense(self, what: str) -> _SaidError:
        return _SaidError(
            f"the API server {self._connection.server} sends {what} in a watch of {self._collection}", nonsense=True
        )

    def _take(self, kind: str, manifest: dict[str, Any]) -> None:
        """Act on an event."""
        if kind == decoding.ERROR:
            code = manifest.get("code")
            status = code if type(code) is int and 400 <= code < 600 else 0
            said = json.dumps(manifest).encode()
            if status == GONE:
                raise _RelistError(said_by_server(said))
            error = refusal("watch", str(self._collection), status, said)
            raise _SaidError(str(error), status)
        if kind != "BOOKMARK" and not is_named(manifest, self._collection):
            raise self._nonsense("an event of what has no name, or is no such thing,")
        self._heard, self._heard_at = True, self._clock()
        match kind:
            case "ADDED" | "MODIFIED":
                self.shelf.put(manifest)
            case "DELETED":
                self.shelf.remove(manifest)
        self._version = version_of(manifest) or self._version

# SPDX-License-Identifier: Apache-2.0
"""What one daemon sees of the API server: the real cluster source, over watches whose lines come when a seed lets them.

:class:`kmesh.cluster.kubernetes.source.KubernetesCluster` is the product's: which collections are watched, what shelves
hold, what a write of one's own means to events that are older, when the cluster counts as known. Only its threads, and
the HTTP beneath them, are not here: a :class:`Line` does what :class:`kmesh.cluster.kubernetes.watch.Watch` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from kmesh.cluster.kubernetes.connection import Connection
from kmesh.cluster.kubernetes.resources import Collection
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.kubernetes.store import Shelf
from kmesh.cluster.kubernetes.watch import Watch
from kmesh.cluster.kubernetes.writes import Writer
from kmesh.errors import ClusterError

from tests.simulator.server import Manifest, Server, matches


class Line:
    """A watch of one collection: lists, then follows, ``delay`` seconds behind; cut, it goes on from its version."""

    def __init__(self, feed: Feed, shelf: Shelf) -> None:
        # Of a server's changes the one at index r has revision r + 1, so that a line's revision is where it goes on.
        self.feed, self.shelf, self.collection = feed, shelf, shelf.collection
        self.revision: int | None = None
        self.epoch = feed.server.epoch
        self.delay = feed.delay(self.collection)
        self.due = 0.0

    def start(self) -> None:
        if self not in self.feed.lines:  # every read starts those for which there was no room
            self.due = self.feed.server.clock() + self.delay
            self.feed.lines.append(self)
            self.feed.stir()

    def stop(self) -> None:
        if self in self.feed.lines:
            self.feed.lines.remove(self)

    def join(self, seconds: float) -> None:
        """Nothing runs."""

    def running(self) -> bool:
        return False

    def cut(self, until: float) -> None:
        """Break the connection; it is taken up again then."""
        self.shelf.lost("the watch broke off")
        self.due = max(self.due, until)
        self.feed.stir()

    def turn(self) -> None:
        """Take what has come by now."""
        server, now = self.feed.server, self.feed.server.clock()
        if now < self.due or (server.away and self.revision is None):
            return
        if server.away:
            self.shelf.lost("the API server is away")
            return
        if self.revision is None or self.epoch != server.epoch or self.revision < server.compacted:
            self._list(self.feed.first_view or server.revision)
        elif self.shelf.lost_at is not None:
            self.shelf.recovered()
        if server.newest.get(self.collection.kind, 0) <= (self.revision or 0):
            self.revision = server.revision  # as by a bookmark: what has happened is none of its business
            return
        for change in server.changes[self.revision or 0 :]:
            if change.at + self.delay > now:
                break
            self._take(change.before, change.after)
            self.revision = change.revision

    def _list(self, revision: int) -> None:
        server = self.feed.server
        if self.revision is not None:
            self.shelf.forget_writes()
        objects = server.objects if revision >= server.revision else server.at(revision)
        draft = self.shelf.draft()
        for manifest in objects.values():
            if matches(self.collection, manifest):
                draft.add(manifest)
        self.revision, self.epoch = min(revision, server.revision), server.epoch
        self.shelf.replace(draft, str(self.revision))

    def _take(self, before: Manifest | None, after: Manifest | None) -> None:
        if after is not None and matches(self.collection, after):
            self.shelf.put(after)
        elif before is not None and matches(self.collection, before):
            self.shelf.remove(before)


class Feed:
    """The connection of one daemon. ``delay`` gives how far a collection's watch is behind, in seconds.

    ``first_view``: the revision that lists show instead of the newest one. ``before_write`` is called ahead of each
    write, ``before_announcement`` ahead of each that the server takes of a KmeshNodeInfo.
    """

    def __init__(self, server: Server, delay: Callable[[Collection], float]) -> None:
        self.server, self.delay = server, delay
        self.lines: list[Line] = []
        self._at_rest: tuple[int, int] | None = None
        self.first_view: int | None = None
        self.before_write: Callable[[], None] = lambda: None
        self.before_announcement: Callable[[Mapping[str, Any]], None] = lambda _: None

    def turn(self) -> None:
        """Let what has come be seen."""
        server = self.server
        if self._at_rest == (server.epoch, server.revision) and not server.away:
            return
        for line in list(self.lines):
            line.turn()
        rests = not server.away and all(
            line.revision == server.revision and line.shelf.lost_at is None for line in self.lines
        )
        self._at_rest = (server.epoch, server.revision) if rests else None

    def stir(self) -> None:
        """Have the next turn look at each line: one was added, or cut."""
        self._at_rest = None

    def close(self) -> None:
        """Nothing is open."""


class _Writes:
    """What :class:`kmesh.cluster.kubernetes.writes.Writer` does, without HTTP."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def apply(self, collection: Collection, manifest: Mapping[str, Any], subresource: str = "") -> Manifest:
        self._feed.before_write()
        self._feed.server.answers(writing=True)
        if collection.kind == "KmeshNodeInfo":
            self._feed.before_announcement(manifest)
        return self._feed.server.put(manifest)

    def delete(self, collection: Collection, name: str) -> None:
        self._feed.before_write()
        self._feed.server.answers(writing=True)
        self._feed.server.delete(collection.kind, collection.namespace, name)


class _Unlocked:
    """The store's condition where there is one thread: nobody is waited for but what has come already."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def notify_all(self) -> None:
        return None

    def wait_for(self, predicate: Callable[[], bool], _seconds: float) -> bool:
        self._feed.turn()
        return predicate()


class SimulatedCluster(KubernetesCluster):
    """A daemon's cluster source over a feed."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        super().__init__(cast(Connection, feed), clock=feed.server.clock)
        self._store.condition = cast(Any, _Unlocked(feed))
        self._writer = cast(Writer, _Writes(feed))

    def _watch(self, collection: Collection) -> Watch:
        return cast(Watch, Line(self.feed, super()._watch(collection).shelf))


class Outbox:
    """Sends a daemon's reports, as :class:`kmesh.telling.outbox.Outbox` does: the newest one, when it gets through."""

    def __init__(self, source: SimulatedCluster) -> None:
        self._source = source
        self._waiting: Mapping[str, Any] | None = None

    def tell(self, event: Mapping[str, Any]) -> None:
        """Events are read by nobody here."""

    def conditions(self, node_info: Mapping[str, Any]) -> None:
        """Nor are conditions."""

    def report(self, lease: Mapping[str, Any]) -> None:
        self._waiting = lease
        self.turn()

    def turn(self) -> None:
        """Try to send what waits."""
        if self._waiting is not None:
            with suppress(ClusterError):
                self._source.publish_status(self._waiting)
                self._waiting = None

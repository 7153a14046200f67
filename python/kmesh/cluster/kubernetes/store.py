# SPDX-License-Identifier: Apache-2.0
"""What the watches have brought, shared with whoever reads: one lock, one number that grows with every change.

Only parsed objects are held, and of them only what the view needs; a manifest is gone when its line has been read.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import Any

from kmesh.cluster.kubernetes.resources import Collection, older, version_of, whole
from kmesh.cluster.objects import (
    NAMESPACE,
    SIDECAR_ANNOTATION,
    Identity,
    KeySecret,
    NodeInfo,
    Object,
    PodObject,
    Service,
    identity,
    label,
    parse,
)
from kmesh.cluster.shared import Objects
from kmesh.cluster.snapshot import GATEWAY_LABEL, MODE_LABEL
from kmesh_bpf import ConfigError

SHARED = 4096
"""Label sets and container lists remembered, so that equal ones of many pods are one object."""


class Store:
    """The lock over all shelves, the change counter, and a file descriptor: readable while a change is unread."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.revision = 0
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._signalled = False
        self._closed = False

    def touch(self) -> None:
        """Count a change; the lock is held."""
        if not self._signalled and not self._closed:
            self._signalled = True
            os.eventfd_write(self.wake, 1)
        self.revision += 1  # last: it is read without the lock, and says that the descriptor is readable
        self.condition.notify_all()

    def taken(self) -> None:
        """All changes so far are being read; the lock is held."""
        if self._signalled:
            self._signalled = False
            os.eventfd_read(self.wake)

    def close(self) -> None:
        """Give the file descriptor back; changes that come all the same are nobody's business any more."""
        with self.condition:
            self._closed = True
            os.close(self.wake)


class Shelf:
    """The objects of one watched collection.

    ``objects`` are immutable: whoever has read them keeps what was. ``clock`` gives seconds that only grow.
    ``on_change`` runs under the lock, after the objects changed.
    """

    def __init__(
        self, store: Store, collection: Collection, clock: Callable[[], float], on_change: Callable[[], None]
    ) -> None:
        self.collection = collection
        self.objects: Objects[Object] = Objects()
        self.synced = False
        self.trouble: str | None = None
        self.lost_at: float | None = clock()
        self._store, self._clock, self._on_change = store, clock, on_change
        self._problems: dict[Identity, str] = {}
        self._written: dict[Identity, str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What cannot be read, and why, the collection as a whole first."""
        known = "; what is known stays in force" if self.synced else ""
        trouble = (f"{self.trouble}{known}",) if self.trouble else ()
        return (*trouble, *self._problems.values())

    def draft(self) -> Draft:
        """Begin a new content."""
        return Draft(self.collection, self.objects)

    def replace(self, draft: Draft, version: str = "") -> None:
        """Put a new content in place of the old one, at once; ``version``: of the list that it is, if known.

        What we wrote while the list was under way is kept; so is what a list lacks in which something has no name, for
        that may be it.
        """
        with self._store.condition:
            kept = ((who, self._get(who)) for who, written in self._written.items() if older(version, written))
            draft.objects.update((who, one) for who, one in kept if one is not None)
            gone = ((key, None) for key, _ in self.objects.items() if (self.collection.kind, *key) not in draft.objects)
            news = self._news(draft.objects)
            objects = self.objects.changed(news if draft.nameless else chain(news, gone))
            changed = not self.synced or objects is not self.objects or self._problems != draft.problems
            self.objects, self._problems, self.synced = objects, draft.problems, True
            self.recovered()
            if changed:
                self._changed()

    def put(self, manifest: dict[str, Any]) -> None:
        """Take an object that was added or changed; what cannot be read stays as it was."""
        who, new, problem = _read(manifest, self.collection)
        if who is None:
            return
        with self._store.condition:
            if self._outdated(who, manifest):
                return
            before = self.objects, self._problems.get(who)
            if new is not None:
                self.objects = self.objects.changed(self._news({who: new}))
            if problem is None:
                self._problems.pop(who, None)
            else:
                self._problems[who] = problem
            if self.objects is not before[0] or self._problems.get(who) != before[1]:
                self._changed()

    def remove(self, manifest: dict[str, Any]) -> None:
        """Take out an object that was deleted, or that the selectors no longer let through."""
        who = _read(manifest, self.collection)[0]
        if who is not None and not self._outdated(who, manifest):
            self.take_out(who)

    def take_out(self, who: Identity) -> None:
        """Take out an object by its identity, if there."""
        with self._store.condition:
            before, problem = self.objects, self._problems.pop(who, None)
            self.objects = before.changed([(who[1:], None)])
            self._written.pop(who, None)
            if problem is not None or self.objects is not before:
                self._changed()

    def written(self, manifest: dict[str, Any]) -> None:
        """Take an object as the server gave it back after a write of ours: no older event undoes that."""
        self.put(manifest)
        who = _read(manifest, self.collection)[0]
        if who is not None:
            with self._store.condition:
                self._written[who] = version_of(manifest)

    def forget_writes(self) -> None:
        """Measure nothing by what we wrote any more: the server has begun anew, or gone back."""
        with self._store.condition:
            self._written.clear()

    def recovered(self) -> None:
        """Note that the view is current again."""
        with self._store.condition:
            self.lost_at = None
            if self.trouble is not None:
                self.trouble = None
                self._changed()

    def lost(self, trouble: str | None = None, since: float | None = None) -> None:
        """Note that the view may not be current any more; ``trouble`` says why, where that is worth saying.

        ``since``: when it was last known to be, if that is not now.
        """
        with self._store.condition:
            if self.lost_at is None:
                self.lost_at = self._clock() if since is None else since
            if trouble is not None and self.trouble != trouble:
                self.trouble = trouble
                self._changed()

    def _get(self, who: Identity) -> Object | None:
        return self.objects.get(*who[1:])

    def _news(self, objects: Mapping[Identity, Object]) -> Iterator[tuple[tuple[str, str], Object]]:
        """Give those that are not just like what is held: what is equal stays the very same."""
        return ((who[1:], one) for who, one in objects.items() if not _same(self._get(who), one))

    def _outdated(self, who: Identity, manifest: dict[str, Any]) -> bool:
        """Tell whether an event is of a time before we wrote the object."""
        return who in self._written and older(version_of(manifest), self._written[who])

    def _changed(self) -> None:
        self._on_change()
        self._store.touch()


class Draft:
    """Objects being read; one that cannot be read stays as it is among ``before``."""

    def __init__(self, collection: Collection, before: Objects[Object]) -> None:
        self.objects: dict[Identity, Object] = {}
        self.problems: dict[Identity, str] = {}
        self._collection, self._before = collection, before

    @property
    def nameless(self) -> bool:
        """Whether an object was among them of which nobody knows which it is."""
        return self._nobody in self.problems

    @property
    def _nobody(self) -> Identity:
        return self._collection.kind, "", ""

    def add(self, manifest: dict[str, Any]) -> None:
        """Read one more."""
        who, one, problem = _read(manifest, self._collection)
        if who is None:
            if problem is not None:
                self.problems[self._nobody] = f"in the list of {self._collection}: {problem}; what it lacks is kept"
            return
        before = self._before.get(*who[1:])
        if problem is not None:
            self.problems[who] = problem
            one = before
        if one is not None:
            self.objects[who] = before if before is not None and _same(before, one) else one


def _same(before: Object | None, one: Object) -> bool:
    """Tell whether an object says what was said before, the server's count of its changes included."""
    if isinstance(before, NodeInfo) and isinstance(one, NodeInfo):
        return before == one and (before.generation, before.uid) == (one.generation, one.uid)
    return before == one


def _read(manifest: dict[str, Any], collection: Collection) -> tuple[Identity | None, Object | None, str | None]:
    """Give an object's identity (None: not for us, or not known), what it is, or why it cannot be read."""
    who = None
    try:
        manifest = ours(whole(manifest, collection), collection)
        who = identity(manifest)
        if who is None or who[0] != collection.kind:
            return None, None, f"an object that is no {collection.kind} of {collection.api}"
        one = parse(manifest)
        return (who, lean(one), None) if one is not None else (None, None, None)
    except ConfigError as error:
        return who, None, str(error)
    except Exception as error:  # noqa: BLE001 # whatever a reader stumbles over is the fault of this one object
        # Not its words: they may quote the Secret.
        return who, None, f"{label(who) if who else 'an object'} cannot be read ({type(error).__name__})"


def ours(manifest: dict[str, Any], collection: Collection) -> dict[str, Any]:
    """Let an object of the namespace that the programs were pointed at count as one of the usual namespace."""
    pointed = collection.kind in ("KmeshNodeInfo", "Secret") and collection.namespace != NAMESPACE
    if pointed and isinstance(manifest.get("metadata"), dict):
        return {**manifest, "metadata": {**manifest["metadata"], "namespace": NAMESPACE}}
    return manifest


def lean(one: Object) -> Object:
    """Drop what the view does not need, and share what is equal among many."""
    match one:
        case PodObject():
            return replace(
                one,
                namespace=sys.intern(one.namespace),
                labels=_labels(one.labels.get(MODE_LABEL), one.labels.get(GATEWAY_LABEL)),
                node=sys.intern(one.node),
                phase=sys.intern(one.phase),
                containers=_containers(one.containers),
                annotations=_annotations(SIDECAR_ANNOTATION in one.annotations),
                created=sys.intern(one.created),
            )
        case Service():
            return replace(one, namespace=sys.intern(one.namespace))
        case KeySecret():
            return KeySecret(bare_secret(one.manifest))
    return one


def bare_secret(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give a Secret without what the server and other programs added, but for when it was written."""
    kept = {name: manifest[name] for name in ("apiVersion", "kind", "type", "data") if name in manifest}
    metadata = manifest.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    known = {name: metadata[name] for name in ("name", "namespace", "creationTimestamp") if name in metadata}
    writes = metadata.get("managedFields")
    if isinstance(writes, list):
        known["managedFields"] = [{"time": one.get("time")} for one in writes if isinstance(one, Mapping)]
    return {**kept, "metadata": known}


@lru_cache(SHARED)
def _labels(mode: str | None, gateway: str | None) -> Mapping[str, str]:
    pairs = ((MODE_LABEL, mode), (GATEWAY_LABEL, gateway))
    return {label: value for label, value in pairs if value is not None}


@lru_cache(SHARED)
def _annotations(sidecar: bool) -> Mapping[str, str]:
    return {SIDECAR_ANNOTATION: ""} if sidecar else {}  # that it is there counts, its long value for nobody


@lru_cache(SHARED)
def _containers(names: frozenset[str]) -> frozenset[str]:
    return names

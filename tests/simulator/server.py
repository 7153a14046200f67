# SPDX-License-Identifier: Apache-2.0
"""The API server: objects, versions, and all that ever happened to them, so that watches may hear of it late.

It is one etcd: writes are in one order, each with a revision. What may go wrong is here too: it is away, it has
compacted (a watch must list anew), it is restored from a backup (it goes back to an older revision).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from kmesh.cluster.kubernetes.resources import Collection
from kmesh.cluster.objects import Identity
from kmesh.errors import ApiError

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One write: when, to what, and the object before and after it (None: there is none)."""

    revision: int
    at: float
    who: Identity
    before: Manifest | None
    after: Manifest | None


class Server:
    """``clock`` gives seconds since the epoch; ``random`` makes the uids."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self.clock, self._random = clock, random
        self.objects: dict[Identity, Manifest] = {}
        self.revision = 0
        self.changes: list[Change] = []
        self.newest: dict[str, int] = {}
        """The revision of the last change of each kind of object."""
        self.compacted = 0
        self.epoch = 0
        self.away_until = 0.0
        self.refusals = 0

    def put(self, manifest: Mapping[str, Any]) -> Manifest:
        """Store an object, whole; give it as stored. Its uid is that of the one before, if there was one."""
        who = identity(manifest)
        before = self.objects.get(who)
        known = before["metadata"] if before else {"uid": str(uuid.UUID(int=self._random.getrandbits(128), version=4))}
        generation = known.get("generation", 0) + (before is None or before.get("spec") != manifest.get("spec"))
        uid = manifest["metadata"].get("uid") or known["uid"]
        told = {"uid": uid, "generation": generation, "resourceVersion": str(self.revision + 1)}
        stored = {**manifest, "metadata": {**manifest["metadata"], **told}}
        self._commit(who, stored)
        return stored

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Delete an object and what it owns; tell whether there was one."""
        who = (kind, namespace, name)
        gone = self.objects.get(who)
        if gone is None:
            return False
        self._commit(who, None)
        uid = gone["metadata"]["uid"]
        for owned in [one for one, manifest in self.objects.items() if uid in _owners(manifest)]:
            self.delete(*owned)
        return True

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Give an object as it is now."""
        return self.objects.get((kind, namespace, name))

    def of(self, kind: str) -> Iterator[Manifest]:
        """Give all objects of a kind as they are now."""
        return (manifest for (one, _, _), manifest in self.objects.items() if one == kind)

    def at(self, revision: int) -> dict[Identity, Manifest]:
        """Give all objects as they were."""
        found = dict(self.objects)
        for change in reversed(self.changes):
            if change.revision <= revision:
                break
            if change.before is None:
                found.pop(change.who, None)
            else:
                found[change.who] = change.before
        return found

    def restore(self, revision: int) -> None:
        """Go back to a backup: what was written since has never been."""
        self.objects = self.at(revision)
        self.changes = [change for change in self.changes if change.revision <= revision]
        self.revision = revision
        self.epoch += 1
        self.compacted = min(self.compacted, revision)

    def revision_at(self, when: float) -> int:
        """Give the revision that was the newest one at a time."""
        return max((change.revision for change in self.changes if change.at <= when), default=0)

    def compact(self) -> None:
        """Forget how it came to be as it is."""
        self.compacted = self.revision

    @property
    def away(self) -> bool:
        """Whether nobody is answered."""
        return self.clock() < self.away_until

    def answers(self, writing: bool = False) -> None:
        """Raise ApiError while it is away, or refuses a write."""
        if self.away:
            raise ApiError("cannot reach the API server", 0)
        if writing and self.refusals:
            self.refusals -= 1
            raise ApiError("the API server refuses", 500)

    def _commit(self, who: Identity, after: Manifest | None) -> None:
        self.revision += 1
        self.newest[who[0]] = self.revision
        self.changes.append(Change(self.revision, self.clock(), who, self.objects.get(who), after))
        if after is None:
            del self.objects[who]
        else:
            self.objects[who] = after


def identity(manifest: Mapping[str, Any]) -> Identity:
    """Give what an object is stored under."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def matches(collection: Collection, manifest: Manifest | None) -> bool:
    """Tell whether a collection holds an object."""
    if manifest is None or manifest["kind"] != collection.kind:
        return False
    metadata = manifest["metadata"]
    if collection.namespace and metadata.get("namespace", "") != collection.namespace:
        return False
    if collection.labels and collection.labels not in metadata.get("labels", {}):
        return False
    field, _, value = collection.fields.partition("=")
    return {"": True, "metadata.name": metadata["name"] == value}[field]


def _owners(manifest: Manifest) -> list[str]:
    return [owner["uid"] for owner in manifest["metadata"].get("ownerReferences", ())]

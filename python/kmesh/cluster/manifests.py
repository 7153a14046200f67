# SPDX-License-Identifier: Apache-2.0
"""The folder cluster: Kubernetes manifests, YAML or JSON, several a file, ``List`` too, watched by polling.

Polling (name, size, time, inode) rather than inotify: it also works on file systems that tell nothing (9p, NFS).
A broken file is reported with file and line and leaves its last good content in force; one that never could be read
leaves the whole cluster unknown to whoever starts now, for its objects may be in force elsewhere. A file's *objects* go
when they are taken out of it or it is deleted; a file of no bytes is one that somebody is about to write.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kmesh.cluster.documents import LARGEST, SUFFIXES, manifests
from kmesh.cluster.endpoints import of_service
from kmesh.cluster.files import read_file
from kmesh.cluster.objects import (
    NAMESPACE,
    SECRET_NAME,
    ClusterObjects,
    Identity,
    Object,
    collect,
    identity,
    label,
    parse,
)
from kmesh.cluster.source import SecretChange
from kmesh.cluster.status import LEASE_PREFIX
from kmesh.errors import ClusterError, ConcurrentChangeError
from kmesh.text import one_line
from kmesh_bpf import ConfigError

SECRET: Identity = ("Secret", NAMESPACE, SECRET_NAME)
SECRET_FILE = f"secret-{SECRET_NAME}.yaml"
NODE_INFO_PREFIX = "kmeshnodeinfo-"
STATUS_FILE_PREFIX = f"lease-{LEASE_PREFIX}"
"""These are read when somebody asks, and never watched: nodes write them all the time."""
LARGEST_LEASE = 1 << 20
"""Bytes of a node's report; etcd takes 1.5 MiB."""
LOCK_FILE = ".kmesh-lock"
LOCK_SECONDS, LOCK_INTERVAL = 10.0, 0.05
"""How long another kmeshctl may take, and how often it is asked whether it is done."""
DRAFT_PREFIX = ".kmesh-draft-"
"""Files that start with a dot are not read."""
NODE_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
"""RFC 1123 subdomain: what a Node may be called, and nothing that leads out of the folder."""

log = logging.getLogger("kmesh")

Signature = tuple[int, int, int]
"""Time of the last write in ns, size, inode: a file whose signature stays is not read again."""


class _File:
    """The objects of one file as last read well; ``known``: it was, once."""

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.known = False
        self.objects: dict[Identity, Object] = {}
        self.problems: tuple[str, ...] = ()

    def read(self, path: Path) -> None:
        """Read it anew; what cannot be read, file or object, stays as it was."""
        name = one_line(path.name)
        try:
            content = self._content(path)
            if not content:
                raise ConfigError("it is empty; delete it to delete its objects")
            documents = manifests(content, path.suffix)
        except ConfigError as error:
            last = "; its last good content stays in force" if self.objects else ""
            self.problems = (f"{name}: {error}{last}",)
            return
        found: dict[Identity, Object] = {}
        problems = []
        for manifest in documents:
            try:
                who = identity(manifest)
                if who is None:
                    continue
                if who in found:
                    problems.append(f"{name}: {label(who)} stands in it twice; the last one counts")
                elif who in self.objects:
                    found[who] = self.objects[who]  # stays, should its new version be unreadable
                one = parse(manifest)
                if one is not None:
                    found[who] = one
            except ConfigError as error:
                problems.append(f"{name}: {error}")
        self.objects, self.problems, self.known = found, tuple(problems), True

    def _content(self, path: Path) -> bytes:
        """Give the bytes, and remember the signature they belong to: none where they may be half of a write."""
        self.signature = None
        content, before, after = read_file(path, LARGEST[path.suffix], "; split it")
        if _signature(before) != _signature(after) or len(content) != after.st_size:
            raise ConfigError("it is being written")
        self.signature = _signature(after)
        return content


class FolderCluster:
    """A folder as a cluster. ``clock`` gives seconds that only go forward.

    Raises:
        ConfigError: it is no folder.

    """

    poll_interval = 0.2
    wake: int | None = None

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give the folder that holds the cluster's manifests")
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._seen: dict[str, Signature] = {}
        self._trouble: str | None = None
        self._complete = False
        self._clock = clock
        self._unseen_since: float | None = None

    def changed(self) -> bool:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._look() != (self._seen, self._trouble)

    def read(self) -> ClusterObjects:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._seen, self._trouble = self._look()
        # Ours come last: a dump of the cluster beside them must not bring back what nodes announced when it was made.
        self._files = {name: self._files.get(name, _File()) for name in sorted(self._seen, key=lambda n: (_ours(n), n))}
        merged: dict[Identity, Object] = {}
        problems = [self._trouble] if self._trouble else []
        for name, file in self._files.items():
            if file.signature != self._seen[name] and not self._trouble:
                file.read(self._folder / name)
            problems.extend(file.problems)
            for who in file.objects.keys() & merged.keys():
                problems.append(f"{one_line(name)}: {label(who)} stands in another file too; this one counts")
            merged.update(file.objects)
        self._complete = self._complete or (not self._trouble and all(file.known for file in self._files.values()))
        return replace(collect(merged.values(), problems), complete=self._complete)

    def age(self) -> float:
        """See :class:`kmesh.cluster.source.ClusterSource`; as of the last time somebody read or asked for changes."""
        since = self._unseen_since
        return 0.0 if since is None else self._clock() - since

    def publish(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._write(self._path(NODE_INFO_PREFIX, str(node_info["metadata"]["name"])), node_info, mode=0o644)

    def publish_status(self, lease: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        node = str(lease["metadata"]["name"]).removeprefix(LEASE_PREFIX)
        self._write(self._path(STATUS_FILE_PREFIX, node), lease, mode=0o644)

    def publish_conditions(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`: a folder counts no generations; the Lease says the same."""

    def statuses(self) -> tuple[Mapping[str, Any], ...]:
        """See :class:`kmesh.cluster.source.ClusterSource`; a file that cannot be read is as good as none."""
        found: list[Mapping[str, Any]] = []
        for path in sorted(self._folder.glob(f"{STATUS_FILE_PREFIX}*.yaml")):
            with suppress(ConfigError):
                found.extend(manifests(read_file(path, LARGEST_LEASE)[0], path.suffix))
        return tuple(found)

    def daemons(self) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`: whoever starts daemons on a folder knows where."""

    def endpoint_slices(self, namespace: str, service: str) -> tuple[Mapping[str, Any], ...]:
        """See :class:`kmesh.cluster.source.ClusterSource`; of files that cannot be read it is told elsewhere."""
        found: list[Mapping[str, Any]] = []
        for path in sorted(path for path in self._folder.iterdir() if path.suffix in SUFFIXES):
            with suppress(ConfigError, OSError):
                documents = manifests(read_file(path, LARGEST[path.suffix])[0], path.suffix)
                found.extend(one for one in documents if of_service(one, namespace, service))
        return tuple(found)

    def tell(self, event: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`: a folder has no place for events, the log has."""
        level = logging.WARNING if event["type"] == "Warning" else logging.INFO
        log.log(level, "event %s: %s", event["reason"], event["message"])

    def withdraw(self, node: str, *, status: bool = True) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._delete(self._path(NODE_INFO_PREFIX, node))
        if status:
            self._delete(self._path(STATUS_FILE_PREFIX, node))

    def close(self) -> None:
        """Nothing runs in the background."""

    def change_secret(self, change: SecretChange) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`.

        A lock file keeps other kmeshctl out. The Secret is never changed in a file that somebody else wrote.
        """
        with self._locked():
            objects = self.read()
            self._refuse_unclear_ground()
            wanted = change(objects.secret, objects)
            if self._look()[0].get(SECRET_FILE) != self._seen.get(SECRET_FILE):
                raise ConcurrentChangeError(f"{SECRET_FILE} was changed by somebody else at the same time; try again")
            if wanted is None:
                self._delete(self._folder / SECRET_FILE)
            else:
                self._write(self._folder / SECRET_FILE, wanted, mode=0o600)

    def _refuse_unclear_ground(self) -> None:
        """Refuse to decide on an SPI without knowing the ones in use, or to write where the Secret is not ours."""
        if self._trouble:
            raise ClusterError(self._trouble)
        for name, file in self._files.items():
            if _ours(name) and file.problems:
                raise ClusterError(f"{file.problems[0]}; repair or delete it first")
            if name == SECRET_FILE and file.objects.keys() - {SECRET}:
                raise ClusterError(f"{name} holds other objects too, which would be lost: move them")
            if name != SECRET_FILE and SECRET in file.objects:
                raise ClusterError(
                    f"{label(SECRET)} stands in {one_line(name)}, which kmeshctl did not write: move it away"
                )

    def _look(self) -> tuple[dict[str, Signature], str | None]:
        """Give the files' signatures; where the folder cannot be listed, those last seen and a sentence."""
        found = {}
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith((".", STATUS_FILE_PREFIX))]
        except OSError as error:
            if self._unseen_since is None:
                self._unseen_since = self._clock()
            return self._seen, f"{self._folder} cannot be read: {error.strerror}; its last content stays in force"
        self._unseen_since = None
        for name in names:
            if Path(name).suffix in SUFFIXES:
                try:
                    status = (self._folder / name).stat()
                except FileNotFoundError:
                    continue  # deleted between listing and asking
                except OSError:
                    found[name] = self._seen.get(name, (0, 0, 0))  # reading it will tell what is wrong
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[name] = _signature(status)
        return found, None

    def _path(self, prefix: str, node: str) -> Path:
        if not NODE_NAME.fullmatch(node):
            raise ConfigError(f"{node!r} is no node name (RFC 1123 subdomain)")
        return self._folder / f"{prefix}{node}.yaml"

    def _write(self, path: Path, manifest: Mapping[str, Any], mode: int) -> None:
        """Write a file at once: readers see the old or the new one, never half of it."""
        try:
            descriptor, draft = tempfile.mkstemp(prefix=DRAFT_PREFIX, dir=self._folder)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    yaml.safe_dump(dict(manifest), file, sort_keys=False)
                    file.flush()
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
                Path(draft).rename(path)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ClusterError(f"cannot write {path}: {error.strerror}") from error

    @staticmethod
    def _delete(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ClusterError(f"cannot delete {path}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(
                self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
            )
        except OSError as error:
            raise ClusterError(f"cannot write below {self._folder}: {error.strerror}") from error
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        until = self._clock() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if self._clock() >= until:
                    who = f"another kmeshctl has held {self._folder / LOCK_FILE} for {LOCK_SECONDS:.0f} s"
                    raise ClusterError(f"{who}; try again when it is done") from error
            except OSError as error:
                raise ClusterError(f"cannot lock {self._folder}: {error.strerror}") from error
            time.sleep(LOCK_INTERVAL)


def _ours(name: str) -> bool:
    """Tell whether daemons and kmeshctl write this file."""
    return name == SECRET_FILE or name.startswith(NODE_INFO_PREFIX)


def _signature(status: os.stat_result) -> Signature:
    return status.st_mtime_ns, status.st_size, status.st_ino

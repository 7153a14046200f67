"""The folder cluster: Kubernetes manifests, YAML or JSON, several a file, ``List`` too, watched by polling.

Polling (name, size, time, inode) rather than inotify: it also works on file systems that tell nothing (9p, NFS).
A broken file is reported with file and line and leaves its last good content in force.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kmesh.cluster.objects import (
    SECRET_NAME,
    ClusterObjects,
    Namespace,
    NodeInfo,
    NodeObject,
    PodObject,
    identity,
    parse,
)
from kmesh.cluster.source import SecretChange
from kmesh_bpf import ConfigError

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SUFFIXES = frozenset({".yaml", ".yml", ".json"})
SECRET_FILE = f"secret-{SECRET_NAME}.yaml"
LOCK_FILE = ".kmesh-lock"
NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""RFC 1123 subdomain: what a Node may be called, and nothing that leads out of the folder."""
Signature = tuple[int, int, int]


class _File:
    """The objects of one file as last read well, by (kind, namespace, name)."""

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.objects: dict[tuple[str, str, str], Any] = {}
        self.problems: tuple[str, ...] = ()

    def read(self, path: Path, signature: Signature) -> None:
        self.signature = signature
        try:
            manifests = list(_manifests(yaml.load_all(path.read_text(), LOADER)))  # a safe loader
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "it is no YAML or JSON"
            self.problems = (f"{path.name}{line}: {problem}; its last good content stays in force",)
            return
        except (OSError, UnicodeDecodeError) as error:
            self.problems = (f"{path.name}: {error}; its last good content stays in force",)
            return
        found: dict[tuple[str, str, str], Any] = {}
        problems = []
        for manifest in manifests:
            try:
                name = identity(manifest)
                if name in self.objects:
                    found[name] = self.objects[name]  # stays, should the new version be unreadable
                found[name] = manifest if name[0] == "Secret" else parse(manifest)
            except ConfigError as error:
                problems.append(f"{path.name}: {error}")
        self.objects, self.problems = found, tuple(problems)


def _manifests(documents: Any) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        if isinstance(document, Mapping) and str(document.get("kind", "")).endswith("List"):
            yield from _manifests(document.get("items") or [])
        elif isinstance(document, Mapping):
            yield document
        elif document is not None:
            raise yaml.YAMLError("a document that is no object")


class FolderCluster:
    """A folder as a cluster.

    Raises:
        ConfigError: it is no folder.

    """

    poll_interval = 0.2

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give the folder that holds the cluster's manifests")
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._seen: dict[str, Signature] = {}

    def changed(self) -> bool:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        return self._signatures() != self._seen

    def read(self) -> ClusterObjects:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._seen = self._signatures()
        self._files = {name: self._files.get(name, _File()) for name in sorted(self._seen)}
        merged: dict[tuple[str, str, str], Any] = {}
        problems: list[str] = []
        for name, file in self._files.items():
            if file.signature != self._seen[name]:
                file.read(self._folder / name, self._seen[name])
            problems.extend(file.problems)
            for key in file.objects.keys() & merged.keys():
                problems.append(f"{name}: {' '.join(filter(None, key))} stands in another file too; this one counts")
            merged.update(file.objects)
        values = list(merged.values())
        return ClusterObjects(
            namespaces=tuple(one for one in values if isinstance(one, Namespace)),
            nodes=tuple(one for one in values if isinstance(one, NodeObject)),
            pods=tuple(one for one in values if isinstance(one, PodObject)),
            node_infos=tuple(one for one in values if isinstance(one, NodeInfo)),
            secret=next((one for key, one in merged.items() if key[0] == "Secret" and key[2] == SECRET_NAME), None),
            problems=tuple(problems),
        )

    def publish(self, node_info: Mapping[str, Any]) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._write(self._node_info_path(str(node_info["metadata"]["name"])), node_info, mode=0o644)

    def withdraw(self, node: str) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`."""
        self._node_info_path(node).unlink(missing_ok=True)

    def change_secret(self, change: SecretChange) -> None:
        """See :class:`kmesh.cluster.source.ClusterSource`; a lock file keeps other kmeshctl out.

        Raises:
            ConfigError: the Secret stands in a file that somebody else wrote.

        """
        with self._locked():
            objects = self.read()
            for name, file in self._files.items():
                if name != SECRET_FILE and any(key[0] == "Secret" and key[2] == SECRET_NAME for key in file.objects):
                    raise ConfigError(f"Secret {SECRET_NAME} stands in {name}, which kmeshctl did not write: move it")
            wanted = change(objects.secret, objects)
            path = self._folder / SECRET_FILE
            if wanted is None:
                path.unlink(missing_ok=True)
            else:
                self._write(path, wanted, mode=0o600)

    def _signatures(self) -> dict[str, Signature]:
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and Path(entry.name).suffix in SUFFIXES:
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue  # replaced between listing and asking: the next look sees it
                    found[entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found

    def _node_info_path(self, node: str) -> Path:
        if not NODE_NAME.fullmatch(node):
            raise ConfigError(f"{node!r} is no node name (RFC 1123 subdomain)")
        return self._folder / f"kmeshnodeinfo-{node}.yaml"

    def _write(self, path: Path, manifest: Mapping[str, Any], mode: int) -> None:
        """Write a file at once: readers see the old or the new one, never half of it."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "w") as file:
                yaml.safe_dump(dict(manifest), file, sort_keys=False)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot write below {self._folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

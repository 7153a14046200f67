# SPDX-License-Identifier: Apache-2.0
"""Which modules are mutated, and by which tests each is judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = "kmesh_bpf.core"


@dataclass(frozen=True)
class Group:
    """Modules of one package that the same tests are about; ``tests`` are paths below tests/unit.

    ``slow``: tests of which only those mutants are the matter that survive the others.
    """

    package: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    slow: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Give the modules as they are imported."""
        return tuple(f"{self.package}.{module}" for module in self.modules)


def _all_of(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


GROUPS = (
    Group(
        CORE,
        _all_of(ROOT / "kmesh_bpf/core"),
        ("core", "test_reconcile.py", "test_upgrade.py"),
        ("test_remembering.py", "test_no_key_twice.py"),
    ),
    Group(
        "kmesh.cluster",
        ("fields", "objects", "placed", "placement", "secret", "shared", "snapshot", "status", "views"),
        tuple(
            f"cluster/test_{name}.py"
            for name in (
                "daemon_view",
                "objects",
                "odd_objects",
                "placement",
                "secret",
                "shared",
                "snapshot",
                "status",
                "views",
            )
        ),
    ),
    Group("kmesh.cluster.kubernetes", ("kubeconfig",), ("cluster/test_kubeconfig.py",)),
    Group("kmesh.kmeshctl", ("health", "traffic"), ("kmeshctl",)),
    Group(
        "kmesh.telling",
        ("conditions", "events", "lines", "metrics", "peers", "readiness", "record", "reporting", "totals"),
        ("telling",),
    ),
)


class UnknownModuleError(Exception):
    """Raised for what is asked for and is none of the modules; its text says which there are."""


def chosen(wanted: Iterable[str], groups: Iterable[Group] = GROUPS) -> list[Group]:
    """Give the groups with the modules wanted; all of them if none is.

    A module goes by its name, or by the last parts of it (``core.sas``, ``sas``) where these are of one alone.

    Raises:
        UnknownModuleError: there is none of a name, or there are several.

    """
    groups = tuple(groups)
    every = [name for group in groups for name in group.names()]
    found = {_one(text, every) for text in wanted} or set(every)
    narrowed = []
    for group in groups:
        modules = tuple(module for module in group.modules if f"{group.package}.{module}" in found)
        if modules:
            narrowed.append(replace(group, modules=modules))
    return narrowed


def _one(text: str, every: list[str]) -> str:
    name = text.removesuffix(".py").removeprefix("python/").replace("/", ".")
    found = [one for one in every if one == name or one.endswith(f".{name}")]
    if len(found) != 1:
        why = f"is one of {', '.join(found)}" if found else f"is none of {', '.join(every)}"
        raise UnknownModuleError(f"module {text}: {why}")
    return found[0]

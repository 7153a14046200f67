# SPDX-License-Identifier: Apache-2.0
"""A folder of manifests, as a person fills it and looks at it."""

import json
from pathlib import Path

import yaml


def put(folder: Path, name: str, *manifests) -> Path:
    """Write a file as a careful person does: at once."""
    text = yaml.safe_dump_all(manifests) if not name.endswith(".json") else json.dumps(manifests[0])
    draft = folder / f".{name}.draft"
    draft.write_text(text)
    return draft.rename(folder / name)


def names(objects) -> list[str]:
    return [pod.name for pod in objects.pods]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(*_):
    raise AssertionError("asked for a change that must not happen")

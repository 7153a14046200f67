# SPDX-License-Identifier: Apache-2.0
"""The text of a file -> the manifests in it: YAML or JSON, several documents, Lists taken apart. Pure.

What a text may do to its reader is bounded before anything is built of it: how deep it is nested, how much its aliases
repeat, how many digits a number has. How long it may be is up to who reads the file: :data:`LARGEST`.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NoReturn

import yaml

from kmesh_bpf import ConfigError

# In C where PyYAML was built with libyaml: 10 times faster.
LOADER: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
# To Kubernetes all of these are text, and kubectl prints =, << and 2026-31-12 without quotes.
for _tag in ("value", "merge", "timestamp"):
    LOADER.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_yaml_str)
JSON_SUFFIX = ".json"
LARGEST = MappingProxyType({".json": 32 << 20, ".yaml": 8 << 20, ".yml": 8 << 20})
"""Bytes of a file by how it is read: as YAML, a megabyte takes 60 of memory and the better part of a second."""
SUFFIXES = frozenset(LARGEST)
DEEPEST = 200
"""Mappings and lists in one another, more than any schema of a CRD has. Python's json gives up at about 1,000, and
older versions of libyaml end the process."""
MOST_REPEATED = 100_000
"""Values that aliases may stand for, all of a file together: ten lines can stand for 10^12."""
LONGEST_INT, LONGEST_FLOAT = 20, 32
"""Characters of a number: 2^64 has 20 digits. Longer ones stay text, which is of no use where a number is wanted, and
does no harm elsewhere: Python takes a second for a million digits, or refuses them; of shorter ones only a few have the
same hash."""
TOO_DEEP = f"nested too deep: more than {DEEPEST} mappings and lists in one another"
QUOTED = re.compile(r"\s*'.*'|\s*\".*\"", re.DOTALL)
"""What PyYAML's sentences quote of a text: a tag, the name of an anchor."""
NUMBER = re.compile(r"[-+0-9a-fA-FxXoObB_.:]*")
"""The characters of YAML's numbers, in every base."""
BLANKS = re.compile(r"\s*")


def _short_number(build: Any, longest: int) -> Any:
    """Give a YAML constructor that leaves a number of too many characters as text."""

    def construct(loader: Any, node: yaml.Node) -> Any:
        text = loader.construct_scalar(node)
        # What is no number, and tagged as one, is for the builder to refuse.
        return text if len(text) > longest and NUMBER.fullmatch(text) else build(loader, node)

    return construct


LOADER.add_constructor("tag:yaml.org,2002:int", _short_number(yaml.SafeLoader.construct_yaml_int, LONGEST_INT))
LOADER.add_constructor("tag:yaml.org,2002:float", _short_number(yaml.SafeLoader.construct_yaml_float, LONGEST_FLOAT))


def manifests(content: bytes, suffix: str) -> list[Mapping[str, Any]]:
    """Give the manifests in a file's content, in order; ``suffix`` says how to read it.

    Raises:
        ConfigError: it cannot be read as a whole; says the line, and quotes nothing (it could be a key).

    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _broken(content[: error.start].count(b"\n"), "not UTF-8") from None
    with _no_collection():
        documents = _json(text) if suffix == JSON_SUFFIX else _yaml(text)
    return [manifest for number, one in enumerate(documents, 1) for manifest in _take_apart(one, number)]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Do not look for cycles among what is being built, again and again: that takes three times as long as all else."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _yaml(text: str) -> list[Any]:
    try:
        _check_shape(text)
        return list(yaml.load_all(text, LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _broken(mark.line if mark else None, QUOTED.sub("", error.problem or "no YAML")) from None
    except yaml.reader.ReaderError as error:
        raise _broken(text[: error.position].count("\n"), error.reason) from None
    except (ValueError, LookupError, RecursionError, yaml.YAMLError):
        # The YAML types' own constructors: 0x_, !!int x, !!bool x. They tell no line.
        raise _broken(None, "a value is not what it looks like, or is tagged as; put it in quotes") from None


def _check_shape(text: str) -> None:
    """Look at YAML event by event, which takes a third of the time that reading it takes, and builds nothing.

    Raises:
        ConfigError: it is nested too deep, its aliases repeat too much, or one stands within what it repeats.
        yaml.YAMLError: it is no YAML.

    """
    sizes: dict[str | None, int] = {}
    inside: list[tuple[str | None, int]] = []
    values = repeated = 0
    for event in yaml.parse(text, LOADER):
        match event:  # by how many there are
            case yaml.ScalarEvent():
                values += 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            case yaml.CollectionEndEvent():
                anchor, before = inside.pop()
                if anchor is not None:
                    sizes[anchor] = values - before + 1
            case yaml.AliasEvent():
                if event.anchor in (anchor for anchor, _ in inside):
                    raise _shapeless(event, "an alias stands within what it repeats")
                repeated += sizes.get(event.anchor, 0)
                values += sizes.get(event.anchor, 0)
                if repeated > MOST_REPEATED:
                    raise _shapeless(event, f"its aliases stand for more than {MOST_REPEATED} values")
            case yaml.CollectionStartEvent():
                values += 1
                inside.append((event.anchor, values))
                if len(inside) > DEEPEST:
                    raise _shapeless(event, TOO_DEEP)


def _shapeless(event: yaml.Event, problem: str) -> ConfigError:
    return _broken(event.start_mark.line if event.start_mark else None, problem)


def _json(text: str) -> list[Any]:
    decoder = json.JSONDecoder(parse_int=_short_int, parse_float=_short_float, parse_constant=_no_constant)
    found = []
    at = _next(text, 0)
    try:
        while at < len(text):
            document, end = decoder.raw_decode(text, at)
            if _depth(document) > DEEPEST:
                raise _broken(text[:at].count("\n"), TOO_DEEP)
            found.append(document)
            at = _next(text, end)
    except json.JSONDecodeError as error:
        raise _broken(error.lineno - 1, error.msg) from None
    except RecursionError:
        raise _broken(None, TOO_DEEP) from None
    return found


def _short_int(text: str) -> int | str:
    return int(text) if len(text) <= LONGEST_INT else text


def _short_float(text: str) -> float | str:
    return float(text) if len(text) <= LONGEST_FLOAT else text


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(f"{name} is no value in JSON")


def _depth(document: Any) -> int:
    """Give how many mappings and lists stand in one another, up to one more than may."""
    level, depth = [document], 0
    while level and depth <= DEEPEST:
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list)
        ]
        depth += 1
    return depth


def _next(text: str, at: int) -> int:
    """Give the start of the next document: json's decoder wants no blanks before it."""
    blanks = BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _broken(line: int | None, problem: str) -> ConfigError:
    """``line`` counts from 0."""
    return ConfigError(problem if line is None else f"line {line + 1}: {problem}")


def _take_apart(document: Any, number: int) -> Iterator[Mapping[str, Any]]:
    if document is None:
        return
    if not isinstance(document, Mapping):
        raise ConfigError(f"document {number} is no object")
    kind = document.get("kind")
    if not (isinstance(kind, str) and kind.endswith("List") and "items" in document):
        yield document
        return
    items = document["items"] or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ConfigError(f"document {number}: items of {kind} are no list of objects")
    # A typed list (PodList), as the API itself answers, leaves out what its name says.
    implied = {"apiVersion": document.get("apiVersion"), "kind": kind.removesuffix("List")} if kind != "List" else {}
    for item in items:
        if item.get("kind") == "List":
            raise ConfigError(f"document {number}: a List in a List")
        yield item if "kind" in item else {**implied, **item}

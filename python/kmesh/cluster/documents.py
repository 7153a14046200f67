"""The text of a file -> the manifests in it: YAML or JSON, several documents, Lists taken apart. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kmesh_bpf import ConfigError

# In C where PyYAML was built with libyaml: 10 times faster.
LOADER: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
# To Kubernetes all of these are text, and kubectl prints =, << and 2026-31-12 without quotes.
for _tag in ("value", "merge", "timestamp"):
    LOADER.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_yaml_str)
JSON_SUFFIX = ".json"
SUFFIXES = frozenset({".yaml", ".yml", JSON_SUFFIX})


def manifests(content: bytes, suffix: str) -> list[Mapping[str, Any]]:
    """Give the manifests in a file's content, in order; ``suffix`` says how to read it.

    Raises:
        ConfigError: it cannot be read as a whole; says the line, and quotes nothing (it could be a key).

    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _broken(content[: error.start].count(b"\n"), "not UTF-8") from None
    documents = _json(text) if suffix == JSON_SUFFIX else _yaml(text)
    return [manifest for number, one in enumerate(documents, 1) for manifest in _take_apart(one, number)]


def _yaml(text: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _broken(mark.line if mark else None, error.problem or "no YAML") from None
    except yaml.reader.ReaderError as error:
        raise _broken(text[: error.position].count("\n"), error.reason) from None
    except (ValueError, LookupError, RecursionError, yaml.YAMLError):
        # The YAML types' own constructors: 0x_, !!int x, !!bool x. They tell no line.
        raise _broken(None, "a value is not what it looks like, or is tagged as; put it in quotes") from None


def _json(text: str) -> list[Any]:
    decoder = json.JSONDecoder()
    found = []
    at = _next(text, 0)
    try:
        while at < len(text):
            document, end = decoder.raw_decode(text, at)
            found.append(document)
            at = _next(text, end)
    except json.JSONDecodeError as error:
        raise _broken(error.lineno - 1, error.msg) from None
    except RecursionError:
        raise _broken(None, "nested too deep") from None
    return found


def _next(text: str, at: int) -> int:
    """Give the start of the next document: json's decoder wants no blanks before it."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


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

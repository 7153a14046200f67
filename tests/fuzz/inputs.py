# SPDX-License-Identifier: Apache-2.0
"""Inputs for a target: its seeds with a few things changed, as bytes; and the corpus of those that once were finds."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.targets import SEPARATOR, Target

CORPUS = Path(__file__).with_name("corpus")
DIGITS = "\ue000digits\ue000"
"""Stands for a number of thousands of digits, which Python cannot write either."""
TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
ODD_TEXTS = st.sampled_from(
    (
        *("", "\ud800", "a\nb", "\x00", "\x1b[2J", "x" * 5000, "9" * 5000, DIGITS, "\u0664", "0x_", "=", "<<", "true"),
        *("v1", "n1", "n2", "kmesh-system", "Pod", "List", "Lease", "10.244.1.10", "10.0.0.0/8", "::/0", "fe80::1%e"),
        "2026-11-24T00:00:00Z",
    )
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | ODD_TEXTS
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | ODD_TEXTS, inner, max_size=3),
    max_leaves=6,
)
DEEP = st.integers(1, 1500).map(lambda depth: "[" * depth + "]" * depth)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def corpus(name: str) -> list[Path]:
    """Give the files of a target, each a find of former times."""
    return sorted((CORPUS / name).glob("*"))


@cache
def _parsed(seed: bytes) -> list[Any]:
    return list(yaml.safe_load_all(seed))


@st.composite
def _changed_document(draw: st.DrawFn, seed: bytes) -> bytes:
    """Change a document in a few places, and write it as JSON, which is YAML too."""
    documents = copy.deepcopy(_parsed(seed))
    for _ in range(draw(st.integers(1, 3))):
        holders = [holder for document in documents for holder in _holders(document)]
        if not holders:
            break
        holder = draw(st.sampled_from(holders))
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not places:
            continue
        place = draw(st.sampled_from(places))
        match draw(st.integers(0, 4)):
            case 0:
                del holder[place]
            case 1:
                holder[place] = [holder[place]] * draw(st.integers(0, 3))
            case 2 if isinstance(holder[place], str):
                holder[place] = _within(draw, holder[place])
            case _:
                holder[place] = draw(JUNK)
    text = "\n".join(json.dumps(one, skipkeys=True) for one in documents)
    if len(documents) > 1:
        text = "\n---\n".join(json.dumps(one, skipkeys=True) for one in documents)
    return text.replace(json.dumps(DIGITS), "9" * 5000).encode()


def _within(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(TEXT | ODD_TEXTS) + text[at + draw(st.integers(0, 3)) :]


def _holders(document: Any) -> list[dict[Any, Any] | list[Any]]:
    found = [document] if isinstance(document, dict | list) else []
    for one in list(found):
        for part in one.values() if isinstance(one, dict) else one:
            found.extend(_holders(part))
    return found


@st.composite
def _changed_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                del data[at : at + draw(st.integers(1, 64))]
            case 1:
                data[at:at] = draw(st.binary(min_size=1, max_size=16) | st.just(SEPARATOR.encode()))
            case 2:
                data[at : at + 2] = draw(st.sampled_from([b"\xff\xff", b"\0\0", b"\x03\0", b"\x04\0", b"\xff\x7f"]))
            case _:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Give a strategy of inputs."""
    seeds = st.sampled_from(target.seeds)
    ways = [seeds.flatmap(_changed_bytes), st.binary(max_size=64)]
    if target.structured:
        ways += [seeds.flatmap(_changed_document)] * 3
        ways += [
            JUNK.map(lambda value: json.dumps(value, skipkeys=True).encode()),
            DEEP.map(str.encode),
            st.just(BOMB.encode()),
        ]
    return st.one_of(ways)

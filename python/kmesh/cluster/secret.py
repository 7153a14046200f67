# SPDX-License-Identifier: Apache-2.0
"""The Secret that holds the keys: its format, shared with Go nodes, and the rules of its replacement. Pure.

``data.ipSec`` is ``{"spi":1,"aeadKeyName":"rfc4106(gcm(aes))","aeadKey":"<base64 of 36 bytes>","length":128}``; we add
``data.ipSecPrevious``, a list of the same for older versions, so that a restart in mid-rotation can derive them, and
``data.ipSecUsed``, a list of the SHA-256 (hexadecimal) of keys that were in force, newest first: what nodes derive does
not depend on the SPI, so a key that comes back would have its sequences start anew. No error names key material.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any

from kmesh.cluster.objects import LARGEST_SPI, NAMESPACE, SECRET_NAME
from kmesh_bpf import ConfigError, Key

ALGORITHM = "rfc4106(gcm(aes))"
ICV_BITS = 128
CURRENT, PREVIOUS, USED = "ipSec", "ipSecPrevious", "ipSecUsed"
KEPT = 4
"""Older versions kept in the Secret: a node that missed so many replacements is not coming back."""
MOST_PREVIOUS = 64
"""Older versions that are taken from a Secret that somebody else wrote: each means SAs for every peer."""
LONGEST_HISTORY = 1000
"""Keys that were in force of which the Secret keeps the digest; with 64 digits each they take a tenth of its room."""
WIDEST_GAP = 1000
"""How far above the others an announced SPI may be and count: nobody replaces a key so often while a node is away."""
KEY_DIGITS = 72
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Keyring:
    """The key in force and older ones, by version (SPI).

    ``used``: digests of keys that were in force, newest first; they are no part of what is.
    """

    current: int
    keys: Mapping[int, Key] = field(hash=False)
    used: tuple[str, ...] = field(default=(), compare=False)


def parse_key_text(text: str) -> Key:
    """Read a key as the guide writes it: 72 hexadecimal digits, 32 bytes of key and 4 of salt.

    Raises:
        ConfigError: one sentence that tells which rule it breaks.

    """
    text = text.strip()
    if not text:
        raise ConfigError(f"the key is empty; give {KEY_DIGITS} hexadecimal digits")
    if any(digit not in "0123456789abcdefABCDEF" for digit in text):
        raise ConfigError("the key is not hexadecimal: it may hold 0-9, a-f, A-F and nothing else")
    if len(text) % 2:
        raise ConfigError(f"the key has an odd number of digits ({len(text)}); give {KEY_DIGITS}")
    if len(text) != KEY_DIGITS:
        raise ConfigError(f"the key has {len(text)} digits, not {KEY_DIGITS} (32 bytes of key and 4 of salt)")
    return Key(bytes.fromhex(text))


def parse_keys(secret: Mapping[str, Any]) -> Keyring:
    """Read the keys of a Secret object.

    Raises:
        ConfigError: bad base64 or JSON, another algorithm, a wrong length, an SPI that is no number above 0, or an
            older key that is not older.

    """
    version, key = _entry(_json(secret, CURRENT), CURRENT)
    keys = {version: key}
    if _has(secret, PREVIOUS):
        older = _json(secret, PREVIOUS)
        if not isinstance(older, list):
            raise _unusable(PREVIOUS, "it is no list")
        if len(older) > MOST_PREVIOUS:
            raise _unusable(PREVIOUS, f"it holds {len(older)} keys, more than {MOST_PREVIOUS}")
        for item in older:
            number, old = _entry(item, PREVIOUS)
            if number >= version or number in keys:
                raise _unusable(PREVIOUS, f"SPI {number} does not belong there, the current one being {version}")
            keys[number] = old
    return Keyring(version, keys, history(secret))


def holds_key(secret: Mapping[str, Any] | None) -> bool:
    """Tell whether a Secret object is there to be read: one whose key was deleted has nothing but a history."""
    return secret is not None and (bool(_has(secret, CURRENT)) or not _has(secret, USED))


def history(secret: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Give the digests of the keys that were in force, newest first; what cannot be read of them is left out."""
    found: Any = None
    with suppress(ConfigError):
        found = _json(secret or {}, USED)
    entries = found if isinstance(found, list) else []
    return tuple(one for one in entries if isinstance(one, str) and DIGEST.fullmatch(one))[:LONGEST_HISTORY]


def digest(key: Key) -> str:
    """Give what the history tells a key by."""
    return hashlib.sha256(key.reveal()).hexdigest()


def accept(held: Keyring | None, new: Keyring) -> Keyring:
    """Give the new keys if they may follow those held, but for older ones that are the key of a version before theirs.

    Such a one was refused when it was the current one, so nobody has it; whoever took it now would use a key twice.

    Raises:
        ConfigError: the SPI goes backwards, an SPI known already has another key now, or the key is none that may be
            used: see :func:`check_new`.

    """
    known = {**(held.keys if held else {}), **new.keys}
    former = Keyring(0, {version: key for version, key in known.items() if version != new.current}, new.used)
    if held is None or new.current not in held.keys:
        check_new(new.keys[new.current], former, held.used if held else ())
    if held is None:
        return _distinct(new, new.keys)
    if new.current < held.current:
        raise ConfigError(f"its SPI {new.current} goes backwards: {held.current} is in force")
    for version in sorted(held.keys.keys() & new.keys.keys(), reverse=True):
        if new.keys[version] != held.keys[version]:
            raise ConfigError(f"it holds another key under the known SPI {version}; a new key needs a new SPI")
    return _distinct(new, known)


def _distinct(new: Keyring, known: Mapping[int, Key]) -> Keyring:
    """Leave out of the new keys those that a version before has; ``known``: all keys known, these among them."""
    first = _firsts(known)
    kept = {version: key for version, key in new.keys.items() if version == new.current or version in first}
    return replace(new, keys=kept)


def _firsts(keys: Mapping[int, Key]) -> dict[int, Key]:
    """Give each key under the first version that has it."""
    first: dict[Key, int] = {}
    for version in sorted(keys):
        first.setdefault(keys[version], version)
    return {version: key for key, version in first.items()}


def check_new(key: Key, held: Keyring | None, used: tuple[str, ...] = ()) -> None:
    """Refuse a key that must not be put in force.

    ``held`` are the keys known, with their history; ``used`` is a history besides.

    Raises:
        ConfigError: one sentence: all its bytes are equal, or it is or was in force.

    """
    if len(set(key.reveal())) == 1:
        raise ConfigError("the key is one byte repeated; make one: kmeshctl secret create")
    for version, other in held.keys.items() if held else ():
        if other == key:
            raise ConfigError(f"the key is the one of SPI {version}; a key must be used once only, make another one")
    if digest(key) in {*(held.used if held else ()), *used}:
        raise ConfigError("the key was in force before; a key must be used once only, make another one")


def uncounted(held: Keyring | None, announced: Mapping[str, int]) -> dict[str, int]:
    """Give the announcements, by node, that do not count when the next SPI is chosen: those far above all others.

    Going up from what is held, without a key from the median of what is announced, nothing counts that is behind a gap
    of more than ``WIDEST_GAP``: the next SPI is everybody's, and one node's word must not use them all up. 0 is a node
    without a key.
    """
    versions = sorted(version for version in announced.values() if version)
    highest = held.current if held else median_low(versions) if versions else 0
    for version in versions:
        if highest < version <= highest + WIDEST_GAP:
            highest = version
    return {name: version for name, version in sorted(announced.items()) if version > highest}


def next_keys(held: Keyring | None, announced: Mapping[str, int], key: Key, used: tuple[str, ...] = ()) -> Keyring:
    """Give the keys after a replacement: the SPI is 1 at first, and above every announced version that counts.

    ``announced``: by node; see :func:`uncounted`. ``used``: the history of a Secret that holds no key.

    Raises:
        ConfigError: the key must not be used (:func:`check_new`), or there is no higher SPI any more.

    """
    check_new(key, held, used)
    left_out = uncounted(held, announced)
    counted = {name: version for name, version in announced.items() if name not in left_out}
    version = max((held.current if held else 0, *counted.values())) + 1
    if version > LARGEST_SPI:
        who = ", ".join(sorted(name for name, spi in counted.items() if spi == LARGEST_SPI)) or "the Secret"
        raise ConfigError(f"SPI {LARGEST_SPI} is in use ({who}), and there is none above it")
    # One that is the key of a version before was refused by everybody. Once that version is not in the Secret any more,
    # a daemon that starts could not know, so it is left out here.
    older = dict(sorted(_firsts(held.keys).items(), reverse=True)[:KEPT]) if held else {}
    return Keyring(version, {version: key, **older}, after(held, used))


def after(held: Keyring | None, used: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Give the history once what is held is in force no more."""
    recent = [digest(held.keys[version]) for version in sorted(held.keys, reverse=True)] if held else []
    return tuple(dict.fromkeys((*recent, *(held.used if held else ()), *used)))[:LONGEST_HISTORY]


def render(keyring: Keyring) -> dict[str, Any]:
    """Give the Secret object."""
    older = [_plain(version, key) for version, key in keyring.keys.items() if version != keyring.current]
    data = {CURRENT: _encode(_plain(keyring.current, keyring.keys[keyring.current]))}
    if older:
        data[PREVIOUS] = _encode(sorted(older, key=lambda entry: -entry["spi"]))
    return _object(data | ({USED: _encode(keyring.used)} if keyring.used else {}))


def render_deleted(used: tuple[str, ...]) -> dict[str, Any] | None:
    """Give the Secret object once the key is deleted: its history, None: it has none."""
    return _object({USED: _encode(used)}) if used else None


def _object(data: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET_NAME, "namespace": NAMESPACE},
        "type": "Opaque",
        "data": data,
    }


def _plain(version: int, key: Key) -> dict[str, Any]:
    material = base64.b64encode(key.reveal()).decode()
    return {"spi": version, "aeadKeyName": ALGORITHM, "aeadKey": material, "length": ICV_BITS}


def _encode(value: Any) -> str:
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def _part(secret: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = secret.get(name)
    return part if isinstance(part, Mapping) else {}


def _has(secret: Mapping[str, Any], name: str) -> bool:
    return any(name in _part(secret, part) for part in ("data", "stringData"))


def _json(secret: Mapping[str, Any], name: str) -> Any:
    plain, coded = _part(secret, "stringData").get(name), _part(secret, "data").get(name)
    if plain is None and coded is None:
        raise ConfigError(f"Secret {SECRET_NAME} has no data key {name}")
    try:
        text = plain if plain is not None else base64.b64decode(coded or "", validate=True)
    except (ValueError, TypeError):
        raise _unusable(name, "it is not base64") from None
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        # The cause's text could quote what it could not read: the key.
        raise _unusable(name, "it is not JSON") from None


def _entry(value: Any, where: str) -> tuple[int, Key]:
    if not isinstance(value, Mapping):
        raise _unusable(where, "it is no JSON object")
    spi = value.get("spi")
    if not isinstance(spi, int) or isinstance(spi, bool) or not 1 <= spi <= LARGEST_SPI:
        raise _unusable(where, f"spi is no number from 1 to {LARGEST_SPI}")
    if value.get("aeadKeyName") != ALGORITHM:
        raise _unusable(where, f"aeadKeyName is not {ALGORITHM}, the only algorithm supported")
    if value.get("length") != ICV_BITS:
        raise _unusable(where, f"length is not {ICV_BITS} (bits of the integrity check value)")
    try:
        material = base64.b64decode(value.get("aeadKey") or "", validate=True)
    except (ValueError, TypeError):
        raise _unusable(where, "aeadKey is not base64") from None
    try:
        return spi, Key(material)
    except ConfigError as error:
        raise _unusable(where, f"aeadKey: {error}") from error


def _unusable(where: str, why: str) -> ConfigError:
    return ConfigError(f"Secret {SECRET_NAME}: {where}: {why}")

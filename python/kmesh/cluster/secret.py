"""The Secret that holds the keys: its format, shared with Go nodes, and the rules of its replacement. Pure.

``data.ipSec`` is ``{"spi":1,"aeadKeyName":"rfc4106(gcm(aes))","aeadKey":"<base64 of 36 bytes>","length":128}``; we add
``data.ipSecPrevious``, a list of the same for older versions, so that a restart in mid-rotation can derive them.
No error names key material.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmesh.cluster.objects import LARGEST_SPI, NAMESPACE, SECRET_NAME
from kmesh_bpf import ConfigError, Key

ALGORITHM = "rfc4106(gcm(aes))"
ICV_BITS = 128
CURRENT, PREVIOUS = "ipSec", "ipSecPrevious"
KEPT = 4
"""Older versions kept in the Secret: a node that missed so many replacements is not coming back."""
KEY_DIGITS = 72


@dataclass(frozen=True, slots=True)
class Keyring:
    """The key in force and older ones, by version (SPI)."""

    current: int
    keys: Mapping[int, Key] = field(hash=False)


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
    if any(PREVIOUS in _part(secret, part) for part in ("data", "stringData")):
        older = _json(secret, PREVIOUS)
        if not isinstance(older, list):
            raise _unusable(PREVIOUS, "it is no list")
        for item in older:
            number, old = _entry(item, PREVIOUS)
            if number >= version or number in keys:
                raise _unusable(PREVIOUS, f"SPI {number} does not belong there, the current one being {version}")
            keys[number] = old
    return Keyring(version, keys)


def accept(held: Keyring | None, new: Keyring) -> Keyring:
    """Give the new keys if they may follow those held.

    Raises:
        ConfigError: the SPI goes backwards, or an SPI known already has another key now.

    """
    if held is None:
        return new
    if new.current < held.current:
        raise ConfigError(f"its SPI {new.current} goes backwards: {held.current} is in force")
    for version in sorted(held.keys.keys() & new.keys.keys(), reverse=True):
        if new.keys[version] != held.keys[version]:
            raise ConfigError(f"it holds another key under the known SPI {version}; a new key needs a new SPI")
    return new


def next_keys(held: Keyring | None, announced: Iterable[int], key: Key) -> Keyring:
    """Give the keys after a replacement: the SPI is 1 at first, and above every version ever announced.

    Raises:
        ConfigError: there is no higher SPI any more.

    """
    version = max((held.current if held else 0, *announced)) + 1
    if version > LARGEST_SPI:
        raise ConfigError(f"SPI {LARGEST_SPI} is in use, and there is none above it")
    older = dict(sorted(held.keys.items(), reverse=True)[:KEPT]) if held else {}
    return Keyring(version, {version: key, **older})


def render(keyring: Keyring) -> dict[str, Any]:
    """Give the Secret object."""
    older = [_plain(version, key) for version, key in keyring.keys.items() if version != keyring.current]
    data = {CURRENT: _encode(_plain(keyring.current, keyring.keys[keyring.current]))}
    if older:
        data[PREVIOUS] = _encode(sorted(older, key=lambda entry: -entry["spi"]))
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

"""The Secret that holds the keys: its format, shared with Go nodes, and the rules of its replacement. Pure.

``data.ipSec`` is ``{"spi":1,"aeadKeyName":"rfc4106(gcm(aes))","aeadKey":"<base64 of 36 bytes>","length":128}``; we add
``data.ipSecPrevious``, a list of the same for older versions, so that a restart in mid-rotation can derive them.
No error names key material.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmesh.cluster.objects import NAMESPACE, SECRET_NAME
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
        ConfigError: bad base64 or JSON, another algorithm, a wrong length, an SPI that is no number above 0.

    """
    version, key = _entry(_json(secret, CURRENT), CURRENT)
    keys = {version: key}
    if PREVIOUS in (secret.get("data") or {}) or PREVIOUS in (secret.get("stringData") or {}):
        older = _json(secret, PREVIOUS)
        if not isinstance(older, list):
            raise ConfigError(f"Secret {SECRET_NAME}: {PREVIOUS} is no list")
        for item in older:
            number, old = _entry(item, PREVIOUS)
            keys.setdefault(number, old)
    return Keyring(version, keys)


def accept(held: Keyring | None, new: Keyring) -> Keyring:
    """Give the new keys if they may follow those held.

    Raises:
        ConfigError: the SPI goes backwards, or is the same with another key.

    """
    if held is None:
        return new
    if new.current < held.current:
        raise ConfigError(f"its SPI {new.current} goes backwards: {held.current} is in force")
    if new.current == held.current and new.keys[new.current] != held.keys[held.current]:
        raise ConfigError(f"it holds another key under the SPI {new.current} in force; a new key needs a new SPI")
    return new


def next_keys(held: Keyring | None, announced: Iterable[int], key: Key) -> Keyring:
    """Give the keys after a replacement: the SPI is 1 at first, and above every version ever announced."""
    above = max((held.current if held else 0, *announced), default=0)
    older = dict(sorted(held.keys.items(), reverse=True)[:KEPT]) if held else {}
    return Keyring(above + 1, {above + 1: key, **older})


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


def _json(secret: Mapping[str, Any], name: str) -> Any:
    plain = (secret.get("stringData") or {}).get(name)
    coded = (secret.get("data") or {}).get(name)
    if plain is None and coded is None:
        raise ConfigError(f"Secret {SECRET_NAME} has no data key {name}")
    try:
        return json.loads(plain if plain is not None else base64.b64decode(str(coded), validate=True))
    except (binascii.Error, ValueError, TypeError):
        # The cause's text would quote what it could not read: the key.
        raise ConfigError(f"Secret {SECRET_NAME}: {name} is not JSON in base64") from None


def _entry(value: Any, where: str) -> tuple[int, Key]:
    start = f"Secret {SECRET_NAME}: {where}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{start} is no JSON object")
    spi = value.get("spi")
    if not isinstance(spi, int) or isinstance(spi, bool) or not 0 < spi < 1 << 32:
        raise ConfigError(f"{start}: spi is no number above 0")
    if value.get("aeadKeyName") != ALGORITHM or value.get("length") != ICV_BITS:
        raise ConfigError(f"{start}: only {ALGORITHM} with an ICV of {ICV_BITS} bits is supported")
    try:
        material = base64.b64decode(str(value.get("aeadKey")), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{start}: aeadKey is not base64") from None
    return spi, Key(material)

# SPDX-License-Identifier: Apache-2.0
"""Keys taken out of whatever is about to be given away, in every form that they are known to take. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

HIDDEN = b"(hidden)"
SHORTEST = 16
"""Bytes of what is looked for: shorter ones (a salt) are found everywhere by chance."""
KEY_BYTES = 32
"""Of what a key has of key; the salt stands behind it."""
LIKE_KEYS = (
    re.compile(rb"(?:0x)?(?<![0-9a-fA-F])[0-9a-fA-F]{66,}"),  # longer than any digest that is shown of images and files
    re.compile(rb"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # a JSON Web Token, RFC 7519
    re.compile(rb"(?<=Bearer )\S+"),
    re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)
"""What is hidden although nobody knows whose it is."""


def forms(material: bytes) -> Iterator[bytes]:
    """Give what a key looks like: itself, hexadecimal, base64, and base64 of what holds it, once and twice over."""
    yield material
    for text in (material.hex(), material.hex(" "), material.hex(":"), material.hex(" ", 2), material.hex(" ", -4)):
        yield text.encode()
        yield text.upper().encode()
    for altchars in (b"+/", b"-_"):
        for once in _coded(material, altchars):
            yield once
            yield from _coded(once, altchars)
    yield from _coded(material.hex().encode(), b"+/")


def _coded(held: bytes, altchars: bytes) -> Iterator[bytes]:
    """Give the base64 of a text that holds this one: what is the same whatever stands around it.

    Of the text's bits some share their first and last digits with its neighbours', by where in the text it begins.
    """
    for before in range(3):
        digits = base64.b64encode(bytes(before) + held, altchars).rstrip(b"=")
        first = (before * 8 + 5) // 6
        last = (before + len(held)) * 8 // 6
        yield digits[first:last]


class Scrubber:
    """Takes the keys that are known, and what looks like one, out of texts."""

    def __init__(self, materials: Iterable[bytes]) -> None:
        whole = {one for one in materials if len(one) >= SHORTEST}
        found = {form for one in whole | {one[:KEY_BYTES] for one in whole} for form in forms(one)}
        # The longest first: what holds another one goes whole.
        ordered = sorted(found, key=lambda one: (-len(one), one))
        self._known = re.compile(b"|".join(map(re.escape, ordered)), re.DOTALL) if ordered else None

    def __call__(self, content: bytes) -> bytes:
        """Give the text without them."""
        if self._known is not None:
            content = self._known.sub(HIDDEN, content)
        for like in LIKE_KEYS:
            content = like.sub(HIDDEN, content)
        return content

# SPDX-License-Identifier: Apache-2.0
"""The keys that a daemon knows: what the Secret holds, and what an SA still uses."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kmesh.cluster.secret import LONGEST_HISTORY, Keyring, accept, digest, holds_key, parse_keys
from kmesh_bpf import ConfigError, Key

log = logging.getLogger("kmesh")


class Keys:
    """One daemon's.

    ``keyring``: what the Secret held when it was last accepted, None: never. ``known``: its keys, and those of before
    that an SA still uses. ``used``: digests of keys that were in force before. ``refused``: why what the Secret holds
    now is not accepted, empty: it is.
    """

    def __init__(self) -> None:
        self.keyring: Keyring | None = None
        self.known: dict[int, Key] = {}
        self.used: tuple[str, ...] = ()
        self.refused = ""
        self._secret: Mapping[str, Any] | None = None

    @property
    def current(self) -> int:
        """The version in force, 0 without a key."""
        return self.keyring.current if self.keyring else 0

    def take(self, secret: Mapping[str, Any] | None) -> None:
        """Take in what the Secret holds; a source gives the same object until it holds something else."""
        if secret is self._secret:
            return
        self._secret = secret
        if secret is None or not holds_key(secret):
            return
        held = Keyring(self.keyring.current, self.known, self.used) if self.keyring else None
        try:
            keyring = accept(held, parse_keys(secret))
        except ConfigError as error:
            self.refused = str(error)
            return
        if keyring != self.keyring:
            log.info("key with SPI %d taken from the Secret", keyring.current)
        self.keyring, self.refused = keyring, ""
        self.known.update(keyring.keys)
        self._note_used(keyring.used)

    @property
    def beyond(self) -> frozenset[int]:
        """The versions known that the Secret does not hold any more."""
        return frozenset(self.known.keys() - self.keyring.keys.keys()) if self.keyring else frozenset()

    def forget(self, in_use: Collection[int]) -> None:
        """Forget the keys beyond the Secret of which no SA is ``in_use``, but for their digests."""
        gone = [self.known.pop(spi) for spi in sorted(self.beyond.difference(in_use), reverse=True)]
        self._note_used(map(digest, gone))

    def _note_used(self, digests: Iterable[str]) -> None:
        self.used = tuple(dict.fromkeys((*digests, *self.used)))[:LONGEST_HISTORY]

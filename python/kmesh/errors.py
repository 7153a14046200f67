# SPDX-License-Identifier: Apache-2.0
"""Errors of the programs, on top of the library's: ``except KmeshBpfError`` catches these too.

::

    KmeshBpfError
    ├── ConfigError                   (the library's) a value from outside cannot be used
    ├── ServerError                   a port or address cannot be listened on
    ├── OutputError                   standard output cannot be written (``errno``)
    └── ClusterError                  the cluster cannot do, or is not fit for, what was asked
        ├── ApiError                  the API server cannot be reached or refuses (``status``, an HTTP one or 0)
        └── ConcurrentChangeError     somebody else changed the same object in between; nothing was written
"""

from __future__ import annotations

import errno as errno_names
import os

from kmesh_bpf import KmeshBpfError

PASSING = frozenset({401, 403, 404, 408, 409, 425, 429})
"""HTTP statuses below 500 that may pass: credentials are renewed, roles given, namespaces made; another writer or too
many of them are a matter of time."""


class ServerError(KmeshBpfError):
    """Nobody can listen at an address: names it and the way out."""


class OutputError(KmeshBpfError):
    """Standard output cannot be written; ``done`` is a sentence on what was done all the same."""

    def __init__(self, errno: int, done: str = "") -> None:
        text = f"standard output cannot be written: {os.strerror(errno)}"
        super().__init__(f"{done}; {text}" if done else text)
        self.errno = errno
        self.done = done

    @property
    def told(self) -> bool:
        """Whether it is worth a word: that a reader has seen enough is not, unless something was done."""
        return bool(self.done) or self.errno != errno_names.EPIPE


class ClusterError(KmeshBpfError):
    """What was asked of the cluster cannot be done as things are: names the thing and the way out."""


class ApiError(ClusterError):
    """The API server refuses a request, or there is no answer; ``status`` is the answer's, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def final(self) -> bool:
        """Whether the very same request will be refused for ever: it is at fault itself, not who sends it, or when."""
        return 400 <= self.status < 500 and self.status not in PASSING


class ConcurrentChangeError(ClusterError):
    """Somebody else changed the object in between; nothing was written, and trying again is safe."""

"""Errors of the programs, on top of the library's: ``except KmeshBpfError`` catches these too.

::

    KmeshBpfError
    ├── ConfigError                   (the library's) a value from outside cannot be used
    └── ClusterError                  the cluster cannot do, or is not fit for, what was asked
        └── ConcurrentChangeError     somebody else changed the same object in between; nothing was written
"""

from __future__ import annotations

from kmesh_bpf import KmeshBpfError


class ClusterError(KmeshBpfError):
    """What was asked of the cluster cannot be done as things are: names the thing and the way out."""


class ConcurrentChangeError(ClusterError):
    """Somebody else changed the object in between; nothing was written, and trying again is safe."""

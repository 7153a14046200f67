# SPDX-License-Identifier: Apache-2.0
"""All errors of the library.

::

    KmeshBpfError
    ├── ConfigError          a value from outside cannot be used: names the value and the way out
    ├── EncodeError          something of ours cannot be put into a kernel message
    ├── DecodeError          the kernel sent what we cannot read
    ├── UnsupportedError     this kernel or machine lacks a feature (``feature``, ``remedy``)
    ├── LoadError            BCC could not compile, load or pin (``log`` holds the whole verifier log)
    ├── LayoutError          a pinned map is not of this version's layout
    └── KernelError          the kernel refused an operation (``operation``, ``target``, ``errno``)
        ├── ConflictError    an object that is not ours, or not what we wrote, stands in the way
        └── MapFullError     a BPF map has no room left (``map_name``, ``capacity``)

A key never appears in any of them.
"""

from __future__ import annotations

import errno as errno_names
import os


class KmeshBpfError(Exception):
    """Root of the tree: ``except KmeshBpfError`` catches whatever this library raises on purpose."""


class ConfigError(KmeshBpfError):
    """A value from outside (flag, key, address, CIDR, manifest) cannot be used."""


class EncodeError(KmeshBpfError):
    """An object of ours cannot be encoded for the kernel; nothing was sent."""


class DecodeError(KmeshBpfError):
    """A message or map entry of the kernel could not be read as a whole; it must not be acted upon."""


class UnsupportedError(KmeshBpfError):
    """The kernel or the machine lacks something."""

    def __init__(self, feature: str, remedy: str) -> None:
        super().__init__(f"{feature} is not available: {remedy}")
        self.feature = feature
        self.remedy = remedy


class LoadError(KmeshBpfError):
    """BCC could not compile, load or pin the programs."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class LayoutError(KmeshBpfError):
    """A pinned map has another layout than this version's contract header."""


class KernelError(KmeshBpfError):
    """The kernel refused an operation."""

    def __init__(self, operation: str, target: str, errno: int, detail: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        text = f"{operation} {target}: {os.strerror(errno)} ({name})"
        super().__init__(f"{text}: {detail}" if detail else text)
        self.operation = operation
        self.target = target
        self.errno = errno
        self.detail = detail


class ConflictError(KernelError):
    """Something that is not ours, or that differs from what we wrote, stands where an object of ours belongs."""


class MapFullError(KernelError):
    """A BPF map has no room for another entry."""

    def __init__(self, operation: str, target: str, map_name: str, capacity: int) -> None:
        super().__init__(operation, target, errno_names.E2BIG, f"map {map_name} is full ({capacity} entries)")
        self.map_name = map_name
        self.capacity = capacity

# SPDX-License-Identifier: Apache-2.0
"""Command lines of Go Kmesh's kmesh-daemon: what of them is taken here, so that they start this daemon too.

The flags are those of its main of August 2026 (daemon/options) and those that it has dropped since cobra reads them.
It takes flags that it does not know without a word; here those are refused: a slip of the pen in ``--enable-ipsec``
must not start a daemon that does not encrypt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ignored:
    """A flag without meaning here. ``about``: what it is about there; ``metavar``: BOOL where it is true or false."""

    name: str
    metavar: str
    about: str


IGNORED = (
    Ignored("--monitoring", "BOOL", "traffic metrics and access logs"),
    Ignored("--periodic-report", "BOOL", "reports of long connections"),
    Ignored("--profiling", "BOOL", "pprof"),
    Ignored("--enable-mda", "BOOL", "acceleration of sockets"),
    Ignored("--enable-dns-proxy", "BOOL", "a DNS server"),
    Ignored("--enable-secret-manager", "BOOL", "certificates from istiod"),
    Ignored("--cgroup2-path", "DIR", "programs on sockets"),
    Ignored("--cni-etc-path", "DIR", "its CNI plugin"),
    Ignored("--conflist-name", "NAME", "its CNI plugin"),
    Ignored("--plugin-cni-chained", "BOOL", "its CNI plugin"),
    Ignored("--enable-bpf-log", "BOOL", "logs of its programs, in older versions"),
    Ignored("--enable-accesslog", "BOOL", "access logs, in older versions"),
    Ignored("--enable-perfmonitor", "BOOL", "metrics of its programs, in older versions"),
)
NOT_PROVIDED = {
    "dump": "what this node's kernel holds is shown by ./dump_maps, beside start_kmesh.sh",
    "log": "start the daemon with --log-level",
}
"""Commands that it has had and this one has not, each with a way out."""
TRUE, FALSE = frozenset({"true", "t", "1"}), frozenset({"false", "f", "0"})
"""What stands for a boolean, in any case; a superset of Go's strconv.ParseBool."""


def spelled_out(argv: Sequence[str], booleans: frozenset[str]) -> list[str]:
    """Give the arguments with every boolean flag as ``--flag=value``.

    Without a value it is true, as in Go; here the value may be the next argument too, if it is one of a boolean.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    given, words = [], deque(argv[:end])
    while words:
        word = words.popleft()
        if word in booleans:
            follows = bool(words) and words[0].lower() in TRUE | FALSE
            word += f"={words.popleft()}" if follows else "=true"
        given.append(word)
    return [*given, *argv[end:]]


def ignored(flags: Mapping[str, object]) -> tuple[str, ...]:
    """Give the names of the flags without meaning here that were given; ``flags`` holds none of the others."""
    return tuple(flag.name for flag in IGNORED if flag.name[2:].replace("-", "_") in flags)

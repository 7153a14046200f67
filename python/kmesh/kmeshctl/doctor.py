# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl doctor``: what this node lacks for encryption, or has in its way. Asks the kernel, and no cluster."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

import kmesh_bpf
from kmesh.kmeshctl.output import STRUCTURED, printable, structured
from kmesh_bpf import Finding, Options, Severity

EXITS = {Severity.ERROR: 1, Severity.WARNING: 3, Severity.NOTE: 0}
"""The exit status by the worst that was found."""


def run(flags: argparse.Namespace, stdout: TextIO) -> int:
    """Examine the node; give the exit status.

    Raises:
        UnsupportedError: whoever runs it may not ask.
        KmeshBpfError: the kernel could not be observed.

    """
    root = flags.pin_root or kmesh_bpf.DEFAULT_PIN_ROOT  # which only a Linux kernel's part of the library knows
    found = kmesh_bpf.diagnose(root, kmesh_bpf.Settings(mark_mask=flags.mark_mask or Options().mark_mask))
    stdout.write(structured(plain(found), flags.output) if flags.output in STRUCTURED else render(found))
    return EXITS[max((one.severity for one in found), default=Severity.NOTE)]


def plain(found: Sequence[Finding]) -> dict[str, Any]:
    """Give it as plain values, for programs."""
    return {
        "well": all(one.severity is Severity.NOTE for one in found),
        "findings": [
            {
                "severity": one.severity.name.lower(),
                "check": one.check,
                "what": one.what,
                "why": one.why,
                "mend": one.mend,
            }
            for one in found
        ],
    }


def render(found: Sequence[Finding]) -> str:
    """Give the answer for people."""
    lines = []
    for one in found:
        lines += [f"{one.severity.name:<8} {one.check}: {one.what}", f"         {one.why}"]
        lines += [f"         mend: {one.mend}"] if one.mend else []
    return printable("".join(f"{line}\n" for line in (*lines, *([""] if lines else []), _summary(found))))


def _summary(found: Sequence[Finding]) -> str:
    numbers = Counter(one.severity for one in found)
    told = [
        f"{numbers[severity]} {severity.name.lower()}{'s' if numbers[severity] != 1 else ''}"
        for severity in reversed(Severity)
        if numbers[severity]
    ]
    worst = max(numbers, default=Severity.NOTE)
    well = "nothing is in the way" if worst is Severity.NOTE else ""
    return "; ".join(part for part in (well, ", ".join(told)) if part)

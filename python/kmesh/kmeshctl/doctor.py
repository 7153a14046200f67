"""``kmeshctl doctor``: what this node lacks for encryption, or has in its way. Asks the kernel, and no cluster."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

import kmesh_bpf
from kmesh.kmeshctl.output import STRUCTURED, printable, structured
from kmesh.text import path
from kmesh_bpf import ConfigError, Finding, Options, Severity, check_mark_mask

EXITS = {Severity.ERROR: 1, Severity.WARNING: 3, Severity.NOTE: 0}
"""The exit status by the worst that was found."""
EPILOG = """\
examples:
  kmeshctl doctor                  # on the node, as root
  kmeshctl doctor -o json

Works without an API server, and without a daemon: what the kernel can do is tried in a network namespace of its own;
nothing of the node is changed. A daemon's own findings are in kmeshctl status.

exit status: 0 nothing, or notes only; 1 errors, which cost packets, or it failed; 2 refused; 3 warnings
"""


def register(commands: Any) -> None:
    """Add the command to kmeshctl's."""
    parser = commands.add_parser(
        "doctor",
        help="say what this node lacks for encryption, or has in its way",
        description="Examines the node that it runs on: what its kernel lacks, and what others have set up in the way.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", choices=("text", *STRUCTURED), default="text", help="default: %(default)s")
    parser.add_argument("--pin-root", type=path, metavar="DIR", help="as the daemon's (default: as it does)")
    parser.add_argument(
        "--mark-mask", type=_mask, default=Options().mark_mask, metavar="MASK", help="as the daemon's (default: 0xff)"
    )


def _mask(text: str) -> int:
    try:
        return check_mark_mask(int(text, 0))
    except (ValueError, ConfigError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(flags: argparse.Namespace, stdout: TextIO) -> int:
    """Examine the node; give the exit status.

    Raises:
        UnsupportedError: whoever runs it may not ask.
        KmeshBpfError: the kernel could not be observed.

    """
    root = flags.pin_root or kmesh_bpf.DEFAULT_PIN_ROOT  # which only a Linux kernel's part of the library knows
    found = kmesh_bpf.diagnose(root, kmesh_bpf.Settings(mark_mask=flags.mark_mask))
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

# SPDX-License-Identifier: Apache-2.0
"""``kmeshctl version``."""

from __future__ import annotations

import argparse
from typing import TextIO

from kmesh.kmeshctl.output import STRUCTURED, structured, table
from kmesh_bpf import __version__


def run(flags: argparse.Namespace, stdout: TextIO, program: str) -> int:
    """Print it; give the exit status."""
    if flags.output in STRUCTURED:
        stdout.write(structured({"version": __version__}, flags.output))
    elif flags.output == "wide":
        import platform  # noqa: PLC0415 # of no other use

        system = f"{platform.system()} {platform.release()}"
        stdout.write(
            table(
                ("PROGRAM", "VERSION", "PYTHON", "SYSTEM"), [(program, __version__, platform.python_version(), system)]
            )
        )
    else:
        print(f"{program} {__version__}", file=stdout)
    return 0

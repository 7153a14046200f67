# SPDX-License-Identifier: Apache-2.0
"""Other people's programs that rows need: Debian's packages, unpacked into a folder of their own and installed nowhere.

They see themselves in /usr by an overlay in a mount namespace of their own, so nothing else on the machine changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab.network import run

VARIABLE = "KMESH_FAULTS_PACKAGES"
"""Tells where they are to who runs in a virtual machine, whose home may be another."""
IPTABLES = ("iptables", "libip4tc2", "libip6tc2", "libxtables12", "libnetfilter-conntrack3", "libnfnetlink0")
CHARON = (
    "charon-systemd",
    "strongswan-swanctl",
    "strongswan-libcharon",
    "libstrongswan",
    "libstrongswan-standard-plugins",
)


def folder() -> Path:
    """Give where they are unpacked: outside of the checkout, forgotten with the folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(VARIABLE) or cache / "kmesh-faults-packages")


def fetch(packages: Iterable[str]) -> Path:
    """Fetch with apt those that are not there yet, once, and say so; give the folder."""
    root = folder()
    missing = [one for one in dict.fromkeys(packages) if not (root / "packages" / one).exists()]
    if missing:
        print(f"faults: fetching with apt, for rows with other software (once): {' '.join(missing)}", file=sys.stderr)
        (root / "packages").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            command = ["apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", *missing]
            if subprocess.run(command, cwd=work, check=False).returncode:
                subprocess.run(["apt-get", "-qq", "update"], check=True)
                subprocess.run(command, cwd=work, check=True)
            for archive in Path(work).glob("*.deb"):
                subprocess.run(["dpkg", "-x", archive, root], check=True)
        for one in missing:
            (root / "packages" / one).touch()
    return root


def beside(command: str) -> list[str]:
    """Give the command that runs a shell command line with those programs in its /usr."""
    mount = f"mount -t overlay others -o lowerdir={folder()}/usr:/usr /usr"
    return ["unshare", "--mount", "bash", "-ec", f"{mount}; {command}"]


def others(node: str, command: str, stdin: str | None = None) -> str:
    """Run one of those programs in a node's network namespace."""
    inner = beside(f"exec nsenter --net=/run/netns/{node} {command}")
    return run(f"unshare --mount bash -ec {inner[-1]!r}", stdin)


def there(program: str) -> bool:
    """Tell whether a program has been fetched."""
    return bool(shutil.which(program, path=f"{folder()}/usr/sbin"))

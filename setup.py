# SPDX-License-Identifier: Apache-2.0
"""Packages, the C sources among them, and the cffi extension; everything else is in pyproject.toml.

With KMESH_PURE=1 in the environment: kmeshctl alone, without the extension, for whatever system (scripts/wheels). Of
two wheels of one version pip takes the one that is made for the machine, and this one where there is none.
"""

import os
from pathlib import Path
from runpy import run_path

from setuptools import setup
from setuptools.command.build_py import build_py

BUILD = "kmesh_bpf/_build.py"
PACKAGES = [
    "kmesh",
    "kmesh.cluster",
    "kmesh.cluster.kubernetes",
    "kmesh.kmeshctl",
    "kmesh.telling",
    "kmesh_bpf",
    "kmesh_bpf.core",
    "kmesh_bpf.kernel",
]
OF_THE_DAEMON = ["kmesh.launcher", "kmesh_bpf.cdef", "kmesh_bpf.csrc", "kmesh_bpf.csrc.include"]
# kubectl finds the second on PATH: kubectl kmesh.
KMESHCTL = ["kmeshctl = kmesh.kmeshctl.cli:entry", "kubectl-kmesh = kmesh.kmeshctl.cli:plugin"]
OF_KMESHCTL = {"kmesh_bpf": ["py.typed"], "kmesh": ["py.typed"], "kmesh.kmeshctl": ["page/*"]}


class WithConstants(build_py):
    """Puts a module with the extension's constants in the extension's place."""

    def run(self) -> None:
        super().run()
        Path(self.build_lib, "kmesh_bpf/_abi.py").write_text(run_path(BUILD)["constants"]())


if os.environ.get("KMESH_PURE") == "1":
    setup(
        packages=PACKAGES,
        package_dir={"kmesh": "python/kmesh"},
        package_data=OF_KMESHCTL,
        entry_points={"console_scripts": KMESHCTL},
        cmdclass={"build_py": WithConstants},
    )
else:
    setup(
        packages=PACKAGES + OF_THE_DAEMON,
        package_dir={"kmesh": "python/kmesh", "kmesh_bpf.csrc": "bpf"},
        package_data={
            **OF_KMESHCTL,
            "kmesh_bpf.cdef": ["*.h"],
            "kmesh_bpf.csrc": ["*.c"],
            "kmesh_bpf.csrc.include": ["*.h"],
        },
        entry_points={"console_scripts": [*KMESHCTL, "kmesh-daemon = kmesh.launcher.cli:entry"]},
        cffi_modules=[f"{BUILD}:ffi"],
        # cffi keeps to Python's limited API: one wheel for each machine, whatever Python from 3.11 on.
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )

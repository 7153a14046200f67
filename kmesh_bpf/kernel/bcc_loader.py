# SPDX-License-Identifier: Apache-2.0
"""The child process that compiles, loads and pins: run by its path, a job as JSON on stdin, an answer on stdout.

The only module that imports bcc. BCC brings LLVM, over 100 MB, so it never enters the daemon: this process does its
job, answers one line of JSON and is gone; what is pinned stays. It imports nothing of kmesh_bpf, which would take as
long again as the compilation.

The job: ``text`` and ``cflags`` for the compiler, ``programs`` and ``maps`` (name -> path of the pin; of maps those
that the text does not pin itself), ``kernel_source`` (a folder to be made). The answer: ``{}``, ``{"error": …}``, or
``{"unsupported": [feature, remedy]}``. On stderr, the log.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

HEADERS = Path("/usr/include")
ARCH_OF_MACHINE = {"x86_64": "x86", "aarch64": "arm64"}
NO_BCC = (
    "BCC for Python",
    "install Debian's python3-bpfcc and make the virtual environment with --system-site-packages",
)
NO_HEADERS = ("the kernel's UAPI headers", "install Debian's linux-libc-dev")
TYPES = """\
#define CONFIG_BPF_SYSCALL 1
#include <uapi/linux/types.h>
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef _Bool bool; typedef unsigned long size_t; typedef unsigned long uintptr_t;
#define true 1
#define false 0
#define NULL ((void *)0)
"""


class MissingError(Exception):
    """Something that has to be installed; its arguments are feature and remedy."""


def make_kernel_source(folder: Path, machine: str, headers: Path) -> None:
    """Write what BCC takes for a kernel source tree: links to the UAPI headers of linux-libc-dev, and a few stubs.

    Programs on TC need UAPI only, so they compile on any kernel without its headers. ``uapi/linux/bpf.h`` is empty
    on purpose: BCC brings a copy of its own, and a second one redefines every enumerator.

    Raises:
        MissingError: the headers are not installed.

    """
    # Debian keeps them apart by architecture, others do not.
    of_machine = next((one for one in (headers / f"{machine}-linux-gnu/asm", headers / "asm") if one.is_dir()), None)
    if of_machine is None or not (headers / "linux/pkt_cls.h").is_file():
        raise MissingError(*NO_HEADERS)
    arch = ARCH_OF_MACHINE.get(machine, machine)
    uapi, include = folder / "include/uapi/linux", folder / "include/linux"
    generated, asm = folder / f"arch/{arch}/include/generated", folder / f"arch/{arch}/include/asm"
    for made in (uapi, include, generated, asm):
        made.mkdir(parents=True)
    for header in (headers / "linux").iterdir():
        if header.name != "bpf.h":
            (uapi / header.name).symlink_to(header)
    (generated / "asm").symlink_to(of_machine)
    (folder / "include/asm-generic").symlink_to(headers / "asm-generic")
    (include / "version.h").symlink_to(headers / "linux/version.h")
    (include / "kconfig.h").write_text(TYPES)
    for stub in (uapi / "bpf.h", include / "log2.h", asm / "page.h"):
        stub.touch()


def load(job: dict[str, Any]) -> None:
    """Compile the text of the job, load its programs, pin each, and its maps.

    Raises:
        MissingError: BCC or the headers are not installed.
        Exception: whatever BCC raises; the reason is in what it wrote to stderr.

    """
    make_kernel_source(Path(job["kernel_source"]), os.uname().machine, HEADERS)
    os.environ["BCC_KERNEL_SOURCE"] = job["kernel_source"]
    try:
        import bcc  # noqa: PLC0415 # here, and not at the head: it loads LLVM, and its absence is an answer too
    except ModuleNotFoundError as error:
        raise MissingError(*NO_BCC) from error
    built = bcc.BPF(text=job["text"].encode(), cflags=job["cflags"])
    for name, path in job["programs"].items():
        pin(bcc.lib, built.load_func(name.encode(), bcc.BPF.SCHED_CLS).fd, path)
    for name, path in job["maps"].items():
        pin(bcc.lib, bcc.lib.bpf_table_fd(built.module, name.encode()), path)


def pin(libbcc: Any, descriptor: int, path: str) -> None:
    """Pin what BCC has loaded.

    Raises:
        OSError: it cannot be pinned there.

    """
    if libbcc.bpf_obj_pin(descriptor, os.fsencode(path)) != 0:
        raise OSError(f"cannot pin {path}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Do the job on stdin and answer on stdout."""
    job = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    try:
        load(job)
    except MissingError as error:
        answer = {"unsupported": error.args}
    except Exception as error:  # noqa: BLE001 # BCC raises bare Exceptions; the parent makes LoadErrors of them
        answer = {"error": str(error) or type(error).__name__}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()

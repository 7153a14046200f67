"""The child process that compiles, loads and pins: run by its path, a job as JSON on stdin.

The only module that imports bcc. BCC brings LLVM, over 100 MB, so it never enters the daemon: this process does its
job, answers one line of JSON on stdout and is gone; what is pinned stays.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROGRAMS = ("tc_mark_encrypt", "tc_mark_decrypt", "tc_leak_guard")
HEADERS = Path("/usr/include")
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


def kernel_source(folder: Path, machine: str) -> None:
    """Write what BCC takes for a kernel source tree: the UAPI headers of linux-libc-dev and a few stubs.

    Programs on TC need UAPI only, so they compile on any kernel without its headers. ``uapi/linux/bpf.h`` is empty
    on purpose: BCC brings a copy of its own, and a second one redefines every enumerator.
    """
    arch = "x86" if machine == "x86_64" else {"aarch64": "arm64"}.get(machine, machine)
    uapi = folder / "include/uapi/linux"
    generated = folder / f"arch/{arch}/include/generated"
    for made in (uapi, generated, folder / f"arch/{arch}/include/asm", folder / "include/linux"):
        made.mkdir(parents=True)
    for header in (HEADERS / "linux").iterdir():
        if header.name != "bpf.h":
            (uapi / header.name).symlink_to(header)
    (uapi / "bpf.h").touch()
    (generated / "asm").symlink_to(HEADERS / f"{machine}-linux-gnu/asm")
    (folder / "include/asm-generic").symlink_to(HEADERS / "asm-generic")
    (folder / "include/linux/version.h").symlink_to(HEADERS / "linux/version.h")
    (folder / "include/linux/kconfig.h").write_text(TYPES)
    for stub in ("include/linux/log2.h", f"arch/{arch}/include/asm/page.h"):
        (folder / stub).touch()


def load(job: dict[str, Any]) -> None:
    """Compile the text of the job, load its programs, pin them into the folder of the job."""
    os.environ["BCC_KERNEL_SOURCE"] = job["kernel_source"]
    kernel_source(Path(job["kernel_source"]), os.uname().machine)
    import bcc  # noqa: PLC0415 # here, and not at the head: it loads LLVM, and its absence is reported by main()

    built = bcc.BPF(text=job["text"], cflags=job["cflags"])
    for name in PROGRAMS:
        function = built.load_func(name, bcc.BPF.SCHED_CLS)
        path = f"{job['programs']}/{name}".encode()
        if bcc.lib.bpf_obj_pin(function.fd, path) != 0:
            raise OSError(f"cannot pin {path.decode()}")


def main() -> int:
    """Do the job on stdin; the answer is ``{}``, ``{"error": …}`` or ``{"missing": …}``."""
    job = json.load(sys.stdin)
    try:
        load(job)
    except ModuleNotFoundError as error:
        answer = {"missing": str(error.name)}
    except Exception as error:  # noqa: BLE001 # bcc raises bare Exceptions; the parent makes LoadErrors of them
        answer = {"error": str(error) or type(error).__name__}
    else:
        answer = {}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

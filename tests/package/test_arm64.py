# SPDX-License-Identifier: Apache-2.0
"""For arm64, which the DaemonSet asks for too: our extension and our programs compile. Nothing of it is run here."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kmesh_bpf import Settings
from kmesh_bpf.kernel import programs
from tests.lab.apiserver import ROOT

TRIPLE = "aarch64-linux-gnu"
HEADERS = Path(f"/usr/{TRIPLE}/include")
"""Of Debian's cross compiler: glibc's, and the kernel's UAPI headers for that machine."""
COMPILE = """
# As kmesh_bpf/kernel/bcc_loader.py does, for another machine, and without loading what was compiled.
import json, os, sys
from pathlib import Path
from kmesh_bpf.kernel.bcc_loader import make_kernel_source
job = json.load(sys.stdin)
make_kernel_source(Path(job["kernel_source"]), "aarch64", Path(job["headers"]))
os.environ |= {"BCC_KERNEL_SOURCE": job["kernel_source"], "ARCH": "arm64"}
import bcc
built = bcc.BPF(text=job["text"].encode(), cflags=job["cflags"])
print(json.dumps({name: bcc.lib.bpf_function_size(built.module, name.encode()) for name in job["programs"]}))
"""

OF_THAT_MACHINE = "#ifndef __TARGET_ARCH_arm64\n#error not for that machine\n#endif\n"


@pytest.fixture(scope="module", autouse=True)
def cross_compiler():
    subprocess.run([ROOT / "scripts/setup", "--arm64"], check=True)


def test_the_extension_compiles_and_is_of_that_machine(tmp_path):
    source, made = tmp_path / "_abi.c", tmp_path / "_abi.o"
    script = f"import runpy; runpy.run_path('kmesh_bpf/_build.py')['ffi'].emit_c_code({str(source)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    # Python's own headers ask for its configuration by machine; under the limited API nothing of it matters but 64 bits.
    (tmp_path / TRIPLE).symlink_to(f"/usr/include/{os.uname().machine}-linux-gnu")
    include = [sysconfig.get_path("include"), tmp_path, ROOT / "bpf/include", ROOT / "kmesh_bpf"]
    flags = ["-c", "-fPIC", "-Wall", "-DPy_LIMITED_API=0x030b0000", *(f"-I{one}" for one in include)]
    subprocess.run([f"{TRIPLE}-gcc", *flags, source, "-o", made], check=True)
    assert int.from_bytes(made.read_bytes()[18:20], "little") == 183, "EM_AARCH64, elf.h"


@pytest.fixture
def bpffs(tmp_path):
    """Where BCC pins the maps that it makes while it compiles."""
    folder = tmp_path / "bpffs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_bcc_compiles_every_program_against_that_machine_s_headers(tmp_path, bpffs):
    sources = programs.source_folder()
    flags = programs._compiler_flags(Settings(), bpffs)
    job = {
        "text": OF_THAT_MACHINE + "\n".join((sources / name).read_text() for name in programs.SOURCES),
        "cflags": [*flags, f"-I{sources / 'include'}"],
        "programs": list(programs.PROGRAM_NAMES),
        "kernel_source": str(tmp_path / "linux"),
        "headers": str(HEADERS),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert set(sizes) == set(programs.PROGRAM_NAMES)
    assert all(size > 0 for size in sizes.values())

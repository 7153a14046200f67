# SPDX-License-Identifier: Apache-2.0
"""Who is not root, or root without capabilities, is told in one sentence what is missing, before anything is touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kmesh_bpf.errors import UnsupportedError
from kmesh_bpf.kernel import privileges
from kmesh_bpf.kernel.privileges import Capability, need
from tests.lab.cluster import PINS
from tests.unit.cluster import kube

DAEMON = [sys.executable, "-c", "from kmesh.launcher.cli import entry; entry()"]
DUMP = [sys.executable, "-m", "kmesh.dump_maps"]
NET = "permission for XFRM, TC and nftables (capability NET_ADMIN)"
BPF = "permission for BPF programs and maps (capability BPF)"
BOTH = f"{NET} and {BPF.removeprefix('permission ')}"
WAY_OUT = "is not available: run as root, or have it permitted to this process\n"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
BARE = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
PREFIXES = [NOBODY, BARE] if os.geteuid() == 0 else [[]]
IDS = ["nobody", "without-capabilities"][: len(PREFIXES)]


def pinned() -> set[str]:
    return {str(path) for path in PINS.glob("kmesh-ipsec*")}


@pytest.mark.parametrize("prefix", PREFIXES, ids=IDS)
@pytest.mark.parametrize(
    ("command", "program", "missing"),
    [
        ([*DAEMON, "--enable-ipsec=true", "--dry-run"], "kmesh-daemon", BOTH),
        ([*DAEMON, "--enable-ipsec=true"], "kmesh-daemon", BOTH),
        ([*DAEMON, "uninstall"], "kmesh-daemon", BOTH),
        ([*DAEMON, "boot-guard"], "kmesh-daemon", NET),
        (DUMP, "dump_maps", BPF),
        ([*DUMP, "--all", "--json"], "dump_maps", BPF),
    ],
    ids=["dry-run", "start", "uninstall", "boot-guard", "dump_maps", "dump_maps-all"],
)
def test_it_is_one_sentence_and_nothing_is_left_behind(tmp_path, prefix, command, program, missing):
    before = pinned()
    where = ["--manifests", "/", "--state-dir", str(tmp_path), "--health-address="] if program == "kmesh-daemon" else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NODE_NAME": "n1"}
    done = subprocess.run(
        [*prefix, *command, *where], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{program}: {missing} {WAY_OUT}")
    assert pinned() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("effective", "wanted", "missing"),
    [
        ("000001ffffffffff", Capability, ""),
        ("0000000000001000", [Capability.NET_ADMIN], ""),
        ("0000000000001000", Capability, BPF),
        ("0000008000000000", Capability, NET),
        ("0000000000201000", Capability, ""),  # SYS_ADMIN instead of BPF
        ("0000000000000000", Capability, BOTH),
        ("nonsense", Capability, ""),
    ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, effective, wanted, missing):
    (tmp_path / "status").write_text(f"Name:\tx\nCapPrm:\t0\nCapEff:\t{effective}\n")
    monkeypatch.setattr(privileges, "STATUS", tmp_path / "status")
    if not missing:
        need(*wanted)
        return
    with pytest.raises(UnsupportedError) as caught:
        need(*wanted)
    assert f"{caught.value}\n" == f"{missing} {WAY_OUT}"


def test_where_the_kernel_does_not_say_it_is_asked_later(monkeypatch):
    monkeypatch.setattr(privileges, "STATUS", Path("/nowhere"))
    need(*Capability)


def test_a_dry_run_without_ipsec_ends(tmp_path):
    done = subprocess.run([*DAEMON, "--dry-run"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# encryption is off: with --enable-ipsec=true ")


def test_a_daemon_s_memory_is_its_own(tmp_path):
    """Not dumpable, and no core: what /proc says of a process that holds a key."""
    code = (
        "from kmesh import streams; streams.keep_memory_private(); import resource, ctypes;"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0) 0\n"


@pytest.mark.parametrize("module", ["kmesh.launcher.cli", "kmesh.kmeshctl.cli"])
def test_both_programs_that_hold_keys_keep_them_so(module):
    code = f"import sys; from {module} import entry\nimport {module} as m, ctypes, resource\n" + (
        "m.main = lambda *_: print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(4)) or 0\nentry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 (0, 0)\n"


def test_a_key_file_of_a_pipe_can_still_be_read_by_who_is_not_root(tmp_path):
    """Not being dumpable, a process has a /proc of root's."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o111)
    command = [*PREFIXES[0], "bash", "-c", '"$0" -c "$1" secret create --manifests "$2" --key-file <(echo "$3")']
    code = "from kmesh.kmeshctl.cli import entry; entry()"
    done = subprocess.run(
        [*command, sys.executable, code, str(tmp_path), kube.material(1).hex()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "key stored: SPI 1, rfc4106(gcm(aes))\n", "")

# SPDX-License-Identifier: Apache-2.0
"""Both wheels: what they are called, hold and need; and kmeshctl of the one that is for every system."""

import os
import platform
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

from tests.lab.apiserver import ROOT

KINDS = {"whole": "cp311-abi3-linux_" + platform.machine(), "pure": "py3-none-any"}
pytestmark = pytest.mark.timeout(900)
ELSEWHERE = """
# What there is on a Mac is less than here; what only Linux has must not be asked for. kmeshctl is run as its script does.
import importlib.abc, os, select, socket, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("_cffi_backend", "bcc", "cffi", "kubernetes", "pyroute2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.platform = "darwin"
for module, names in ((select, ("epoll",)), (os, ("sched_getaffinity", "setns", "unshare", "memfd_create")),
                      (socket, ("AF_NETLINK", "AF_PACKET", "SO_MARK", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
from kmesh.kmeshctl.cli import entry
import kmesh
assert kmesh.__file__.startswith(sys.path[0]), kmesh.__file__
entry()
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("wheels")
    subprocess.run([ROOT / "scripts/wheels", out], check=True)
    found = {path.name: path for path in out.iterdir()}
    assert len(found) == len(KINDS)
    return {
        kind: next(path for name, path in found.items() if name.endswith(f"-{tag}.whl")) for kind, tag in KINDS.items()
    }


def held(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def read(wheel: Path, end: str) -> str:
    (name,) = [one for one in held(wheel) if one.endswith(end)]
    return zipfile.ZipFile(wheel).read(name).decode()


def test_the_whole_one_has_the_programs_for_bcc_and_one_extension_for_every_python(wheels):
    names = held(wheels["whole"])
    assert {name for name in names if name.endswith(".so")} == {"kmesh_bpf/_abi.abi3.so"}
    assert {name for name in names if name.startswith("kmesh_bpf/csrc/") and name.endswith((".c", ".h"))} == {
        f"kmesh_bpf/csrc/{path.relative_to(ROOT / 'bpf')}" for path in (ROOT / "bpf").rglob("*.[ch]")
    }
    assert "kmesh-daemon = " in read(wheels["whole"], "entry_points.txt")


def test_the_pure_one_has_nothing_compiled_and_no_daemon(wheels):
    names = held(wheels["pure"])
    assert not [name for name in names if name.endswith(".so") or name.startswith(("kmesh/launcher", "kmesh_bpf/csrc"))]
    assert read(wheels["pure"], "entry_points.txt").split() == [
        "[console_scripts]",
        "kmeshctl",
        "=",
        "kmesh.kmeshctl.cli:entry",
        "kubectl-kmesh",
        "=",
        "kmesh.kmeshctl.cli:plugin",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_says_whose_it_is_under_which_licences_and_needs_cffi_on_linux_alone(wheels, kind):
    said = message_from_string(read(wheels[kind], "METADATA"))
    assert said["License-Expression"] == "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
    assert {Path(one).name for one in said.get_all("License-File")} == {
        path.name for path in (ROOT / "LICENSES").iterdir()
    }
    assert said.get_all("Project-URL")
    needed = [one for one in said.get_all("Requires-Dist") if "extra ==" not in one]
    assert {one.split("<")[0] for one in needed if "linux" in one} == {"cffi", "pyroute2"}
    assert not [one for one in needed if one.startswith("kubernetes")]


@pytest.fixture(scope="module")
def elsewhere(wheels, tmp_path_factory):
    """Give a function that runs the pure wheel's kmeshctl where nothing of Linux is."""
    folder = tmp_path_factory.mktemp("pure")
    zipfile.ZipFile(wheels["pure"]).extractall(folder)
    libraries = [one for one in sys.path if one.endswith("site-packages")]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(folder), *libraries])}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        # -S: the checkout that the environment has in it must not be found.
        command = [sys.executable, "-S", "-P", "-c", ELSEWHERE, *argv]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.fixture
def folder(tmp_path) -> str:
    nodes = [
        {
            "kind": "Node",
            "metadata": {"name": f"n{n}"},
            "status": {"addresses": [{"type": "InternalIP", "address": f"10.0.0.{n}"}]},
        }
        for n in (1, 2)
    ]
    pods = [
        {
            "kind": "Pod",
            "metadata": {"name": f"p{n}", "namespace": "default", "labels": {"istio.io/dataplane-mode": "kmesh"}},
            "spec": {"nodeName": f"n{n}"},
            "status": {"podIP": f"10.244.{n}.1", "podIPs": [{"ip": f"10.244.{n}.1"}]},
        }
        for n in (1, 2)
    ]
    objects = [{"apiVersion": "v1", **one} for one in (*nodes, *pods)]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump_all(objects))
    return f"--manifests={tmp_path}"


def test_kmeshctl_does_all_of_its_work_without_anything_of_linux(elsewhere, folder):
    assert elsewhere("version").stdout.startswith("kmeshctl ")
    made = elsewhere(folder, "secret", "create")
    assert (made.returncode, made.stdout.partition(",")[0]) == (0, "key stored: SPI 1"), made.stderr
    status = elsewhere(folder, "status")
    assert status.returncode == 1
    assert "n1" in status.stdout, status.stderr
    told = elsewhere(folder, "explain", "p1", "p2")
    assert "n2" in told.stdout, told.stderr
    assert not told.stderr
    assert "_kmeshctl" in elsewhere("completion", "bash").stdout
    monitor = elsewhere("monitor")
    assert (monitor.returncode, monitor.stdout) == (1, "")
    said = "what speaks to a kernel is not available: this is kmeshctl alone; install the wheel for Linux there"
    assert monitor.stderr == f"kmeshctl: {said}\n"


def test_a_kubeconfig_whose_certificates_stand_in_it_is_refused_by_the_name_of_what_it_takes(elsewhere, tmp_path):
    user = {"name": "u", "user": {"client-certificate-data": "QQ==", "client-key-data": "QQ=="}}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [user],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    said = elsewhere(f"--kubeconfig={tmp_path}/config", "status")
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].endswith("pip install 'kmesh-ipsec[kubeconfig]', or name files in their place")
    assert "Traceback" not in said.stderr

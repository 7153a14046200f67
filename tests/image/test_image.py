# SPDX-License-Identifier: Apache-2.0
"""The image's root file system, and the daemon in it, confined as the DaemonSet says; no peer, so no ESP is needed."""

import ctypes
import json
import os
import re
import struct
import subprocess
import tempfile
import time
import uuid
from dataclasses import replace
from importlib.metadata import distributions
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from kmesh.launcher.config import DEFAULT_STATE_DIR

from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel import bpf
from tests.image.container import Container, Node, Spec
from tests.lab.cluster import LABEL, Cluster
from tests.lab.network import Node as LabNode
from tests.lab.network import Pod, run

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 1200
LARGEST_MB = 400
SPEC = Spec.of_daemonset()
# Bits of linux/capability.h.
NUMBERS = {"NET_ADMIN": 12, "PERFMON": 38, "BPF": 39}
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
BPF_OBJ_GET_INFO_BY_FD = 15


def built(release: str) -> Path:
    start = time.monotonic()
    environment = {**os.environ, "DEBIAN": release}
    build = subprocess.run(
        [ROOT / "deploy/build-rootfs.sh"], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    print(f"root file system of {release} after {time.monotonic() - start:.1f} s")
    return Path(build.stdout.strip())


@pytest.fixture(scope="module")
def root():
    return built("bookworm")


# The first build fetches a Debian.
pytestmark = pytest.mark.timeout(BUILD_SECONDS)


@pytest.fixture
def node():
    """Give a node with an uplink and one managed pod, whose device has its other end elsewhere."""
    name = f"ki{uuid.uuid4().hex[:6]}"
    work = Path(tempfile.mkdtemp(prefix="kmesh-image-"))
    for folder in ("bpffs", "cluster"):
        (work / folder).mkdir()
    run(
        f"mount -t bpf bpf {work}/bpffs; ip netns add {name}; ip netns add {name}p;"
        f"ip link add eth0 netns {name} type veth peer name far netns {name}p;"
        f"ip link add pod0 netns {name} type veth peer name eth0 netns {name}p;"
        f"ip -n {name} addr add 10.10.0.1/24 dev eth0; ip -n {name} addr add fd00:10::1/64 dev eth0 nodad;"
        f"ip -n {name}p addr add 10.244.1.10/32 dev eth0;"
        f"for device in lo eth0 pod0; do ip -n {name} link set $device up; done"
    )
    cluster = Cluster(work / "cluster", SimpleNamespace(nodes=[LabNode(1)]))
    cluster.namespace({LABEL: "Kmesh"})
    cluster.pod(Pod("p1a", "n1", (ip_address("10.244.1.10"),), "pod0"))
    yield Node(name, work / "bpffs", work / "cluster")
    run(f"ip netns del {name}; ip netns del {name}p; umount {work}/bpffs; rm -r {work}")


@pytest.fixture
def daemon(root, node):
    """Give a function that starts the daemon in a container; all that it started end with the test."""
    started = []

    def start(capabilities=None, flag="--manifests=/mnt/cluster", spec=SPEC):
        container = Container(root, spec, node, capabilities)
        started.append(container)
        container.start(*flag.split())
        return container

    yield start
    for container in started:
        if container.process.poll() is None:
            container.process.kill()
            container.process.wait()


def test_the_image_is_not_larger_than_it_must_be(root):
    megabytes = int(subprocess.run(["du", "-sm", root], stdout=subprocess.PIPE, check=True).stdout.split()[0])
    print(f"{megabytes} MB")
    assert megabytes < LARGEST_MB
    assert not list(root.glob("etc/apt/sources.list*"))
    assert not list(root.rglob("pip-*.whl"))


def test_what_it_holds_from_pip_is_what_is_pinned(root):
    pinned = set(re.findall(r"^([\w.-]+==[\w.]+)", (ROOT / "deploy/constraints.txt").read_text(), re.MULTILINE))
    found = [one.metadata for one in distributions(path=[str(*root.glob("kmesh/.venv/lib/python3*/site-packages"))])]
    held = {f"{one['Name'].lower().replace('_', '-')}=={one['Version']}" for one in found}
    ours = {one for one in held if one.startswith("kmesh-ipsec==")}
    assert len(ours) == 1
    assert held - ours <= pinned
    names = {one.partition("==")[0] for one in held}
    assert {"cffi", "msgspec", "pyroute2", "pyyaml", "urllib3"} <= names
    assert "kubernetes" not in names, "it is for kubeconfigs, and in a pod there is none"


def test_its_sbom_names_every_package_of_debian_s_and_of_pip_s_and_no_other(root):
    said = json.loads((root / "kmesh/sbom.cdx.json").read_text())
    assert (said["bomFormat"], said["specVersion"]) == ("CycloneDX", "1.5")
    purls = [one["purl"] for one in said["components"]]
    assert purls == sorted(set(purls))
    asked = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${db:Status-Status} ${Package}\n"]
    known = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout
    debian = re.findall(r"^installed (.+)$", known, re.MULTILINE)
    assert sorted(unquote(one.split("/")[2].partition("@")[0]) for one in purls if "pkg:deb/" in one) == sorted(debian)
    found = distributions(path=[str(*root.glob("kmesh/.venv/lib/python3*/site-packages"))])
    pip = {f"pkg:pypi/{one.metadata['Name'].lower().replace('_', '-')}@{one.version}" for one in found}
    assert {one for one in purls if "pkg:pypi/" in one} == pip
    assert said["metadata"]["component"]["version"] in {one.partition("kmesh-ipsec@")[2] for one in pip}


def test_it_is_told_what_takes_how_much_of_it(root):
    told = subprocess.run([ROOT / "deploy/build-rootfs.sh", "sizes"], stdout=subprocess.PIPE, text=True, check=True)
    print(told.stdout)
    *parts, whole = [int(line.split()[0]) for line in told.stdout.splitlines()]
    assert "the compiler: LLVM and clang" in told.stdout
    assert 0.7 * whole < sum(parts) < 1.3 * whole, "dpkg's sizes leave out what was not unpacked, and round up"


def test_the_programs_of_the_image_say_who_they_are(root, node):
    container = Container(root, SPEC, node)
    helped = container.run("./start_kmesh.sh", "--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith("usage: kmesh-daemon ")
    assert container.run("kmeshctl", "version").stdout.startswith("kmeshctl ")
    assert container.run("./dump_maps").returncode == 1


def test_with_encryption_off_it_changes_nothing_and_ends_when_it_is_told(daemon, node):
    container = daemon(flag="--enable-ipsec=false")
    container.wait_for("encryption is off")
    assert container.stop() == 0
    assert not (node.bpffs / "kmesh-ipsec").exists()


def test_with_the_daemonset_s_args_and_capabilities_it_becomes_ready(root, node, daemon):
    kmeshctl = Container(root, SPEC, node)
    assert "SPI 1" in kmeshctl.run("kmeshctl", "--manifests=/mnt/cluster", "secret", "create").stdout
    container = daemon()
    seconds = container.wait_for(" ready: 0 peers, 1 managed addresses")
    print(f"ready after {seconds:.1f} s, {container.status('VmHWM')}")
    container.wait_for("announced: SPI 1")
    assert container.status("NoNewPrivs") == "1"
    wanted = sum(1 << NUMBERS[name] for name in SPEC.capabilities)
    assert [int(container.status(f"Cap{kind}"), 16) for kind in ("Prm", "Eff", "Bnd")] == [wanted] * 3
    assert {path.name.partition("-")[2] for path in node.bpffs.glob("kmesh-ipsec/links/*")} == {
        "tc_mark_encrypt",
        "tc_mark_decrypt",
        "tc_leak_guard",
        "tc_inner_guard",
        "tc_pod_guard",
    }
    assert "kmesh_ipsec" in run(f"nsenter --net=/run/netns/{node.network} nft list tables")
    shown = json.loads(kmeshctl.run("./dump_maps", "--json").stdout)
    assert shown[0]["pods"] == [
        {"address": "10.10.0.1", "flags": ["candidate", "own"]},
        {"address": "10.244.1.10", "flags": ["local"]},
        {"address": "fd00:10::1", "flags": ["candidate", "own"]},
    ]
    assert container.stop() == 0


@pytest.mark.parametrize("more", ["", " --monitoring=true"], ids=["guide", "upstream's e2e"])
def test_by_the_guide_s_step_2_as_it_is_written_in_go_kmesh_s_yaml_it_becomes_ready_and_ends_when_it_is_told(
    daemon, more
):
    line = f"./start_kmesh.sh --mode=dual-engine --enable-bypass=false{more} --enable-ipsec=true"
    # The folder that is the cluster here is part of the one argument, as a flag added to the yaml would be.
    container = daemon(flag="", spec=replace(SPEC, command=["/bin/sh", "-c", f"{line} --manifests=/mnt/cluster"]))
    container.wait_for(" ready: ")
    said = container.log.read_text()
    assert said.count("WARNING flags of Go Kmesh") == bool(more)
    assert container.status("Name") == "kmesh-daemon", "a shell in between would keep the signal from it"
    assert container.stop() == 0


def test_nothing_can_be_written_but_where_the_daemonset_says(root, node):
    container = Container(root, SPEC, node)
    assert SPEC.read_only
    for path in ("/kmesh/x", "/etc/x", "/var/tmp/x", "/usr/lib/x"):
        assert "Read-only file system" in container.run("touch", path).stderr
    for path in ("/tmp/x", f"{DEFAULT_STATE_DIR}/x"):
        assert container.run("touch", path).returncode == 0


def test_a_container_that_is_replaced_compiles_nothing_and_uninstall_leaves_nothing(root, node, daemon):
    first = daemon()
    first.wait_for(" ready: ")
    assert first.stop() == 0
    second = daemon()
    second.wait_for(" ready: ")
    assert "found pinned, nothing compiled" in second.log.read_text()
    assert second.stop() == 0
    removed = Container(root, SPEC, node).run("./start_kmesh.sh", "uninstall", "--manifests=/mnt/cluster")
    assert removed.returncode == 0
    assert not (node.bpffs / "kmesh-ipsec").exists()


@pytest.mark.parametrize("missing", ["BPF", "NET_ADMIN"])
def test_without_one_of_these_capabilities_it_does_not_start_and_says_why_in_a_sentence(daemon, missing):
    container = daemon(SPEC.capabilities - {missing})
    assert container.process.wait(60) == 1
    said = container.log.read_text().splitlines()
    assert said[-1].startswith("kmesh-daemon: ")
    assert "ermi" in said[-1] or "privileges" in said[-1]
    assert not [line for line in said if "Traceback" in line]


def test_without_perfmon_the_kernel_hardens_the_programs_against_speculation(daemon, node):
    sizes = []
    for capabilities in (SPEC.capabilities, SPEC.capabilities - {"PERFMON"}):
        container = daemon(capabilities)
        container.wait_for(" ready: ")
        assert container.stop() == 0
        (build,) = node.bpffs.glob("kmesh-ipsec/programs/*")
        sizes.append({one.value: translated_bytes(build / one.value) for one in Program})
        run(f"rm -r {node.bpffs}/kmesh-ipsec")
    print(f"bytes with and without PERFMON: {sizes}")
    assert all(sizes[1][name] > size for name, size in sizes[0].items())


def test_in_a_debian_13_with_its_python_and_bcc_it_becomes_ready_too(node):
    there = built("trixie")
    (python,) = there.glob("kmesh/.venv/lib/python3*")
    assert python.name == "python3.13"
    kmeshctl = Container(there, SPEC, node)
    assert "SPI 1" in kmeshctl.run("kmeshctl", "--manifests=/mnt/cluster", "secret", "create").stdout
    container = Container(there, SPEC, node)
    container.start("--manifests=/mnt/cluster")
    try:
        container.wait_for(" ready: 0 peers, 1 managed addresses")
        assert "compiled" in container.log.read_text()
        assert container.stop() == 0
    finally:
        container.process.kill()


def test_each_capability_of_the_daemonset_is_one_that_a_test_takes_away():
    assert SPEC.capabilities == {"BPF", "NET_ADMIN", "PERFMON"}


def translated_bytes(program):
    """Give a pinned program's size after the verifier has rewritten it (struct bpf_prog_info, linux/bpf.h)."""
    with bpf.opened(program) as fd:
        info = ctypes.create_string_buffer(256)
        attributes = ctypes.create_string_buffer(struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        number = BPF_SYSCALL[os.uname().machine]
        assert ctypes.CDLL(None).syscall(number, BPF_OBJ_GET_INFO_BY_FD, attributes, 16) == 0
    return struct.unpack_from("=I", info, 20)[0]

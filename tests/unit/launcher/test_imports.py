# SPDX-License-Identifier: Apache-2.0
"""What a daemon imports it needs: each module is memory and time of a start on every node."""

import json
import subprocess
import sys

import pytest

IN_A_POD = """
import json, sys
import kmesh.launcher.cli
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.source import KubernetesCluster
from kmesh.cluster.kubernetes import access
from kmesh_bpf import LinuxKernel  # needs what lists devices
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def imported() -> set[str]:
    done = subprocess.run([sys.executable, "-c", IN_A_POD], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("package", ["kubernetes", "yaml", "bcc", "jsonschema", "dateutil", "requests"])
def test_in_a_pod_it_is_not_imported(imported, package):
    assert package not in imported


@pytest.mark.parametrize("package", ["kmesh.launcher.daemon", "urllib3", "pyroute2"])
def test_and_this_is(imported, package):
    assert package in imported

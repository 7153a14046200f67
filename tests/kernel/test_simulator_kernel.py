# SPDX-License-Identifier: Apache-2.0
"""The simulator's kernel against this one, which may have no ESP: see :mod:`tests.simulator.differential`."""

import subprocess
import sys

from tests.lab.cluster import ROOT

SEEDS = range(100, 106)
# Namespaces of nodes and pods have names, and another test of this machine may have given the same ones.
APART = 'mount -t tmpfs none /run; mkdir /run/netns; mount -t bpf none /sys/fs/bpf; ip link set lo up; exec "$@"'


def test_programs_policies_and_nat_do_with_packets_what_the_real_ones_do() -> None:
    stories = [sys.executable, "-m", "tests.simulator.differential", *map(str, SEEDS)]
    apart = ["unshare", "--net", "--mount", "bash", "-ec", APART, "bash"]
    done = subprocess.run([*apart, *stories], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no difference") == len(SEEDS)

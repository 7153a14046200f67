# SPDX-License-Identifier: Apache-2.0
"""scripts/start_kmesh.sh on a node without bpffs, in a mount namespace that is thrown away."""

import subprocess
from pathlib import Path

from tests.lab.cluster import PINS, ROOT

START = ROOT / "scripts/start_kmesh.sh"
REFUSED = "kmesh-daemon: --mode=kernel-native is not provided by this project; use --mode=dual-engine\n"
WITHOUT_BPFFS = f"""
while mountpoint -q {PINS}; do umount {PINS}; done
cd /
timeout 60 "$@" --mode=kernel-native && status=0 || status=$?
grep ' {PINS} ' /proc/mounts || :
exit "$status"
"""


def started(*command: str | Path) -> tuple[int, list[str], str]:
    """Give the exit status, the types of what is mounted in bpffs' place afterwards, and what was complained of."""
    line = ["unshare", "--mount", "bash", "-ec", WITHOUT_BPFFS, "start", *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, [mount.split()[2] for mount in done.stdout.splitlines()], done.stderr


def test_bpffs_is_mounted_where_it_is_missing_and_the_status_is_the_daemon_s():
    assert started(START) == (2, ["bpf"], REFUSED)


def test_it_finds_the_daemon_by_a_link_and_mounts_nothing_over_bpffs(tmp_path):
    link = tmp_path / "start"
    link.symlink_to(START)
    assert started("bash", "-ec", f'mount -t bpf bpf {PINS}; exec "$@"', "start", link) == (2, ["bpf"], REFUSED)


def test_where_it_may_not_mount_it_says_what_to_do_and_starts_the_daemon_all_the_same():
    status, mounted, complaints = started("setpriv", "--bounding-set=-sys_admin", START)
    assert (status, mounted) == (2, [])
    assert complaints.startswith(f"start_kmesh.sh: no bpffs at {PINS}, and cannot mount it: as root, on the node: ")
    assert complaints.splitlines(keepends=True)[1:] == [REFUSED]

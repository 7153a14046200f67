# SPDX-License-Identifier: Apache-2.0
"""What is kept for the next boot, and when the guard of this one is lifted."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from kmesh.launcher import boot
from kmesh.launcher.boot import REWRITE, BootGuard

from kmesh_bpf import ConfigError, FakeKernel, Options, reconcile
from tests.unit.core import mesh

FOLDER = Path("/state")


@dataclass
class Disk:
    """What is done, in the place of a disk and of nft."""

    done: list[object] = field(default_factory=list)

    def keep(self, folder, remote):
        assert folder == FOLDER
        self.done.append(frozenset(remote))

    def forget(self, folder):
        self.done.append("forgotten")

    def remove(self):
        self.done.append("lifted")


@pytest.fixture
def disk(monkeypatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(boot, "boot_guard", made)
    return made


def passed(*pods):
    kernel = FakeKernel(mesh.LINKS)
    return reconcile(kernel, mesh.view(pods=pods), Options(), lambda: 1000.0, lambda: "f" * 36)


def after(one: BootGuard, report) -> None:
    one.passed(report)
    one.catch_up()


def guard(now, **settings):
    return BootGuard(FOLDER, **{"strict": True, "clock": lambda: now[0]} | settings)


def test_the_managed_addresses_of_other_nodes_are_kept_and_the_guard_is_lifted_once(disk):
    now = [0.0]
    one = guard(now)
    for _ in range(3):
        after(one, passed(mesh.pod(1), mesh.pod(2)))
        now[0] += REWRITE
    assert disk.done == ["lifted", frozenset(mesh.pod(2).addresses)]


def test_it_is_written_again_when_it_changes_and_then_not_at_once(disk):
    now = [0.0]
    one = guard(now)
    for pods in ((mesh.pod(2),), (mesh.pod(2), mesh.pod(3)), (mesh.pod(3),)):
        after(one, passed(*pods))
    assert len(disk.done) == 2
    one.catch_up()
    assert len(disk.done) == 2
    now[0] += REWRITE
    one.catch_up()
    assert disk.done[2:] == [frozenset(mesh.pod(3).addresses)]
    now[0] += REWRITE
    one.catch_up()
    assert len(disk.done) == 3


def test_without_managed_pods_elsewhere_nothing_is_kept(disk):
    one = guard([0.0])
    after(one, passed(mesh.pod(1)))
    assert disk.done == ["lifted", "forgotten"]


def test_a_permissive_node_keeps_nothing_and_removes_what_was_kept(disk):
    one = guard([0.0], strict=False)
    after(one, passed(mesh.pod(2)))
    assert disk.done == ["lifted", "forgotten"]


def test_as_long_as_not_everything_is_in_place_the_guard_stays(disk):
    report = passed(mesh.pod(2))
    one = guard([0.0])
    after(one, SimpleNamespace(converged=False, plan=report.plan))
    assert "lifted" not in disk.done
    after(one, report)
    assert "lifted" in disk.done


def test_a_disk_that_is_full_is_told_and_tried_again(disk, monkeypatch, caplog):
    now = [0.0]
    one = guard(now)

    def full(folder, remote):
        raise ConfigError("--state-dir=/state: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "keep", full)
        with caplog.at_level("WARNING", "kmesh"):
            after(one, passed(mesh.pod(2)))
    assert "No space left" in caplog.text
    now[0] += REWRITE
    after(one, passed(mesh.pod(2)))
    assert disk.done[-1] == frozenset(mesh.pod(2).addresses)


def test_all_pods_are_gone_through_only_when_some_have_changed_and_not_in_a_pass(disk, monkeypatch):
    now, gone_through, kernel = [0.0], [], FakeKernel(mesh.LINKS)
    remote_pods = boot.remote_pods
    monkeypatch.setattr(boot, "remote_pods", lambda state: gone_through.append(now[0]) or remote_pods(state))
    one = guard(now)
    for pods in ((mesh.pod(2),), (mesh.pod(2),), (mesh.pod(2), mesh.pod(3)), (mesh.pod(2), mesh.pod(3))):
        one.passed(reconcile(kernel, mesh.view(pods=pods), Options(), lambda: 1000.0, lambda: "f" * 36))
        assert now[0] not in gone_through
        one.catch_up()
        now[0] += REWRITE
        one.catch_up()
    assert gone_through == [0.0, 2 * REWRITE]
    assert disk.done[-1] == frozenset((*mesh.pod(2).addresses, *mesh.pod(3).addresses))


WITHOUT_PYROUTE2 = "import sys; sys.modules['pyroute2'] = None; "


@pytest.mark.parametrize("module", ["kmesh.launcher.cli", "kmesh.kmeshctl.cli", "kmesh.dump_maps"])
def test_what_opens_no_kernel_does_not_wait_for_pyroute2(module):
    subprocess.run([sys.executable, "-c", f"{WITHOUT_PYROUTE2}import {module}"], check=True)


def test_the_boot_guard_runs_without_pyroute2(tmp_path):
    run = f"from kmesh.launcher.cli import main; sys.exit(main(['boot-guard', '--state-dir={tmp_path}'], {{}}, sys.stderr))"
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYROUTE2 + run], capture_output=True, text=True, check=False)
    assert (done.returncode, "nothing is kept in" in done.stderr) == (0, True), done.stderr

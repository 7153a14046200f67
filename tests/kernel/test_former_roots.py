# SPDX-License-Identifier: Apache-2.0
"""Another --pin-root: all that the daemon before has made is taken over, and nothing of it runs beside ours."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from kmesh_bpf import LinuxKernel, Settings
from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel.former_roots import running_here
from kmesh_bpf.kernel.pin_root import claim
from tests.kernel.device import Device, eventually, links
from tests.kernel.test_linux_kernel import node, pins, reach  # noqa: F401 # fixtures
from tests.lab.network import inside, run

BOTH = (Program.MARK_DECRYPT, Program.LEAK_GUARD)
MODES = pytest.mark.parametrize("mode", ["tcx", "clsact"])


@pytest.fixture
def moved(device: Device) -> Iterator[Device]:
    """The same device, for a daemon with another pin root."""
    root = device.pin_root.with_name(device.pin_root.name + "-moved")
    root.mkdir()
    made = replace(device, pin_root=root, attachers=[])
    yield made
    for attacher in made.attachers:
        attacher.close()
    shutil.rmtree(root)


def run_by_the_daemon_before(device: Device, mode="tcx", digit: int = 1) -> None:
    build, attacher = device.build(digit), device.attacher(mode)
    for program in BOTH:
        attacher.attach(device.attachment(program), build.path(program))
    attacher.close()


@pytest.mark.parametrize("now", ["auto", "tcx", "clsact"])
@MODES
def test_each_program_of_the_former_root_gives_way_to_ours(device: Device, moved: Device, mode, now) -> None:
    run_by_the_daemon_before(device, mode)
    assert running_here(moved.pin_root) == (device.pin_root,)
    attacher = moved.attacher(now)
    attacher.take_over(device.pin_root)
    assert (moved.mark_after_ingress(), moved.mark_after_egress()) == (0x1, 0x1), "until ours are there it goes on"
    build = moved.build(2)
    assert attacher.attached(links(), build) == {device.attachment(one, current=False) for one in BOTH}
    for program in BOTH:
        attacher.attach(moved.attachment(program), build.path(program))
    assert eventually(moved.mark_after_ingress, 0x2)
    assert eventually(moved.mark_after_egress, 0x2)
    assert attacher.attached(links(), build) == {moved.attachment(one) for one in BOTH}
    assert running_here(moved.pin_root) == ()
    for program in BOTH:
        attacher.detach(moved.attachment(program))
    assert eventually(moved.mark_after_ingress, 0)
    assert run("tc qdisc show dev dev0 | grep clsact || :") == "", "a qdisc that the former one made is ours"


def test_a_root_that_a_daemon_keeps_is_left_alone(device: Device, moved: Device) -> None:
    run_by_the_daemon_before(device)
    with claim(device.pin_root):
        assert running_here(moved.pin_root) == ()
    assert running_here(moved.pin_root) == (device.pin_root,)


def test_a_root_is_not_its_own_former_one_and_where_ours_run_ours_count(device: Device, moved: Device) -> None:
    run_by_the_daemon_before(device)
    assert running_here(device.pin_root) == ()
    build, attacher = moved.build(2), moved.attacher("tcx")
    attacher.attach(moved.attachment(BOTH[0]), build.path(BOTH[0]))
    assert running_here(moved.pin_root) == ()


def test_what_runs_in_another_namespace_is_left_alone(
    device: Device, moved: Device, new_netns: Callable[[], str]
) -> None:
    run_by_the_daemon_before(device)
    with inside(new_netns()):
        run(f"ip link add dev0 index {device.ifindex} type bridge")
        assert running_here(moved.pin_root) == ()
        moved.attacher("tcx").take_over(device.pin_root)
    assert len(list((device.pin_root / "links").iterdir())) == 2
    assert moved.mark_after_ingress() == 0x1


@MODES
def test_a_kernel_opened_with_another_root_has_the_maps_and_programs_of_the_former_and_that_is_gone(
    node,  # noqa: F811
    pins,  # noqa: F811
    mode,
) -> None:
    first, second = pins / "first", pins / "second"
    with closing(LinuxKernel(first, Settings(), attach_mode=mode)) as kernel:
        reach(kernel)
        kernel.remember("an incarnation")
        before = kernel.observe()
    for root, former in ((second, first), (first, second)):
        with closing(LinuxKernel(root, Settings(), attach_mode=mode)) as kernel:
            assert kernel.former_roots == (former,)
            found = kernel.observe()
            state = replace(before.state, attachments=found.state.attachments)
            assert (found.state, found.incarnation) == (state, before.incarnation)
            assert {(one.ifindex, one.program) for one in found.state.attachments} == {
                (one.ifindex, one.program) for one in before.state.attachments
            }
            assert not former.exists()
            reach(kernel)
            assert all(one.current for one in kernel.observe().state.attachments)

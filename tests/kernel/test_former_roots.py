# SPDX-License-Identifier: Apache-2.0
"""Another --pin-root: what the daemon before has left on devices is taken over, and runs beside ours no more."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.kernel.pin_root import claim
from tests.kernel.device import Device, eventually, links
from tests.lab.network import inside, run

BOTH = (Program.MARK_DECRYPT, Program.LEAK_GUARD)


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


def run_by_the_daemon_before(device: Device, digit: int = 1) -> None:
    build, attacher = device.build(digit), device.attacher("auto")
    for program in BOTH:
        attacher.attach(device.attachment(program), build.path(program))
    attacher.close()


def pins(root: Path) -> list[str]:
    return sorted(one.name for one in (root / "links").iterdir())


@pytest.mark.parametrize("mode", ["auto", "tcx", "clsact"])
def test_each_program_of_the_former_root_gives_way_to_ours(device: Device, moved: Device, mode) -> None:
    run_by_the_daemon_before(device)
    build, attacher = moved.build(2), moved.attacher(mode)
    assert attacher.take_over() == {device.pin_root}
    assert attacher.attached(links(), build) == {device.attachment(one, current=False) for one in BOTH}
    for program in BOTH:
        attacher.attach(moved.attachment(program), build.path(program))
    assert eventually(moved.mark_after_ingress, 0x2)
    assert eventually(moved.mark_after_egress, 0x2)
    assert attacher.attached(links(), build) == {moved.attachment(one) for one in BOTH}
    assert pins(device.pin_root) == []
    assert attacher.take_over() == frozenset()


def test_until_ours_are_attached_what_was_there_goes_on(device: Device, moved: Device) -> None:
    run_by_the_daemon_before(device)
    shutil.rmtree(device.pin_root / "programs")
    moved.attacher("auto").take_over()
    assert (moved.mark_after_ingress(), moved.mark_after_egress()) == (0x1, 0x1)
    assert len(pins(moved.pin_root)) == 2


def test_where_both_roots_have_a_link_the_other_one_s_goes(device: Device, moved: Device) -> None:
    build, attacher = moved.build(2), moved.attacher("auto")
    for program in BOTH:
        attacher.attach(moved.attachment(program), build.path(program))
    run_by_the_daemon_before(device)
    assert moved.mark_after_ingress() == 0x12
    assert attacher.take_over() == {device.pin_root}
    assert (moved.mark_after_ingress(), moved.mark_after_egress()) == (0x2, 0x2)


def test_a_root_that_a_daemon_keeps_is_left_alone(device: Device, moved: Device) -> None:
    run_by_the_daemon_before(device)
    with claim(device.pin_root):
        assert moved.attacher("auto").take_over() == frozenset()
    assert len(pins(device.pin_root)) == 2
    assert moved.mark_after_ingress() == 0x1


def test_links_of_other_namespaces_and_what_is_no_link_are_left_alone(
    device: Device, moved: Device, new_netns: Callable[[], str]
) -> None:
    run_by_the_daemon_before(device)
    (device.pin_root / "links" / "7-of-somebody").mkdir()
    elsewhere = new_netns()
    with inside(elsewhere):
        run(f"ip link add dev0 index {device.ifindex} type bridge")
        assert moved.attacher("auto").take_over() == frozenset()
    assert len(pins(device.pin_root)) == 3
    assert moved.mark_after_ingress() == 0x1

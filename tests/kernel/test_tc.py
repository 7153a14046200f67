# SPDX-License-Identifier: Apache-2.0
"""Attaching programs to devices: what holds by TCX and by clsact, under traffic, and the change from one to the other."""

import errno
import socket
import threading
import time
from contextlib import closing

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import KernelError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.tc import AttachMode
from tests.kernel.device import PORT, Device, eventually, listener, qdiscs, received_mark
from tests.lab.network import run, socket_in

BOTH_MODES = pytest.mark.parametrize("mode", ["tcx", "clsact"])


@BOTH_MODES
def test_what_is_attached_runs_and_is_found_and_what_is_detached_is_neither(device: Device, mode: AttachMode) -> None:
    build, attacher = device.build(1), device.attacher(mode)
    wanted = {device.attachment(program) for program in (Program.MARK_DECRYPT, Program.LEAK_GUARD)}
    assert device.attached(mode, build) == frozenset()
    for attachment in wanted:
        attacher.attach(attachment, build.path(attachment.program))
    assert device.attached(mode, build) == wanted
    assert (device.mark_after_ingress(), device.mark_after_egress()) == (0x1, 0x1)
    for attachment in wanted:
        attacher.detach(attachment)
    assert device.attached(mode, build) == frozenset()
    assert eventually(device.mark_after_ingress, 0)
    assert eventually(device.mark_after_egress, 0)
    assert qdiscs() == ""


@BOTH_MODES
def test_attaching_and_detaching_twice_is_as_good_as_once(device: Device, mode: AttachMode) -> None:
    build, attacher = device.build(1), device.attacher(mode)
    attachment = device.attachment(Program.MARK_ENCRYPT)
    for _ in range(2):
        attacher.attach(attachment, build.path(attachment.program))
        assert device.attached(mode, build) == {attachment}
        assert device.mark_after_ingress() == 0x1
    for _ in range(2):
        attacher.detach(attachment)
        assert device.attached(mode, build) == frozenset()


@BOTH_MODES
def test_another_build_is_not_current_until_it_is_replaced(device: Device, mode: AttachMode) -> None:
    old, new, attacher = device.build(1), device.build(2), device.attacher(mode)
    attachment = device.attachment(Program.MARK_ENCRYPT)
    attacher.attach(attachment, old.path(attachment.program))
    assert device.attached(mode, new) == {device.attachment(Program.MARK_ENCRYPT, current=False)}
    assert device.attached(mode, None) == {attachment}
    attacher.attach(attachment, new.path(attachment.program))
    assert device.attached(mode, new) == {attachment}
    assert device.mark_after_ingress() == 0x2


@BOTH_MODES
def test_replacing_again_and_again_under_traffic_leaves_no_packet_without_a_program(
    device: Device, mode: AttachMode
) -> None:
    builds, attacher = [device.build(1), device.build(2)], device.attacher(mode)
    attachment = device.attachment(Program.MARK_ENCRYPT)
    attacher.attach(attachment, builds[0].path(attachment.program))
    marks: dict[int, int] = {}
    stop = threading.Event()

    def converse() -> None:
        # One packet at a time, so that none is lost to a full buffer; their number depends on the machine.
        while not stop.is_set():
            sender.sendto(b"x", ("10.0.0.1", PORT))
            mark = received_mark(receiver)
            marks[mark] = marks.get(mark, 0) + 1

    with (
        closing(listener(("10.0.0.1", PORT))) as receiver,
        closing(socket_in(device.there, socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        traffic = threading.Thread(target=converse)
        traffic.start()
        turn, end = 0, time.monotonic() + 20
        # At least a hundred times, and until packets have met both.
        while turn < 100 or (set(marks) < {1, 2} and time.monotonic() < end):
            turn += 1
            attacher.attach(attachment, builds[turn % 2].path(attachment.program))
        stop.set()
        traffic.join()
    assert set(marks) == {1, 2}


@pytest.mark.parametrize(("before", "after"), [("clsact", "auto"), ("auto", "clsact")])
def test_a_change_of_mode_takes_the_old_way_off_after_the_new_one_is_on(
    device: Device, before: AttachMode, after: AttachMode
) -> None:
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    device.attacher(before).attach(attachment, build.path(attachment.program))
    device.attacher(after).attach(attachment, build.path(attachment.program))
    assert eventually(device.mark_after_ingress, 0x1)
    assert device.attached(after, build) == {attachment}
    assert (qdiscs() == "") == (after == "auto")


def test_one_that_sits_there_in_both_ways_is_not_current_and_attaching_puts_it_right(device: Device) -> None:
    """As a crash in the middle of a change of mode leaves it."""
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    device.attacher("tcx").attach(attachment, build.path(attachment.program))
    pin, aside = device.pin_root / "links", device.pin_root / "aside"
    pin.rename(aside)
    device.attacher("clsact").attach(attachment, build.path(attachment.program))
    aside.rename(pin)
    assert device.mark_after_ingress() == 0x11
    assert device.attached("auto", build) == {device.attachment(Program.MARK_DECRYPT, current=False)}
    device.attacher("auto").attach(attachment, build.path(attachment.program))
    assert device.mark_after_ingress() == 0x1


@BOTH_MODES
def test_a_deleted_device_leaves_nothing_behind(device: Device, mode: AttachMode) -> None:
    build, attacher = device.build(1), device.attacher(mode)
    attachment = device.attachment(Program.MARK_DECRYPT)
    attacher.attach(attachment, build.path(attachment.program))
    run("ip link del dev0")
    assert device.attached(mode, build) == frozenset()
    assert [path.name for folder in ("links", "clsact") for path in device.pin_root.glob(f"{folder}/*")] == []
    attacher.detach(attachment)
    with pytest.raises(KernelError) as caught:
        attacher.attach(attachment, build.path(attachment.program))
    assert caught.value.errno == errno.ENODEV


@BOTH_MODES
def test_a_missing_program_is_named(device: Device, mode: AttachMode) -> None:
    with pytest.raises(KernelError, match="nowhere"):
        device.attacher(mode).attach(device.attachment(Program.MARK_DECRYPT), device.pin_root / "nowhere")


def test_a_kernel_without_tcx_gets_filters_and_says_so_if_told_otherwise(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    monkeypatch.setattr(bpf, "create_link", lambda *arguments: -errno.EINVAL)
    with pytest.raises(UnsupportedError, match=r"6\.6"):
        device.attacher("tcx").attach(attachment, build.path(attachment.program))
    device.attacher("auto").attach(attachment, build.path(attachment.program))
    assert device.attached("auto", build) == {attachment}
    assert "clsact" in qdiscs()

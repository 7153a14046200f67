# SPDX-License-Identifier: Apache-2.0
"""Attaching by TCX, among other people's programs."""

import errno
import os
from collections.abc import Callable

import pytest

from kmesh_bpf.core.state import Attachment, Program
from kmesh_bpf.errors import ConflictError, KernelError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.tc import TcAttacher
from tests.kernel import tiny_bpf
from tests.kernel.device import Device, eventually, links, qdiscs
from tests.lab.network import run


def test_ours_run_first_and_those_behind_still_run(
    device: Device, foreign_tcx: Callable[[int, int, int], None]
) -> None:
    build, attacher = device.build(1), device.attacher("auto")
    foreign_tcx(0xA, bpf.TCX_INGRESS, tiny_bpf.TC_ACT_UNSPEC)
    foreign_tcx(0xA, bpf.TCX_EGRESS, tiny_bpf.TC_ACT_UNSPEC)
    for program in (Program.MARK_DECRYPT, Program.LEAK_GUARD):
        attacher.attach(device.attachment(program), build.path(program))
    foreign_tcx(0xB, bpf.TCX_INGRESS, tiny_bpf.TC_ACT_UNSPEC)
    foreign_tcx(0xB, bpf.TCX_EGRESS, tiny_bpf.TC_ACT_UNSPEC)
    assert (device.mark_after_ingress(), device.mark_after_egress()) == (0x1AB, 0x1AB)
    ours = bpf.program_id(build.path(Program.MARK_DECRYPT))
    assert tiny_bpf.running(device.ifindex, bpf.TCX_INGRESS)[0] == ours
    for program in (Program.MARK_DECRYPT, Program.LEAK_GUARD):
        attacher.detach(device.attachment(program))
    assert eventually(device.mark_after_ingress, 0xAB)
    assert eventually(device.mark_after_egress, 0xAB)


def test_a_program_that_ends_the_chain_does_not_get_round_ours(
    device: Device, foreign_tcx: Callable[[int, int, int], None]
) -> None:
    build = device.build(1)
    foreign_tcx(0xA, bpf.TCX_INGRESS, tiny_bpf.TC_ACT_OK)
    device.attacher("auto").attach(device.attachment(Program.MARK_DECRYPT), build.path(Program.MARK_DECRYPT))
    assert device.mark_after_ingress() == 0x1A


@pytest.mark.parametrize("verdict", [tiny_bpf.TC_ACT_UNSPEC, tiny_bpf.TC_ACT_OK])
@pytest.mark.parametrize("program", [Program.MARK_DECRYPT, Program.LEAK_GUARD])
def test_whoever_comes_ahead_is_found_and_ours_goes_ahead_of_it_again(device: Device, program: Program, verdict: int):
    build, attacher, attachment = device.build(1), device.attacher("auto"), device.attachment(program)
    direction = bpf.TCX_EGRESS if program.egress else bpf.TCX_INGRESS
    mark = device.mark_after_egress if program.egress else device.mark_after_ingress
    attacher.attach(attachment, build.path(program))
    assert attacher.attached(links(), build) == attacher.attached_links(links(), build) == {attachment}
    fd = tiny_bpf.load(0xA, verdict)
    ahead = tiny_bpf.attach(fd, device.ifindex, direction, first=True)
    try:
        overtaken = device.attachment(program, current=False)
        assert attacher.attached_links(links(), build) == attacher.attached(links(), build) == {overtaken}
        attacher.attach(attachment, build.path(program))
        assert mark() == 0x1A
        assert tiny_bpf.running(device.ifindex, direction)[0] == bpf.program_id(build.path(program))
        assert attacher.attached_links(links(), build) == {attachment}
        assert device.attached("auto", build) == {attachment}, "its pin is the new link's"
    finally:
        os.close(ahead)
        os.close(fd)


def test_a_filter_that_a_program_of_tcx_runs_ahead_of_is_a_conflict_and_stays(device: Device) -> None:
    build, attacher, attachment = device.build(1), device.attacher("clsact"), device.attachment(Program.LEAK_GUARD)
    attacher.attach(attachment, build.path(attachment.program))
    fd = tiny_bpf.load(0xA)
    ahead = tiny_bpf.attach(fd, device.ifindex, bpf.TCX_EGRESS, first=True)
    try:
        assert attacher.attached(links(), build) == {device.attachment(Program.LEAK_GUARD, current=False)}
        with pytest.raises(ConflictError, match=r"runs ahead of all filters \(TCX\)"):
            attacher.attach(attachment, build.path(attachment.program))
        assert device.mark_after_egress() == 0xA1
    finally:
        os.close(ahead)
        os.close(fd)
    attacher.attach(attachment, build.path(attachment.program))
    assert attacher.attached(links(), build) == {attachment}


def test_replacing_keeps_the_place_in_the_chain(device: Device, foreign_tcx: Callable[[int, int, int], None]) -> None:
    attacher, attachment = device.attacher("tcx"), device.attachment(Program.MARK_DECRYPT)
    attacher.attach(attachment, device.build(1).path(Program.MARK_DECRYPT))
    foreign_tcx(0xA, bpf.TCX_INGRESS, tiny_bpf.TC_ACT_UNSPEC)
    attacher.attach(attachment, device.build(2).path(Program.MARK_DECRYPT))
    assert device.mark_after_ingress() == 0x2A


def test_a_pin_whose_device_number_was_given_to_another_is_replaced(device: Device) -> None:
    build, attacher = device.build(1), device.attacher("tcx")
    attachment = device.attachment(Program.MARK_DECRYPT)
    attacher.attach(attachment, build.path(attachment.program))
    run(f"ip link del dev0; ip link add again index {device.ifindex} type veth peer name other")
    again = Attachment(device.ifindex, "again", Program.MARK_DECRYPT)
    attacher.attach(again, build.path(again.program))
    assert tiny_bpf.running(device.ifindex, bpf.TCX_INGRESS) == [bpf.program_id(build.path(again.program))]
    assert [found.device for found in device.attached("tcx", build)] == ["again"]


def test_what_is_attached_by_hand_or_by_another_pin_root_is_not_found(device: Device) -> None:
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    other = device.pin_root / "another"
    other.mkdir()
    TcAttacher(other, "tcx").attach(attachment, build.path(attachment.program))
    assert device.attached("tcx", build) == frozenset()
    device.attacher("tcx").detach(attachment)
    assert device.mark_after_ingress() == 0x1


def test_a_refusal_for_another_reason_does_not_lead_to_clsact(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    real = bpf.create_link

    def refusing(program: int, ifindex: int, attach_type: int) -> int:
        return -errno.EINVAL if ifindex == device.ifindex else real(program, ifindex, attach_type)

    monkeypatch.setattr(bpf, "create_link", refusing)
    with pytest.raises(KernelError, match="Invalid argument"):
        device.attacher("auto").attach(attachment, build.path(attachment.program))
    assert qdiscs() == ""

"""Attaching by TCX, among other people's programs."""

import errno
from collections.abc import Callable

import pytest

from kmesh_bpf.core.state import Attachment, Program
from kmesh_bpf.errors import KernelError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.tc import TcAttacher
from tests.kernel import tiny_bpf
from tests.kernel.device import Device, eventually, qdiscs
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

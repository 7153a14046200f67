# SPDX-License-Identifier: Apache-2.0
"""Attaching by clsact, among other people's filters and qdiscs."""

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import ConflictError, KernelError
from tests.kernel.device import Device, foreign_filter, qdiscs
from tests.lab.network import run


def test_other_filters_before_and_behind_still_run_and_keep_the_qdisc(device: Device) -> None:
    build, attacher = device.build(1), device.attacher("clsact")
    ours = (Program.MARK_DECRYPT, Program.LEAK_GUARD)
    for program in ours:
        attacher.attach(device.attachment(program), build.path(program))
    foreign_filter(device, "ingress", 0xA, f"prio {contract.TC_PRIORITY} handle {contract.TC_HANDLE + 1:#x}")
    foreign_filter(device, "ingress", 0xB, f"prio {contract.TC_PRIORITY + 1} handle 1")
    foreign_filter(device, "egress", 0xC, f"prio {contract.TC_PRIORITY + 1} handle {contract.TC_HANDLE:#x}")
    assert device.mark_after_egress() == 0x1C
    # Of two at one priority the later comes first: nobody can claim the very first place.
    assert device.mark_after_ingress() == 0xA1B
    for program in ours:
        attacher.detach(device.attachment(program))
    assert device.mark_after_egress() == 0xC
    assert device.mark_after_ingress() == 0xAB
    assert "clsact" in qdiscs()


def test_a_qdisc_of_somebody_else_stays(device: Device) -> None:
    run("tc qdisc add dev dev0 clsact")
    build, attacher = device.build(1), device.attacher("clsact")
    attachment = device.attachment(Program.LEAK_GUARD)
    attacher.attach(attachment, build.path(attachment.program))
    attacher.detach(attachment)
    assert "clsact" in qdiscs()


def test_a_filter_of_somebody_else_in_our_place_is_a_conflict_and_stays(device: Device) -> None:
    run("tc qdisc add dev dev0 clsact")
    foreign_filter(device, "ingress", 0xA, f"prio {contract.TC_PRIORITY} handle {contract.TC_HANDLE:#x}")
    attacher, attachment = device.attacher("clsact"), device.attachment(Program.MARK_DECRYPT)
    with pytest.raises(ConflictError, match=r"filter 'foreign10.* is at priority 1"):
        attacher.attach(attachment, device.build(1).path(attachment.program))
    attacher.detach(attachment)
    assert device.attached("clsact") == frozenset()
    assert device.mark_after_ingress() == 0xA


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [("all", "u32 match u32 0 0"), ("ip", "bpf da object-pinned {pinned}")],
    ids=["kind", "protocol"],
)
def test_a_priority_taken_by_another_sort_of_filter_is_a_conflict_and_it_stays(
    device: Device, protocol: str, kind: str
) -> None:
    build, attacher, attachment = device.build(1), device.attacher("clsact"), device.attachment(Program.MARK_DECRYPT)
    kind = kind.format(pinned=build.path(Program.MARK_DECRYPT))
    run("tc qdisc add dev dev0 clsact")
    run(f"tc filter add dev dev0 ingress prio {contract.TC_PRIORITY} protocol {protocol} {kind}")
    before = run("tc filter show dev dev0 ingress")
    with pytest.raises(ConflictError, match=f"at priority {contract.TC_PRIORITY}"):
        attacher.attach(attachment, build.path(attachment.program))
    attacher.detach(attachment)
    assert run("tc filter show dev dev0 ingress") == before


def test_an_ingress_qdisc_is_a_conflict_for_it_would_run_the_guard_on_ingress(device: Device) -> None:
    run("tc qdisc add dev dev0 ingress")
    attachment = device.attachment(Program.LEAK_GUARD)
    with pytest.raises(ConflictError, match="ingress qdisc"):
        device.attacher("clsact").attach(attachment, device.build(1).path(attachment.program))
    assert "ingress" in qdiscs()


def test_detaching_one_program_leaves_the_other_in_the_same_place_alone(device: Device) -> None:
    """A device that turns from a pod's into an uplink: the new program takes the old one's place."""
    build, attacher = device.build(1), device.attacher("clsact")
    was, becomes = device.attachment(Program.MARK_ENCRYPT), device.attachment(Program.MARK_DECRYPT)
    for attachment in (was, becomes):
        attacher.attach(attachment, build.path(attachment.program))
    attacher.detach(was)
    assert device.attached("clsact", build) == {becomes}


def test_a_refused_filter_leaves_no_qdisc_behind(device: Device) -> None:
    no_program = device.pin_root / "map"
    run(f"bpftool map create {no_program} type array key 4 value 4 entries 1 name no_program")
    with pytest.raises(KernelError):
        device.attacher("clsact").attach(device.attachment(Program.MARK_DECRYPT), no_program)
    assert qdiscs() == ""

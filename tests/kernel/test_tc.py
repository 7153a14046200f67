"""Attaching by TCX and by clsact, among other people's programs, under traffic.

Each program appends a digit to the packet's mark, so a mark of 0x123 says: programs 1, 2 and 3, in this order.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmesh_bpf import contract
from kmesh_bpf.core.state import Attachment, Program
from kmesh_bpf.errors import ConflictError, KernelError, UnsupportedError
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.programs import LoadedPrograms
from kmesh_bpf.kernel.tc import AttachMode, TcAttacher
from tests.kernel import tiny_bpf
from tests.kernel.conftest import links
from tests.lab.network import run, socket_in

SO_RCVMARK, SO_MARK = 75, 36
PORT = 5000
BOTH_MODES = pytest.mark.parametrize("mode", ["tcx", "clsact"])


@dataclass
class Device:
    """A veth into another namespace, 10.0.0.1 here and 10.0.0.2 there, and builds of tiny programs to attach."""

    name: str
    ifindex: int
    there: str
    pin_root: Path

    def attachment(self, program: Program, current: bool = True) -> Attachment:
        return Attachment(self.ifindex, self.name, program, current)

    def attacher(self, mode: AttachMode) -> TcAttacher:
        return TcAttacher(self.pin_root, mode)

    def attached(self, mode: AttachMode, build: LoadedPrograms | None = None) -> frozenset[Attachment]:
        return self.attacher(mode).attached(links(), build)

    def build(self, digit: int) -> LoadedPrograms:
        """Pin three programs that append this digit."""
        folder = self.pin_root / "programs" / str(digit)
        folder.mkdir(parents=True)
        for program in Program:
            fd = tiny_bpf.load(digit)
            tiny_bpf.pin(fd, folder / program.value)
            os.close(fd)
        return LoadedPrograms(folder, self.pin_root / "maps", compiled=False)

    def mark_after_ingress(self) -> int:
        """Send a packet from there; give the mark it arrives with."""
        with (
            closing(listener(("10.0.0.1", PORT))) as receiver,
            closing(socket_in(self.there, socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ):
            sender.sendto(b"x", ("10.0.0.1", PORT))
            return received_mark(receiver)

    def mark_after_egress(self) -> int:
        """Send a packet from here; give the mark it leaves with."""
        with (
            closing(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))) as tap,
            closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ):
            tap.bind((self.name, 3))
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
            tap.settimeout(5)
            sender.sendto(b"needle", ("10.0.0.2", PORT))
            while True:
                data, controls, _, _ = tap.recvmsg(2048, 256)
                if data.endswith(b"needle"):
                    return mark_of(controls)


def listener(address: tuple[str, int]) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
    receiver.settimeout(5)
    receiver.bind(address)
    return receiver


def received_mark(receiver: socket.socket) -> int:
    return mark_of(receiver.recvmsg(2048, 256)[1])


def mark_of(controls: list[tuple[int, int, bytes]]) -> int:
    ((level, kind, data),) = controls
    assert (level, kind) == (socket.SOL_SOCKET, SO_MARK)
    return int.from_bytes(data, "little")


def eventually(mark: Callable[[], int], wanted: int) -> bool:
    """Whether packets get a mark within seconds: the kernel lets go of an unpinned link in a work queue."""
    end = time.monotonic() + 5
    while mark() != wanted:
        if time.monotonic() > end:
            return False
    return True


@pytest.fixture
def device(netns: str, new_netns: Callable[[], str], pin_root: Path) -> Device:
    there = new_netns()
    run(f"ip link add dev0 type veth peer name eth0 netns {there}")
    run(f"ip addr add 10.0.0.1/24 dev dev0; ip -n {there} addr add 10.0.0.2/24 dev eth0")
    # Known neighbours: no ARP between the packets that are counted.
    run(f"ip link set dev0 address 02:00:00:00:00:01 up; ip -n {there} link set eth0 address 02:00:00:00:00:02 up")
    run("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev dev0")
    run(f"ip -n {there} neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0")
    return Device("dev0", socket.if_nametoindex("dev0"), there, pin_root)


@pytest.fixture
def foreign_tcx(device: Device) -> Iterator[Callable[[int, int, int], None]]:
    """Attaches other people's programs at the end of a TCX chain, for as long as the test runs."""
    links: list[int] = []

    def attach(digit: int, attach_type: int, verdict: int = tiny_bpf.TC_ACT_UNSPEC) -> None:
        program = tiny_bpf.load(digit, verdict)
        links.append(bpf.check(bpf.lib.kmesh_link_create(program, device.ifindex, attach_type, 0), "attach", "foreign"))
        os.close(program)

    yield attach
    for link in links:
        os.close(link)


def foreign_filter(device: Device, direction: str, digit: int, place: str) -> None:
    """Install somebody else's filter with tc."""
    path = device.pin_root / f"foreign{digit}"
    fd = tiny_bpf.load(digit)
    tiny_bpf.pin(fd, path)
    os.close(fd)
    # Not through `ip netns exec` or `tc -n`: they hide bpffs.
    run(f"tc filter add dev {device.name} {direction} {place} bpf da object-pinned {path}")


def qdiscs() -> str:
    return run("tc qdisc show | grep -E 'clsact|ingress' || :")


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


def test_tcx_ours_run_first_and_those_behind_still_run(
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


def test_tcx_a_program_that_ends_the_chain_does_not_get_round_ours(
    device: Device, foreign_tcx: Callable[[int, int, int], None]
) -> None:
    build = device.build(1)
    foreign_tcx(0xA, bpf.TCX_INGRESS, tiny_bpf.TC_ACT_OK)
    device.attacher("auto").attach(device.attachment(Program.MARK_DECRYPT), build.path(Program.MARK_DECRYPT))
    assert device.mark_after_ingress() == 0x1A


def test_tcx_replacing_keeps_the_place_in_the_chain(
    device: Device, foreign_tcx: Callable[[int, int, int], None]
) -> None:
    attacher, attachment = device.attacher("tcx"), device.attachment(Program.MARK_DECRYPT)
    attacher.attach(attachment, device.build(1).path(Program.MARK_DECRYPT))
    foreign_tcx(0xA, bpf.TCX_INGRESS, tiny_bpf.TC_ACT_UNSPEC)
    attacher.attach(attachment, device.build(2).path(Program.MARK_DECRYPT))
    assert device.mark_after_ingress() == 0x2A


def test_clsact_other_filters_before_and_behind_still_run_and_keep_the_qdisc(device: Device) -> None:
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


def test_clsact_a_qdisc_of_somebody_else_stays(device: Device) -> None:
    run("tc qdisc add dev dev0 clsact")
    build, attacher = device.build(1), device.attacher("clsact")
    attachment = device.attachment(Program.LEAK_GUARD)
    attacher.attach(attachment, build.path(attachment.program))
    attacher.detach(attachment)
    assert "clsact" in qdiscs()


def test_clsact_a_filter_of_somebody_else_in_our_place_is_a_conflict_and_stays(device: Device) -> None:
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
def test_clsact_a_priority_taken_by_another_sort_of_filter_is_a_conflict_and_it_stays(
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


def test_clsact_an_ingress_qdisc_is_a_conflict_for_it_would_run_the_guard_on_ingress(device: Device) -> None:
    run("tc qdisc add dev dev0 ingress")
    attachment = device.attachment(Program.LEAK_GUARD)
    with pytest.raises(ConflictError, match="ingress qdisc"):
        device.attacher("clsact").attach(attachment, device.build(1).path(attachment.program))
    assert "ingress" in qdiscs()


def test_clsact_detaching_one_program_leaves_the_other_in_the_same_place_alone(device: Device) -> None:
    """A device that turns from a pod's into an uplink: the new program takes the old one's place."""
    build, attacher = device.build(1), device.attacher("clsact")
    was, becomes = device.attachment(Program.MARK_ENCRYPT), device.attachment(Program.MARK_DECRYPT)
    for attachment in (was, becomes):
        attacher.attach(attachment, build.path(attachment.program))
    attacher.detach(was)
    assert device.attached("clsact", build) == {becomes}


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


def test_tcx_a_pin_whose_device_number_was_given_to_another_is_replaced(device: Device) -> None:
    build, attacher = device.build(1), device.attacher("tcx")
    attachment = device.attachment(Program.MARK_DECRYPT)
    attacher.attach(attachment, build.path(attachment.program))
    run(f"ip link del dev0; ip link add again index {device.ifindex} type veth peer name other")
    again = Attachment(device.ifindex, "again", Program.MARK_DECRYPT)
    attacher.attach(again, build.path(again.program))
    assert tiny_bpf.running(device.ifindex, bpf.TCX_INGRESS) == [bpf.program_id(build.path(again.program))]
    assert [found.device for found in device.attached("tcx", build)] == ["again"]


def test_tcx_what_is_attached_by_hand_or_by_another_pin_root_is_not_found(device: Device) -> None:
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    other = device.pin_root / "another"
    other.mkdir()
    TcAttacher(other, "tcx").attach(attachment, build.path(attachment.program))
    assert device.attached("tcx", build) == frozenset()
    device.attacher("tcx").detach(attachment)
    assert device.mark_after_ingress() == 0x1


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


def test_clsact_a_refused_filter_leaves_no_qdisc_behind(device: Device) -> None:
    no_program = device.pin_root / "map"
    run(f"bpftool map create {no_program} type array key 4 value 4 entries 1 name no_program")
    with pytest.raises(KernelError):
        device.attacher("clsact").attach(device.attachment(Program.MARK_DECRYPT), no_program)
    assert qdiscs() == ""


def test_tcx_a_refusal_for_another_reason_does_not_lead_to_clsact(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, attachment = device.build(1), device.attachment(Program.MARK_DECRYPT)
    real = bpf.create_link

    def refusing(program: int, ifindex: int, attach_type: int) -> int:
        return -errno.EINVAL if ifindex == device.ifindex else real(program, ifindex, attach_type)

    monkeypatch.setattr(bpf, "create_link", refusing)
    with pytest.raises(KernelError, match="Invalid argument"):
        device.attacher("auto").attach(attachment, build.path(attachment.program))
    assert qdiscs() == ""

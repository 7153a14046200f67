# SPDX-License-Identifier: Apache-2.0
"""What the entries of the real kernel's hashes add up to: by a program and by reading all; whose writing changes it."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from itertools import cycle
from pathlib import Path

import pytest

from kmesh_bpf import KernelError, LinuxKernel, Settings
from kmesh_bpf._abi import ffi
from kmesh_bpf.core.entries import HASHES
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.state import KernelState, PeerEntry, PodFlags
from kmesh_bpf.kernel import hash_looks
from kmesh_bpf.kernel.maps import Maps, open_maps
from kmesh_bpf.kernel.tally import GROUPS, Adder, Layout, groups_of, new_groups

NAMES = [name for names in HASHES.values() for name in names]
V4, V6 = ip_address("10.1.0.0"), ip_address("fd00:1::")
NOTHING = KernelState()


@pytest.fixture
def kernel(netns: str, new_netns: Callable[[], str], pin_root: Path) -> Iterator[LinuxKernel]:
    with closing(LinuxKernel(pin_root / "node", Settings())) as made:
        made.observe()
        yield made


@pytest.fixture
def others(kernel: LinuxKernel, pin_root: Path) -> Iterator[Maps]:
    """The same maps, as somebody else opens them."""
    with closing(open_maps(pin_root / "node")) as found:
        yield found


def maps(kernel: LinuxKernel) -> Maps:
    assert kernel._maps is not None
    return kernel._maps


def fill(held: Maps, count: int = 300) -> None:
    for number in range(count):
        for base in (V4, V6):
            held.set_pod(base + number, PodFlags(1 + number % 63))
            held.set_peer(base + number, PeerEntry(number, number << 3, 3, 1 << 60 | number, number % 2, 1 << 50))
            held.set_source(base + number, number + 1)
        held.set_former(1 << 40 | number, number)


def numbers(sums: object) -> list[int]:
    return [sums[group] for group in range(GROUPS)]  # type: ignore[index]


def both(one) -> tuple[list[int], list[int]]:
    """Give the sums by a program, and by reading all."""
    layout, groups = Layout(one.fd, one.info.key_size, one.info.value_size, one.path), new_groups()
    assert groups is not None
    by_program, by_reading = Adder(layout, groups), Adder(layout, None)
    assert by_program.program is not None, "this kernel has bpf_for_each_map_elem (5.13)"
    try:
        return numbers(by_program.sums()), numbers(by_reading.sums())
    finally:
        os.close(by_program.program)
        os.close(groups)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_adds_up_what_one_finds_who_reads_all(kernel, name):
    one = maps(kernel).hashes()[name]
    assert both(one) == ([0] * GROUPS, [0] * GROUPS)
    fill(maps(kernel))
    by_program, by_reading = both(one)
    assert by_program == by_reading
    assert sum(number > 0 for number in by_program) > 200, "spread over the groups"


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_s_key_alone_decides_its_group(kernel, name):
    fill(maps(kernel))
    one = maps(kernel).hashes()[name]
    layout = Layout(one.fd, one.info.key_size, one.info.value_size, one.path)
    for key, _ in list(one.entries())[:20]:
        (group,) = groups_of(key, one.info.key_size)
        keys = Adder(layout, None).keys_in(frozenset({group}), 1000)
        assert keys is not None
        assert key in [keys[at : at + len(key)] for at in range(0, len(keys), len(key))]
    assert Adder(layout, None).keys_in(frozenset(range(GROUPS)), 299) is None, "there are more"


def test_what_we_write_is_expected_and_what_others_write_is_found_with_its_group_alone(kernel, others):
    chance = random.Random(7)
    held, tallies = maps(kernel), {name: one.tally for name, one in maps(kernel).hashes().items()}
    for _ in range(300):
        number = chance.randrange(40)
        address = chance.choice((V4, V6)) + number
        chance.choice(
            (
                lambda address=address: held.set_pods(
                    {address + more: PodFlags(chance.randrange(4)) for more in range(3)}
                ),
                lambda address=address: held.delete_pod(address),
                lambda address=address: held.set_peer(address, PeerEntry(chance.randrange(9), 0, 0, 1)),
                lambda address=address: held.delete_peer(address),
                lambda number=number: held.set_former(number, chance.randrange(9)),
            )
        )()
        assert not any(tally.differing(tally.sums()) for tally in tallies.values())
    others.set_pod(V4 + 1, PodFlags.OWN)
    (group,) = tallies["kmesh_pods4"].differing(tallies["kmesh_pods4"].sums())
    assert [group] == list(groups_of((V4 + 1).packed, 4))
    assert tallies["kmesh_pods4"].differing(tallies["kmesh_pods4"].sums()) == {group}, "until it is asked for"
    tallies["kmesh_pods4"].asked_for(frozenset({group}))
    assert not tallies["kmesh_pods4"].differing(tallies["kmesh_pods4"].sums())


def looked(kernel: LinuxKernel, known: KernelState) -> Keys:
    found = Keys()
    for keys in kernel.look(known):
        found.add(keys or Keys())
    return found


@pytest.mark.parametrize("program", [True, False], ids=["by a program", "by reading all"])
@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda held: held.delete_pod(V4 + 7), ("pods", V4 + 7)),
        (lambda held: held.set_pod(V6 + 7, PodFlags.OWN), ("pods", V6 + 7)),
        (lambda held: held.set_pod(V6 + 9999, PodFlags.OWN), ("pods", V6 + 9999)),
        (lambda held: held.delete_peer(V6 + 7), ("peers", V6 + 7)),
        (lambda held: held.delete_source(V4 + 7), ("sources", V4 + 7)),
        (lambda held: held.delete_former(1 << 40 | 7), ("formers", 1 << 40 | 7)),
        (lambda held: held.set_former(99, 3), ("formers", 99)),
    ],
)
def test_a_look_names_what_was_touched_and_few_others_once(kernel, others, damage, names, program):
    fill(maps(kernel))
    known = kernel.observe().state
    if not program:
        for one in maps(kernel).hashes().values():
            os.close(one.adder.program)
            one.adder.program = None
    assert not looked(kernel, known)
    damage(others)
    found = looked(kernel, known)
    mapping, key = names
    assert key in getattr(found, mapping)
    assert len(found) < 10
    assert not found.whole
    assert not looked(kernel, known), "once"


def test_where_most_of_a_map_is_gone_all_of_it_is_to_be_read(kernel, others):
    fill(maps(kernel))
    known = kernel.observe().state
    for number in range(250):
        others.delete_pod(V4 + number)
    assert looked(kernel, known) == Keys(whole=frozenset({"pods"}))


def test_what_we_write_while_a_look_adds_up_is_nobody_else_s_doing(kernel, others):
    fill(maps(kernel))
    known = kernel.observe().state
    writes = cycle(range(200))
    found = Keys()
    for keys in kernel.look(known):
        maps(kernel).set_pod(V4 + next(writes), PodFlags.OWN)
        found.add(keys or Keys())
    assert not found
    look = kernel.look(known)
    others.delete_pod(V6 + 3)
    for keys in look:
        maps(kernel).set_pod(V4 + next(writes), PodFlags.LOCAL)
        found.add(keys or Keys())
    found.add(looked(kernel, known))
    assert V6 + 3 in found.pods


def test_a_mapping_that_looks_compare_whole_is_left_out_of_audits_and_another_is_not(kernel, monkeypatch):
    assert list(kernel.audit(("pods",))) == []
    monkeypatch.setattr(hash_looks.HashLooks, "covers", lambda *_: False)
    assert [piece.name for piece in kernel.audit(("pods",))] == ["pods"] * 4


def test_where_a_program_cannot_be_run_entries_are_read_and_where_they_cannot_be_nothing_is_told(kernel, monkeypatch):
    one = maps(kernel).hashes()["kmesh_pods4"]
    layout, groups = Layout(one.fd, one.info.key_size, one.info.value_size, one.path), new_groups()
    run = Adder._add_up
    monkeypatch.setattr(
        Adder, "_add_up", lambda self, program, found: -1 if program >= 0 else run(self, program, found)
    )
    made = Adder(layout, groups)
    assert made.program is None
    assert numbers(made.sums()) == [0] * GROUPS
    monkeypatch.setattr(Adder, "_add_up", lambda *_: -errno.EINVAL)
    assert Adder(layout, groups).sums() is None, "a kernel before 5.6: there are audits"
    assert groups is not None
    os.close(groups)


def test_a_map_that_cannot_be_read_is_an_error(kernel):
    one = maps(kernel).hashes()["kmesh_pods4"]
    layout = Layout(one.fd, one.info.key_size, one.info.value_size, one.path)
    with pytest.raises(KernelError, match="add up"):
        Adder(Layout(-1, 4, 4, "a map"), None).sums()
    with pytest.raises(KernelError, match="read"):
        Adder(Layout(-1, 4, 4, "a map"), None).keys_in(frozenset({1}), 10)
    assert ffi.sizeof(Adder(layout, None).sums()) == GROUPS * 8

# SPDX-License-Identifier: Apache-2.0
"""What a packet costs in each program, beside bare look-ups in the same maps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

from kmesh_bpf import Address, Settings, contract
from kmesh_bpf.core.state import PeerEntry, PodFlags
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel.events import watching
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.programs import ensure_loaded
from tests.bench.kernels import pinned
from tests.bench.results import BEST_OF, Result
from tests.bench.sizes import Size
from tests.kernel import tiny_bpf

LO, ETHERNET = 1, 14
"""The device that a test run's packets come by; bytes of an Ethernet header."""
ICMP, UDP, ESP = 1, 17, 50
HERE, THERE = ip_address("10.10.0.1"), ip_address("10.10.0.2")
LOCAL, REMOTE, NOBODY = (ip_address(text) for text in ("10.244.1.10", "10.245.2.10", "198.51.100.1"))
SIXES = {
    one: ip_address(text)
    for one, text in ((LOCAL, "fd00:244:1::10"), (REMOTE, "fd00:245:2::10"), (NOBODY, "2001:db8::1"))
}
FIRST_POD = {4: 0x0AF40000, 6: int(ip_address("fd00:f4::"))}


def ipv4(source: object, target: object, protocol: int, payload: bytes = bytes(40)) -> bytes:
    addresses = ip_address(str(source)).packed + ip_address(str(target)).packed
    header = bytes([0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0]) + addresses
    return bytes(12) + b"\x08\x00" + header + payload


def ipv6(source: Address, target: Address, protocol: int) -> bytes:
    header = bytes([0x60, 0, 0, 0, 0, 40, protocol, 64]) + source.packed + target.packed
    return bytes(12) + b"\x86\xdd" + header + bytes(40)


def of_family(version: int, source: Address, target: Address) -> bytes:
    """Give a UDP packet between the addresses that stand for these in a family."""
    return ipv4(source, target, UDP) if version == 4 else ipv6(SIXES[source], SIXES[target], UDP)


class Bench:
    """Loaded programs, and how long they take."""

    def __init__(self, programs: Path, folder: Path, maps: Maps, size: Size) -> None:
        self.programs, self.folder, self.maps, self.size = programs, folder, maps, size

    def cost(self, program: str, packet: bytes, mark: int = 0) -> int:
        """Give the nanoseconds of a run, the best of a few."""
        path, runs = self.programs / program, self.size.runs
        return min(bpf.test_run(path, packet, mark, runs).nanoseconds for _ in range(BEST_OF))

    def bare(self, version: int, *keys: bytes) -> int:
        """Give those of a program that looks so many keys up in the pod map, and does nothing else."""
        held = tiny_bpf.get(self.folder / f"kmesh_pods{version}")
        fd = tiny_bpf.load_lookups(held, keys)
        path = self.programs / "bare"
        path.unlink(missing_ok=True)
        tiny_bpf.pin(fd, path)
        os.close(fd)
        os.close(held)
        return self.cost("bare", ipv4(LOCAL, REMOTE, UDP))


def packets(size: Size) -> Iterator[Result]:
    with pinned() as root:
        build = ensure_loaded(root, Settings())
        with closing(Maps(build.maps)) as maps:
            bench = Bench(build.programs, build.maps, maps, size)
            maps.set_peer(THERE, PeerEntry(5, 5 << 20, 1, 1))
            maps.add_service(ip_network("10.96.0.0/12"))
            flags = {LOCAL: PodFlags.LOCAL, REMOTE: PodFlags.REMOTE | PodFlags.READY}
            maps.set_pods(flags | {SIXES[one]: flag for one, flag in flags.items()})
            for address in (LOCAL, SIXES[LOCAL]):
                maps.set_source(address, LO)
            yield from classifier(bench)
            maps.set_pod(THERE, PodFlags.CANDIDATE | PodFlags.PEER | PodFlags.READY)
            yield from every_program(bench)
            yield from watched(bench, root)


def classifier(bench: Bench) -> Iterator[Result]:
    """Give hit and miss at several fills of the pod map, as ratios to the look-ups that they cannot do without."""
    for fill in bench.size.fills:
        for version, first in FIRST_POD.items():
            bench.maps.set_pods({ip_address(first + number): PodFlags.LOCAL for number in range(fill)})
            local, remote, nobody = (
                one.packed if version == 4 else SIXES[one].packed for one in (LOCAL, REMOTE, NOBODY)
            )
            two, one = bench.bare(version, local, remote), bench.bare(version, nobody)
            hit = bench.cost("tc_mark_encrypt", of_family(version, LOCAL, REMOTE))
            miss = bench.cost("tc_mark_encrypt", of_family(version, LOCAL, NOBODY))
            other = bench.cost("tc_mark_encrypt", of_family(version, NOBODY, REMOTE))
            how = f"IPv{version}, {fill:,} pods"
            yield Result(f"classifier, hit, {how}", hit, "two bare look-ups", two, "ns", 1.3)
            yield Result(f"classifier, miss, {how}", miss, "two bare look-ups", two, "ns", 1.3)
            yield Result(f"classifier, source is no pod, {how}", other, "one bare look-up", one, "ns", 1.3)
            if fill == bench.size.fills[-1]:  # beside as many as it makes: the pod's device, the device's pods too
                three, both = bench.bare(version, local, local, remote), bench.bare(version, nobody, nobody)
                yield Result(f"classifier, hit, {how}", hit, "three bare look-ups, as it makes", three, "ns")
                yield Result(f"classifier, source is no pod, {how}", other, "two, as it makes", both, "ns")


ROUND = 4000
"""Runs that tell an event each, which the ring has room for."""


def watched(bench: Bench, root: Path) -> Iterator[Result]:
    """Give what it adds to a packet that somebody watches (kmeshctl monitor): each one, or one of a thousand."""
    packet, path = ipv4(LOCAL, REMOTE, UDP), bench.programs / "tc_mark_encrypt"
    alone = bench.cost("tc_mark_encrypt", packet)
    for one_of, how in ((1, "each is watched"), (1000, "one of 1,000 is watched")):
        with watching(root, one_of) as ring:
            costs = []
            for _ in range(BEST_OF * 10):
                list(ring.take())
                costs.append(bpf.test_run(path, packet, 0, ROUND).nanoseconds)
        yield Result(f"tc_mark_encrypt, where {how}", min(costs), "nobody watches", alone, "ns")


def every_program(bench: Bench) -> Iterator[Result]:
    error = ipv4(HERE, NOBODY, ICMP, b"\x03" + bytes(7) + ipv4(NOBODY, HERE, UDP)[ETHERNET:])
    labels = b"\x88\x47" + bytes(4) * 2 + b"\x00\x00\x01\x40"
    labelled = bytes(12) + labels + ipv4(NOBODY, HERE, UDP)[ETHERNET:]
    fd = tiny_bpf.load(0)
    tiny_bpf.pin(fd, bench.programs / "almost_empty")
    os.close(fd)
    empty = bench.cost("almost_empty", ipv4(LOCAL, REMOTE, UDP))
    for what, program, packet, *mark in (
        ("tc_mark_encrypt, to a managed pod of a ready peer", "tc_mark_encrypt", ipv4(LOCAL, REMOTE, UDP)),
        ("tc_mark_decrypt, ESP of a known peer", "tc_mark_decrypt", ipv4(THERE, HERE, ESP)),
        ("tc_mark_decrypt, clear traffic of nobody's", "tc_mark_decrypt", ipv4(NOBODY, HERE, UDP)),
        ("tc_mark_decrypt, an ICMP error of nobody's", "tc_mark_decrypt", error),
        ("tc_mark_decrypt, clear traffic behind three labels", "tc_mark_decrypt", labelled),
        ("tc_leak_guard, ESP of ours", "tc_leak_guard", ipv4(HERE, THERE, ESP), contract.MARK_ENCRYPT),
        ("tc_leak_guard, clear traffic of nobody's", "tc_leak_guard", ipv4(HERE, NOBODY, UDP)),
        ("tc_inner_guard, clear traffic of nobody's", "tc_inner_guard", ipv4(HERE, NOBODY, UDP)),
        ("tc_pod_guard, to a managed pod, source not managed", "tc_pod_guard", ipv4(NOBODY, LOCAL, UDP)),
        ("tc_pod_guard, to a managed pod from one of another node", "tc_pod_guard", ipv4(REMOTE, LOCAL, UDP)),
    ):
        yield Result(what, bench.cost(program, packet, *mark), "a program of six instructions", empty, "ns")

"""What a packet, a message, a map entry and a pass cost, each beside a baseline measured in the same run."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from ipaddress import ip_address, ip_network
from pathlib import Path

from pyroute2.netlink import nlmsg

from kmesh_bpf import Address, Key, Node, Options, Peer, Pod, Settings, View, contract, make_plan
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.policies import ANY, host, to_encrypt
from kmesh_bpf.core.state import (
    Direction,
    KernelState,
    Mark,
    Observation,
    PeerEntry,
    PodFlags,
    Policy,
    Sa,
    SaUsage,
)
from kmesh_bpf.kernel import bpf
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.netlink import HEADER
from kmesh_bpf.kernel.programs import ensure_loaded
from tests.bench.events import events
from tests.bench.plans import plans
from tests.bench.results import Result
from tests.kernel import tiny_bpf

PIN_ROOT = Path("/sys/fs/bpf/kmesh-bench")
PODS, PEERS, MORE_PEERS, RUNS, BEST_OF = 100_000, 1_000, 5_000, 1_000_000, 5
LO, ETHERNET = 1, 14
"""The device that a test run's packets come by; bytes of an Ethernet header."""
HERE, THERE = ip_address("10.10.0.1"), ip_address("10.10.0.2")
LOCAL, REMOTE, NOBODY = (ip_address(text) for text in ("10.244.1.10", "10.245.2.10", "198.51.100.1"))


def best(action: Callable[[], object], times: int) -> float:
    """Give the microseconds that one of so many repetitions takes, the best of a few rounds."""
    found = []
    for _ in range(BEST_OF):
        start = time.perf_counter()
        for _ in range(times):
            action()
        found.append((time.perf_counter() - start) / times * 1e6)
    return min(found)


def ipv4(source: object, target: object, protocol: int, payload: bytes = bytes(40)) -> bytes:
    addresses = ip_address(str(source)).packed + ip_address(str(target)).packed
    header = bytes([0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0]) + addresses
    return bytes(12) + b"\x08\x00" + header + payload


@contextmanager
def loaded() -> Iterator[tuple[Path, Maps]]:
    shutil.rmtree(PIN_ROOT, ignore_errors=True)
    build = ensure_loaded(PIN_ROOT, Settings())
    try:
        with closing(Maps(build.maps)) as maps:
            yield build.programs, maps
    finally:
        shutil.rmtree(PIN_ROOT)


def packets(programs: Path, maps: Maps) -> Iterator[Result]:
    pods = {ip_address(0x0AF40000 + number): PodFlags.LOCAL for number in range(PODS)}
    maps.set_pods(pods | {LOCAL: PodFlags.LOCAL, REMOTE: PodFlags.REMOTE | PodFlags.READY})
    maps.set_pod(THERE, PodFlags.CANDIDATE | PodFlags.PEER | PodFlags.READY)
    maps.set_source(LOCAL, LO)
    maps.set_peer(THERE, PeerEntry(5, 5 << 20, 1, 1))
    maps.add_service(ip_network("10.96.0.0/12"))
    fd = tiny_bpf.load(0)
    tiny_bpf.pin(fd, programs / "almost_empty")
    os.close(fd)

    def cost(program: str, packet: bytes, mark: int = 0) -> int:
        return min(bpf.test_run(programs / program, packet, mark, RUNS).nanoseconds for _ in range(BEST_OF))

    icmp, udp, esp = 1, 17, 50
    error = ipv4(HERE, NOBODY, icmp, b"\x03" + bytes(7) + ipv4(NOBODY, HERE, udp)[ETHERNET:])
    labels = b"\x88\x47" + bytes(4) * 2 + b"\x00\x00\x01\x40"
    labelled = bytes(12) + labels + ipv4(NOBODY, HERE, udp)[ETHERNET:]
    empty = cost("almost_empty", ipv4(LOCAL, REMOTE, udp))
    for what, program, packet, *mark in (
        ("tc_mark_encrypt, source not managed", "tc_mark_encrypt", ipv4(NOBODY, REMOTE, udp)),
        ("tc_mark_encrypt, to a managed pod of a ready peer", "tc_mark_encrypt", ipv4(LOCAL, REMOTE, udp)),
        ("tc_mark_encrypt, from a managed pod to somewhere else", "tc_mark_encrypt", ipv4(LOCAL, NOBODY, udp)),
        ("tc_mark_decrypt, ESP of a known peer", "tc_mark_decrypt", ipv4(THERE, HERE, esp)),
        ("tc_mark_decrypt, clear traffic of nobody's", "tc_mark_decrypt", ipv4(NOBODY, HERE, udp)),
        ("tc_mark_decrypt, an ICMP error of nobody's", "tc_mark_decrypt", error),
        ("tc_mark_decrypt, clear traffic behind three labels", "tc_mark_decrypt", labelled),
        ("tc_leak_guard, ESP of ours", "tc_leak_guard", ipv4(HERE, THERE, esp), contract.MARK_ENCRYPT),
        ("tc_leak_guard, clear traffic of nobody's", "tc_leak_guard", ipv4(HERE, NOBODY, udp)),
        ("tc_inner_guard, clear traffic of nobody's", "tc_inner_guard", ipv4(HERE, NOBODY, udp)),
        ("tc_pod_guard, to a managed pod, source not managed", "tc_pod_guard", ipv4(NOBODY, LOCAL, udp)),
        ("tc_pod_guard, to a managed pod from one of another node", "tc_pod_guard", ipv4(REMOTE, LOCAL, udp)),
    ):
        spent = cost(program, packet, *mark)
        yield Result(f"{what} ({PODS:,} pods)", spent, "a program of six instructions", empty, "ns")


class GenericSa(nlmsg):  # type: ignore[misc] # pyroute2 ships no types
    """An SA in pyroute2's generic encoder: what encoding would cost without structs."""

    prefix = "XFRMA_"
    nla_map = ((18, "XFRMA_ALG_AEAD", "hex"), (21, "XFRMA_MARK", "hex"), (29, "XFRMA_SET_MARK", "uint32"))
    fields = tuple((f"word{number}", "I") for number in range(56))


def messages() -> Iterator[Result]:
    sa = Sa(THERE, HERE, 1, Key(bytes(36)), Mark(0x1000D0, 0xFFF01FFF), Mark(0xD0, 0xFFFFFFFF), 4096, True)
    body = wire.encode_new_sa(sa)[HEADER:]
    hexed = ":".join(["00"] * 108)

    def generic() -> None:
        one = GenericSa()
        for number in range(56):
            one[f"word{number}"] = number
        mark = "d0:00:10:00:ff:1f:f0:ff"
        one["attrs"] = [["XFRMA_ALG_AEAD", hexed], ["XFRMA_MARK", mark], ["XFRMA_SET_MARK", 0xD0]]
        one.encode()

    baseline = best(generic, 500)
    name = "pyroute2's generic encoder"
    yield Result("encode an SA", best(lambda: wire.encode_new_sa(sa), 2000), name, baseline, "µs")
    yield Result("decode an SA", best(lambda: wire.decode_sa(body), 2000), name, baseline, "µs")


def entries(maps: Maps) -> Iterator[Result]:
    pods = {ip_address(0x0AF40000 + number): PodFlags.LOCAL for number in range(20_000)}

    def one_by_one() -> None:
        for address, flags in pods.items():
            maps.set_pod(address, flags)

    single = best(one_by_one, 1) / len(pods)
    yield Result(
        "write a pod, in batches", best(lambda: maps.set_pods(pods), 1) / len(pods), "one at a time", single, "µs"
    )
    yield Result("read a pod back", best(maps.pods, 1) / len(maps.pods()), "writing one at a time", single, "µs")


def cluster(peers: int, pods: int) -> View:
    """Give the view of the first of so many nodes; each pod's address is of its node's pod CIDR."""
    nodes = [
        Node(f"n{n}", (ip_address(0x0A0A0000 + n),), f"boot-{n}", (ip_network((0x0B000000 + (n << 8), 24)),))
        for n in range(peers + 1)
    ]
    managed = tuple(
        Pod(f"p{number}", f"n{node}", (ip_address(0x0B000001 + (node << 8) + round_),))
        for number, (round_, node) in enumerate(divmod(one, peers + 1) for one in range(pods))
    )
    others = tuple(Peer(one, 1, 4096, node_traffic=True) for one in nodes[1:])
    return View(nodes[0], others, managed, {1: Key(bytes(36))}, announced=1)


def passes() -> Iterator[Result]:
    for peers, pods, max_exact in (
        (PEERS, Options().max_exact, Options().max_exact),
        (PEERS, PODS, Options().max_exact),
        (MORE_PEERS, PODS, Options().max_exact),
        (MORE_PEERS, PODS, PODS),
    ):
        view, options = cluster(peers, pods), Options(max_exact=max_exact)
        state = make_plan(view, Observation(KernelState()), options, 0.0).state
        observed = Observation(state, {identity: SaUsage(0, 0, 0, 0) for identity in state.sas})

        def copy(view: View = view) -> dict[Address, str]:
            return {address: pod.node for pod in view.pods for address in pod.addresses}

        def a_pass(view: View = view, observed: Observation = observed, options: Options = options) -> None:
            diff(make_plan(view, observed, options, 0.0).state, observed.state)

        baseline = best(copy, 1) / 1000
        how = f"{peers:,} peers, {pods:,} pods, {len(state.policies):,} policies"
        yield Result(f"plan and diff, {how}", best(a_pass, 1) / 1000, "a dict of all pods", baseline, "ms")


def policies() -> Iterator[Result]:
    times = 500
    new = iter(
        wire.encode_set_policy(
            Policy(Direction.OUT, ANY[4], host(ip_address(number)), to_encrypt(0xFF), HERE, THERE), replace=False
        )[HEADER:]
        for number in range(1, times * BEST_OF + 2)
    )
    known = next(new)
    baseline = best(lambda: wire.decode_policy(next(new)), times)
    yield Result(
        "decode a policy seen before", best(lambda: wire.decode_policy(known), 2000), "a new one", baseline, "µs"
    )


def main() -> None:
    """Measure and print; ``--json`` for scripts."""
    results: list[Result] = []
    with loaded() as (programs, maps):
        for part in (
            lambda: packets(programs, maps),
            messages,
            policies,
            lambda: entries(maps),
            passes,
            events,
            lambda: plans(cluster),
        ):
            for result in part():
                results.append(result)
                if "--json" not in sys.argv:
                    print(
                        f"{result.what:<66} {result.cost:9.1f} {result.unit}"
                        f"{result.ratio:8.2f} x {result.baseline} ({result.baseline_cost:.1f} {result.unit})",
                        flush=True,
                    )
    if "--json" in sys.argv:
        print(json.dumps([asdict(one) | {"ratio": one.ratio} for one in results], indent=2))


if __name__ == "__main__":
    main()

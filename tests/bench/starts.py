# SPDX-License-Identifier: Apache-2.0
"""A daemon that starts: from an empty kernel, and from one that holds all already; and the key's replacement."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address

from kmesh_bpf import Key, Options, Reconciler, View
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.policies import ANY, host, to_encrypt
from kmesh_bpf.core.render import KEY_TEXT, render
from kmesh_bpf.core.state import Direction, KernelState, Observation, Policy, SaUsage
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.netlink import NetlinkSocket
from tests.bench.chain import as_the_daemon
from tests.bench.clusters import view_of
from tests.bench.kernels import Clock, Real, has_esp, namespace, real
from tests.bench.packets import HERE, THERE
from tests.bench.results import Result, best, spent
from tests.bench.sizes import Size

XFRM = (ops.AddSa, ops.SetPolicy)


def timed(action: Callable[[], object]) -> float:
    """Give the milliseconds of processor time that it takes."""
    began = spent()
    action()
    return spent() - began


def views(size: Size) -> Iterator[tuple[View, Options, str]]:
    """Give both ways of selecting, at the largest number of peers."""
    peers = size.peers[-1]
    for pods in (size.wide, size.exact):
        view = view_of(peers, pods)
        view = replace(view, peers=tuple(replace(one, node_traffic=False) for one in view.peers))
        yield view, Options(max_exact=size.max_exact), f"{peers:,} peers, {pods:,} pods"


def passes(size: Size) -> Iterator[Result]:
    """Measure planning and comparing from scratch, beside a copy of all pods in a dictionary."""
    for view, options, how in views(size):
        state = make_plan(view, Observation(KernelState()), options, 0.0).state
        observed = Observation(state, {identity: SaUsage(0, 0, 0, 0) for identity in state.sas})

        def copy(view: View = view) -> object:
            return {address: pod.node for pod in view.pods for address in pod.addresses}

        def one(view: View = view, observed: Observation = observed, options: Options = options) -> object:
            return diff(make_plan(view, observed, options, 0.0).state, observed.state)

        cost, baseline = best(one, 1) / 1000, best(copy, 1) / 1000
        yield Result(f"plan and difference from scratch, {how}", cost, "a dictionary of all pods", baseline, "ms")


def start(size: Size) -> Iterator[Result]:
    """Measure cold and warm starts.

    Without ESP there are no SAs among what ip and the kernel are measured with, though our side plans them; then the
    rows are for comparing one run with another, and have no goals.
    """
    esp = has_esp()
    with as_the_daemon():
        for view, options, how in views(size):
            clock = Clock()
            with real(clock) as kernel:
                made: list[Operation] = []
                wall = time.perf_counter()
                cold = timed(lambda: made.extend(_start(kernel, view, options, clock)))  # noqa: B023 # called here
                wall = (time.perf_counter() - wall) * 1e3
                objects = [one for one in made if isinstance(one, XFRM)]
                if not esp:
                    objects = [one for one in objects if not isinstance(one, ops.AddSa)]
                warm = min(timed(lambda: _start(kernel, view, options, clock)) for _ in range(2))  # noqa: B023
                listed = min(timed(_list) for _ in range(2))
            batch, ready = _by_ip(objects), _ready_made(objects)
            counted = f"{how}, {len(objects):,} {'XFRM objects' if esp else 'policies'}"
            yield Result(f"cold start, {counted}", cold, "ip -batch, the same", batch, "ms", 0.4 if esp else None)
            yield Result(f"cold start, {counted}", cold, "messages ready-made", ready, "ms", 1.3 if esp else None)
            yield Result(f"cold start, Python's share, {counted}", cold - ready, "all of it", cold, "ms")
            yield Result(f"cold start, wall time, {counted}", wall, "processor time", cold, "ms")
            yield Result(
                f"warm restart, {counted}", warm, "ip xfrm state/policy list", listed, "ms", 1.5 if esp else None
            )


def _start(kernel: Real, view: View, options: Options, clock: Clock) -> tuple[Operation, ...]:
    reconciler = Reconciler(kernel, options, clock, lambda: "here".ljust(36, "0"))  # type: ignore[arg-type]
    applied: list[Operation] = []
    for _ in range(5):
        report = reconciler.run(view)
        applied += report.applied
        clock.now += 1
        if report.converged:
            return tuple(applied)
    raise AssertionError(f"the passes come to no end: {report.drift[:3]}")


def _list() -> None:
    for what in ("state", "policy"):
        subprocess.run(["ip", "xfrm", what, "list"], check=True, stdout=subprocess.DEVNULL)


def _by_ip(objects: list[Operation]) -> float:
    lines = "\n".join(_line(one) for one in objects) + "\n"
    with namespace():
        return timed(lambda: subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True))


def _line(one: Operation) -> str:
    text = render(one, "", "").removeprefix("ip ")
    return text.replace(KEY_TEXT, f"0x{one.sa.key.reveal().hex()}") if isinstance(one, ops.AddSa) else text


def _messages(objects: list[Operation]) -> list[bytes]:
    return [
        wire.encode_new_sa(one.sa) if isinstance(one, ops.AddSa) else wire.encode_set_policy(one.policy, replace=False)
        for one in objects
        if isinstance(one, XFRM)
    ]


def _ready_made(objects: list[Operation]) -> float:
    with namespace(), closing(NetlinkSocket()) as socket:
        found: list[object] = []
        # By hash, as ours are.
        subprocess.run(["ip", "xfrm", "policy", "set", "hthresh4", "0", "32", "hthresh6", "0", "128"], check=True)
        requests = _messages(objects)
        taken = timed(lambda: found.extend(socket.execute(requests)))
        assert not any(ack.errno for ack in found), found[0]  # type: ignore[attr-defined]
        return taken


def policy(size: Size) -> Iterator[Result]:
    """Measure what updating and deleting a policy costs among many, beside the same among few."""
    few, many = max(3, size.exact // 100), size.exact * 3
    costs: dict[str, list[float]] = {}
    for number in (few, many):
        policies = [_policy(one) for one in range(number)]
        with real(Clock()) as kernel:
            kernel.apply([ops.LowerHashThresholds()])
            kernel.apply([ops.SetPolicy(one, replace=False) for one in policies])
            some = policies[:: max(1, number // 200)][:200]
            update = timed(lambda: kernel.apply([ops.SetPolicy(one, replace=True) for one in some]))  # noqa: B023
            delete = timed(lambda: kernel.apply([ops.DeletePolicy(one) for one in some]))  # noqa: B023
            for what, taken in (("update", update), ("delete", delete)):
                costs.setdefault(what, []).append(taken / len(some) * 1e3)
    for what, (little, much) in costs.items():
        yield Result(f"{what} a policy among {many:,}", much, f"among {few:,}", little, "µs", 1.5)


def _policy(number: int) -> Policy:
    return Policy(Direction.OUT, ANY[4], host(ip_address(0x0B000001 + number)), to_encrypt(0xFF), HERE, THERE)


def rotation(size: Size) -> Iterator[Result]:
    """Measure a key's replacement where there is ESP, beside the netlink messages alone."""
    if not has_esp():
        raise NotHereError("this kernel has no ESP: scripts/vm scripts/bench rotation")
    clock, options = Clock(), Options(max_exact=size.max_exact)
    view = view_of(size.peers[-1], size.wide)
    with as_the_daemon(), real(clock) as kernel:
        reconciler = Reconciler(kernel, options, clock, lambda: "here".ljust(36, "0"))  # type: ignore[arg-type]
        for _ in range(3):
            reconciler.run(view)
            clock.now += 1
        view = replace(view, keys={**view.keys, 2: Key(bytes(35) + b"2")})
        done: list[Operation] = []
        until_announced = timed(lambda: done.extend(reconciler.run(view).applied))
        announced = [one for one in done if isinstance(one, ops.AddSa)]
        everybody = tuple(replace(one, spi=2) for one in view.peers)
        view = replace(view, peers=everybody, announced=2, announced_at=clock.now)
        done, until_gone = [], 0.0
        for _ in range(40):
            began = spent()
            report = reconciler.run(view)
            until_gone += spent() - began
            done += report.applied
            clock.now += 1
    gone = [one for one in done if isinstance(one, ops.DeleteSa)]
    assert len(gone) == 2 * size.peers[-1], "all of the old ones are gone"
    floor = _ready_made(announced)
    rest = _floor([*announced], [one for one in done if isinstance(one, (ops.AddSa, ops.DeleteSa))])
    how = f"key replacement, {size.peers[-1]:,} peers"
    yield Result(f"{how}, until announced", until_announced, "messages ready-made", floor, "ms", 1.5)
    yield Result(f"{how}, until the old is gone", until_gone, "messages ready-made", rest, "ms", 1.5)


def _floor(before: list[Operation], objects: list[Operation]) -> float:
    old = [ops.AddSa(one.sa) for one in objects if isinstance(one, ops.DeleteSa)]
    requests = [
        wire.encode_new_sa(one.sa) if isinstance(one, ops.AddSa) else wire.encode_delete_sa(one.sa)
        for one in objects
        if isinstance(one, (ops.AddSa, ops.DeleteSa))
    ]
    with namespace(), closing(NetlinkSocket()) as socket:
        socket.execute(_messages([*before, *old]))
        return timed(lambda: socket.execute(requests))


class NotHereError(Exception):
    """Raised for a part that this kernel has no room for; its text says where it can be run."""

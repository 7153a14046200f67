# SPDX-License-Identifier: Apache-2.0
"""What a netlink message and a map entry cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

from pyroute2.netlink import nlmsg

from kmesh_bpf import Key, Settings
from kmesh_bpf.core.policies import ANY, host, to_encrypt
from kmesh_bpf.core.state import Direction, Mark, PodFlags, Policy, Sa
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.netlink import HEADER
from kmesh_bpf.kernel.programs import ensure_loaded
from tests.bench.kernels import pinned
from tests.bench.packets import HERE, THERE
from tests.bench.results import BEST_OF, Result, best
from tests.bench.sizes import Size


class GenericSa(nlmsg):  # type: ignore[misc] # pyroute2 ships no types
    """An SA in pyroute2's generic encoder: what encoding would cost without structs."""

    prefix = "XFRMA_"
    nla_map = ((18, "XFRMA_ALG_AEAD", "hex"), (21, "XFRMA_MARK", "hex"), (29, "XFRMA_SET_MARK", "uint32"))
    fields = tuple((f"word{number}", "I") for number in range(56))


def messages(size: Size) -> Iterator[Result]:
    yield from sas(min(500, size.runs))
    yield from policies(min(500, size.runs))
    yield from entries(min(20_000, size.exact))


def sas(times: int) -> Iterator[Result]:
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

    baseline = best(generic, times)
    name = "pyroute2's generic encoder"
    yield Result("encode an SA", best(lambda: wire.encode_new_sa(sa), 4 * times), name, baseline, "µs")
    yield Result("decode an SA", best(lambda: wire.decode_sa(body), 4 * times), name, baseline, "µs")


def policies(times: int) -> Iterator[Result]:
    new = iter(
        wire.encode_set_policy(
            Policy(Direction.OUT, ANY[4], host(ip_address(number)), to_encrypt(0xFF), HERE, THERE), replace=False
        )[HEADER:]
        for number in range(1, times * BEST_OF + 2)
    )
    known = next(new)
    baseline = best(lambda: wire.decode_policy(next(new)), times)
    again = best(lambda: wire.decode_policy(known), 4 * times)
    yield Result("decode a policy seen before", again, "a new one", baseline, "µs")


def entries(number: int) -> Iterator[Result]:
    pods = {ip_address(0x0AF40000 + one): PodFlags.LOCAL for one in range(number)}
    with pinned() as root, closing(Maps(ensure_loaded(root, Settings()).maps)) as maps:

        def one_by_one() -> None:
            for address, flags in pods.items():
                maps.set_pod(address, flags)

        single = best(one_by_one, 1) / len(pods)
        batch = best(lambda: maps.set_pods(pods), 1) / len(pods)
        yield Result("write a pod, in batches", batch, "one at a time", single, "µs")
        back = best(maps.pods, 1) / len(maps.pods())
        yield Result("read a pod back", back, "writing one at a time", single, "µs")

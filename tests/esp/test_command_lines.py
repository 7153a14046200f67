# SPDX-License-Identifier: Apache-2.0
"""SAs by the command lines that ``--dry-run`` and the log print: iproute2 makes of them what the product makes itself."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.render import render
from kmesh_bpf.core.state import KernelState, Observation, Sa
from kmesh_bpf.kernel.netlink import NetlinkSocket
from kmesh_bpf.kernel.xfrm import Xfrm
from tests.lab.network import inside, run
from tests.unit.core import mesh

NODE = "lines"


@pytest.fixture
def xfrm() -> Iterator[Xfrm]:
    """The SAD of a namespace that the test lives in."""
    run(f"ip netns add {NODE}; ip -n {NODE} link set lo up")
    with inside(NODE), NetlinkSocket() as sock:
        yield Xfrm(sock)
    run(f"ip netns del {NODE}")


def carry_out(operation: ops.Operation, sa: Sa) -> None:
    line = render(operation, "/programs", "/maps")
    subprocess.run(["bash", "-ec", line], env={**os.environ, "KEY": sa.key.reveal().hex()}, check=True)


def sas(xfrm: Xfrm) -> dict:
    return {one.id: one.sa for one in xfrm.dump_sas()}


@pytest.mark.parametrize("window", [4096, 64, 0])
def test_what_a_person_does_by_the_lines_is_what_was_planned(xfrm, window):
    nothing = Observation(KernelState(), {}, mesh.LINKS)
    planned = make_plan(mesh.view(), nothing, Options(replay_window=window), 0.0).state.sas
    assert len(planned) == 8
    for sa in planned.values():
        carry_out(ops.AddSa(sa), sa)
    assert sas(xfrm) == planned
    for sa in planned.values():
        carry_out(ops.ReplaceSa(sa, sa), sa)
    assert sas(xfrm) == planned
    for sa in planned.values():
        carry_out(ops.DeleteSa(sa), sa)
    assert sas(xfrm) == {}
